#!/usr/bin/env bash
# The program as production should run it: target/optimized/shika-proxy. It is built twice. The first build counts what its code does while the rig of
# `make load` drives it; the second is laid out and inlined by those counts (https://doc.rust-lang.org/rustc/profile-guided-optimization.html).
# TRAINING names other scenarios, SECONDS_EACH another length.
set -euo pipefail
cd "$(dirname "$0")/.."

# What sidecars do: each protocol on one hop and through a pair, with and without the filters that Kuma configures, and a large configuration.
scenarios=${TRAINING:-sidecar_stack,pair_mtls_http1,pair_mtls_http2,pair_mtls_http1_over_http2,pair_mtls_grpc,pair_mtls_tcp,pair_mtls_tcp_10mb,handshake,http1_one_hop,http2_one_hop,http1_64k,http1_64k_post,http1_conn_per_request,tcp_one_hop,tcp_one_hop_10mb,clusters_1000}
each=${SECONDS_EACH:-3s}
host=$(rustc -vV | sed -n 's/^host: //p')
profdata=$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata
out=$PWD/target/optimized
counts=$out/counts

say() { printf 'release: %s\n' "$*" >&2; }

# --target keeps the flags from build scripts and macros, and each set of flags has a directory of its own: going back and forth builds nothing anew.
# build DIRECTORY FLAG...
build() {
    local directory=$1
    shift
    CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f'; printf '%s' "$*") \
        cargo build --release --locked --target "$host" --target-dir "$directory" -p shika-proxy
}

[ -x "$profdata" ] || {
    say "llvm-profdata is missing: run \`rustup component add llvm-tools\`, then try again; \`cargo build --release\` needs none of this"
    exit 1
}
rm -rf "$counts"
mkdir -p "$counts"

say "1 of 3: the program that counts"
build "$out/counting" -Cprofile-generate="$counts"
cargo build --release --locked -p shika-loadtest

say "2 of 3: $each of each of $scenarios"
LLVM_PROFILE_FILE="$counts/%p-%m.profraw" target/release/shika-loadtest bench --subject shika \
    --shika "$out/counting/$host/release/shika-proxy" --scenario "$scenarios" --rounds 1 --duration "$each" --warmup 100ms \
    --out-dir "$counts/rig" >"$counts/rig.log" || {
    tail -n 20 "$counts/rig.log" >&2
    say "the training run failed; its log is $counts/rig.log"
    exit 1
}
"$profdata" merge -o "$out/shika.profdata" "$counts"/*.profraw
rm -f "$counts"/*.profraw

say "3 of 3: the program"
build "$out/built" -Cprofile-use="$out/shika.profdata"
ln -f "$out/built/$host/release/shika-proxy" "$out/shika-proxy"
say "$out/shika-proxy"
