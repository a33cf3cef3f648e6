#!/usr/bin/env bash
# One fuzz target for so many seconds: scripts/fuzz.sh TARGET SECONDS. Works with the stable compiler: libFuzzer comes with the crate libfuzzer-sys, and
# the instrumentation is LLVM's own. New inputs are gathered under target/fuzz/corpus/TARGET, what fails under target/fuzz/artifacts/TARGET.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:?which target? one of: $(ls fuzz/corpus | tr '\n' ' ')}
seconds=${2:-600}
[ -d "fuzz/corpus/$target" ] || {
    printf 'fuzz: no such target: %s; there are: %s\n' "$target" "$(ls fuzz/corpus | tr '\n' ' ')" >&2
    exit 1
}
host=$(rustc -vV | sed -n 's/^host: //p')
# Counters of edges and of comparisons; `cfg(fuzzing)` is what crates expect. --target keeps them out of build scripts.
flags=(
    --cfg fuzzing
    -Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares
)
export CARGO_ENCODED_RUSTFLAGS
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f'; printf '%s' "${flags[*]}")
cargo build --locked --profile fuzz --target "$host" --target-dir target/fuzz -p shika-fuzz --features libfuzzer --bin "$target"
unset CARGO_ENCODED_RUSTFLAGS

found=target/fuzz/corpus/$target
artifacts=target/fuzz/artifacts/$target
mkdir -p "$found" "$artifacts"
program=target/fuzz/$host/fuzz/$target
# A run of zero seconds builds alone.
[ "$seconds" = 0 ] && exit
exec "$program" -max_total_time="$seconds" -timeout=25 -rss_limit_mb=2048 -max_len=8192 -print_final_stats=1 \
    -artifact_prefix="$artifacts/" "$found" "fuzz/corpus/$target"
