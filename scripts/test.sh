#!/usr/bin/env bash
# Everything that must hold before a change lands. `test.sh lint` stops before the tests.
# Every step runs even when an earlier one failed; the exit code is 0 only when all held. The last line counts the tests.
set -uo pipefail
cd "$(dirname "$0")/.."

out=target/test
mkdir -p "$out"
rm -f "$out"/closing-line
# Warnings are for reading while writing code; here they are errors.
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-auto}

failed_steps=()
unchecked=()
# A step that returns this could not be done here and is named at the end.
not_checked=75
# step NAME COMMAND...
step() {
    local name=$1 begin=$SECONDS
    shift
    printf '\n== %s\n' "$name"
    "$@"
    case $? in
    0) printf '== %s: held (%d s)\n' "$name" $((SECONDS - begin)) ;;
    "$not_checked")
        printf '== %s: not checked\n' "$name"
        unchecked+=("$name")
        ;;
    *)
        printf '== %s: FAILED (%d s)\n' "$name" $((SECONDS - begin))
        failed_steps+=("$name")
        ;;
    esac
}

# The advisory database is fetched from a git host, which not every build machine reaches.
advisories() {
    if timeout 60 cargo deny fetch db >"$out/advisories.log" 2>&1; then
        cargo deny --offline check advisories
    else
        echo "the advisory database cannot be fetched from here:"
        grep -v '^$' "$out/advisories.log" | tail -n 1
        return "$not_checked"
    fi
}

tests() {
    cargo test --workspace --locked --no-fail-fast 2>&1 | tee "$out/cargo-test.log"
}

# The demonstration of two zones, with the programs that the tests were built with.
two_zones() {
    local why_not=
    if [ "$(id -u)" != 0 ]; then
        why_not="network namespaces are made by root"
    elif ! ip netns add "shika-try-$$" 2>"$out/netns.log"; then
        why_not="no network namespace can be made here: $(tail -n 1 "$out/netns.log")"
    fi
    if [ -n "$why_not" ]; then
        echo "$why_not"
        return "$not_checked"
    fi
    ip netns del "shika-try-$$"
    BIN=target/debug demo/zones.sh </dev/null >"$out/zones.log" 2>&1 && return
    tail -n 40 "$out/zones.log"
    return 1
}

# A public control plane drives the proxy that the tests were built with, beside Envoy.
sovereign() {
    if [ ! -x target/tools/venv/bin/sovereign ]; then
        echo "sovereign is not installed: scripts/setup.sh sovereign says why"
        return "$not_checked"
    fi
    loadtest/control-planes/run.py sovereign --updates 6
}

step "formatting" cargo fmt --all --check
step "clippy" cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
step "licences, bans, sources" cargo deny --locked check licenses bans sources
step "advisories" advisories
if [ "${1:-}" != lint ]; then
    step "tests, parity with Envoy included" tests
    if grep -q 'NOTHING WAS CHECKED' "$out/cargo-test.log" 2>/dev/null; then
        unchecked+=("redirection in network namespaces: $(grep -m 1 -o 'NOTHING WAS CHECKED: .*' "$out/cargo-test.log")")
    fi
    step "instructions" scripts/instructions.sh
    step "sovereign drives Shika and Envoy" sovereign
    step "two zones in network namespaces" two_zones
fi

printf '\n'
if [ ${#unchecked[@]} -gt 0 ]; then
    printf 'not checked: %s\n' "${unchecked[@]}"
fi
if [ ${#failed_steps[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed_steps[@]}"
fi
if [ "${1:-}" != lint ]; then
    # The sum over all test binaries, from the closing line of each.
    awk '
        /^test result: / {
            for (i = 2; i <= NF; i++) {
                if ($i ~ /^passed/) passed += $(i - 1)
                if ($i ~ /^failed/) failed += $(i - 1)
                if ($i ~ /^ignored/) ignored += $(i - 1)
            }
        }
        END {
            printf "%d passed, %d failed", passed, failed
            if (ignored) printf ", %d skipped", ignored
            printf "\n"
        }' "$out/cargo-test.log" | tee "$out/closing-line"
fi
[ ${#failed_steps[@]} -eq 0 ]
