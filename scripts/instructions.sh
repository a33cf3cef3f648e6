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
cargo build --profile instructions --locked -p shika-proxy -p shika-benches
exec target/instructions/shika-benches-instructions check "$@"
