#!/usr/bin/env bash
# Builds the static programs and the images: images.sh [programs|images], both by default.
# The programs need nothing of the system that they run on: glibc is linked in. BASE names the image under the workloads and Prometheus. PROFILE=dev
# builds faster, and larger.
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(rustc -vV | sed -n 's/^host: //p')
out=target/images
tag=${TAG:-shika}
# What an image of the proxy may weigh.
MAX_PROXY_IMAGE=$((25 * 1000 * 1000))

say() { printf 'images: %s\n' "$*" >&2; }
die() {
    say "$@"
    exit 1
}

programs() {
    case $target in
    *-linux-gnu | *-linux-musl) ;;
    *) die "static programs are built on Linux, not on $target" ;;
    esac
    local flags=(--release) directory=release
    if [ "${PROFILE:-release}" != release ]; then
        flags=() directory=debug
    fi
    say "building static programs for $target (some minutes the first time)"
    # Naming the target keeps the flag away from build scripts and procedural macros, which cannot be static.
    RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" \
        cargo build "${flags[@]}" --locked --target "$target" -p shika-proxy -p shika-cp -p shika-loadtest
    rm -rf "$out"
    mkdir -p "$out/empty" "$out/root"
    mkdir -m 1777 "$out/root/tmp"
    for program in shika-proxy shika-cp shikactl shika-loadtest; do
        strip -o "$out/$program" "target/$target/$directory/$program"
        if ldd "$out/$program" >/dev/null 2>&1 && ! ldd "$out/$program" 2>&1 | grep -q 'statically linked'; then
            die "$program is not static: $(ldd "$out/$program")"
        fi
    done
    ls -l "$out"
}

images() {
    [ -x "$out/shika-proxy" ] || die "there are no programs in $out: run scripts/images.sh programs first"
    local image
    for image in proxy init cp workload prometheus; do
        say "image $tag/$image"
        # The older builder wants nothing that is not in every engine.
        DOCKER_BUILDKIT=${DOCKER_BUILDKIT:-0} docker build --quiet ${BASE:+--build-arg "BASE=$BASE"} \
            --file "containers/$image.Dockerfile" --tag "$tag/$image" "$out"
    done
    local size
    size=$(docker image inspect --format '{{.Size}}' "$tag/proxy")
    say "$tag/proxy has $size bytes"
    [ "${PROFILE:-release}" != release ] || [ "$size" -le "$MAX_PROXY_IMAGE" ] || die "$tag/proxy is larger than $MAX_PROXY_IMAGE bytes"
}

case ${1:-all} in
programs) programs ;;
images) images ;;
all)
    programs
    images
    ;;
*) die "no such part: $1" ;;
esac
