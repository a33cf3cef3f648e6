#!/usr/bin/env bash
# Counts the instructions of each operation and holds them against benches/instructions.tsv. Arguments go to `shika-benches-instructions check`:
# --bless, --only PART, --keep DIRECTORY. Exit code 75: nothing could be compared here, and why.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ ! -s benches/instructions.tsv ] && [[ " $* " != *" --bless "* ]]; then
    echo "there is no baseline: make instructions BLESS=1 writes benches/instructions.tsv"
    exit 75
fi
if ! command -v valgrind >/dev/null 2>&1; then
    echo "valgrind is not installed: scripts/setup.sh valgrind says why"
    exit 75
fi
# What can be told before anything is built; the program itself compares the rest.
made_with=$(sed -n 's/^# made with: //p' benches/instructions.tsv 2>/dev/null || true)
if [[ " $* " != *" --bless "* ]]; then
    for tool in "$(rustc --version)" "$(valgrind --version)"; do
        if [[ "$made_with" != *"$tool"* ]]; then
            echo "the baseline was made with $made_with; here is $tool, whose instructions cannot be compared with it"
            exit 75
        fi
    done
fi
cargo build --profile instructions --locked -p shika-proxy -p shika-benches
exec target/instructions/shika-benches-instructions check "$@"
