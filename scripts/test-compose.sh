#!/usr/bin/env bash
# docker-compose.yml, all of it, checked from outside: names, both zones, identity, Prometheus, a cut link, a killed control plane.
# Needs root where no Docker engine runs: then one is started, with its files under target/docker, and ended again. An image registry is not needed:
# the base image is made by debootstrap and imported under the name that the build argument has by default.
# An engine of its own leaves what every engine leaves behind: the bridge docker0, chains of iptables, and its files, some 2 GB.
#
#   test-compose.sh [zones|one-zone]   which profile; zones by default
#   BASE=…          another base image, which has to be there or to be had
#   PROFILE=dev     programs that build faster
#   KEEP=yes        leave everything running
set -euo pipefail
cd "$(dirname "$0")/.."

profile=${1:-zones}
case $profile in
zones) control_planes=3 dataplanes=4 ;;
one-zone) control_planes=1 dataplanes=2 ;;
*)
    echo "test-compose: no such profile: $profile; there are zones and one-zone" >&2
    exit 2
    ;;
esac
state=$PWD/target/docker
base=${BASE:-debian:bookworm-slim}
engine=
log=$state/test-compose.log
mkdir -p "$state"
: >"$log"

say() { printf 'test-compose: %s\n' "$*"; }
fail() {
    printf 'test-compose failed: %s\n' "$*" >&2
    printf 'more is in %s\n' "$log" >&2
    if [ -n "${compose[*]:-}" ]; then
        "${compose[@]}" ps >&2 || true
        "${compose[@]}" logs --no-color --tail 20 >>"$log" 2>&1 || true
        tail -n 60 "$log" >&2
    fi
    exit 1
}

finish() {
    local code=$?
    trap - EXIT INT TERM
    if [ -n "${KEEP:-}" ]; then
        say "left running; DOCKER_HOST=${DOCKER_HOST:-}"
        exit "$code"
    fi
    if [ -n "${compose[*]:-}" ]; then "${compose[@]}" down --volumes --timeout 2 >>"$log" 2>&1 || true; fi
    if [ -n "$engine" ]; then
        kill "$engine" 2>/dev/null || true
        wait "$engine" 2>/dev/null || true
    fi
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# until_true SECONDS WHAT COMMAND...
until_true() {
    local limit=$1 what=$2 end
    shift 2
    end=$((SECONDS + limit))
    until "$@" >>"$log" 2>&1; do
        [ "$SECONDS" -lt "$end" ] || fail "not within $limit s: $what"
        sleep 0.5
    done
    say "$what"
}

if ! docker info >/dev/null 2>&1; then
    [ "$(id -u)" = 0 ] || fail "no Docker engine answers, and only root can start one"
    export DOCKER_HOST=unix://$state/docker.sock
    if ! docker info >/dev/null 2>&1; then
        say "starting a Docker engine of its own, with its files in $state"
        dockerd --data-root "$state/data" --exec-root "$state/exec" --pidfile "$state/pid" -H "$DOCKER_HOST" \
            >"$state/dockerd.log" 2>&1 &
        engine=$!
        end=$((SECONDS + 60))
        until docker info >/dev/null 2>&1; do
            kill -0 "$engine" 2>/dev/null || fail "dockerd ended: $(grep -iE 'error|failed' "$state/dockerd.log" | tail -n 3)"
            [ "$SECONDS" -lt "$end" ] || fail "dockerd does not answer; see $state/dockerd.log"
            sleep 0.2
        done
    fi
fi
if docker compose version >/dev/null 2>&1; then compose=(docker compose); else compose=(docker-compose); fi
compose+=(--project-name shika-test)
export COMPOSE_PROFILES=$profile DOCKER_BUILDKIT=0 COMPOSE_DOCKER_CLI_BUILD=0

if ! docker image inspect "$base" >/dev/null 2>&1 && ! docker pull "$base" >>"$log" 2>&1; then
    say "no registry has $base for us: making it with debootstrap"
    if [ ! -x "$state/base/bin/sh" ]; then
        debootstrap --variant=minbase bookworm "$state/base" >>"$log" 2>&1 || fail "debootstrap"
    fi
    tar -C "$state/base" -c . | docker import - "$base" >>"$log" || fail "docker import"
fi

scripts/images.sh "${IMAGES:-all}" || fail "the images"
docker image ls --format '{{.Repository}} {{.Size}}' | grep '^shika/' | sort | sed 's/^/    /'

say "starting everything"
"${compose[@]}" up --detach --no-build >>"$log" 2>&1 || fail "docker compose up"

container() { "${compose[@]}" ps --quiet "$1"; }
client_1=$(container client-1)
client() { docker exec "$client_1" curl --silent --show-error --max-time 10 "$@" </dev/null; }
answers() { client --fail "http://$1/echo" | grep "\"service\": \"$2\""; }
# tally COUNT: calls http://echo.mesh; sets zone_1, zone_2, failed.
tally() {
    local body
    zone_1=0 zone_2=0 failed=0
    for _ in $(seq "$1"); do
        body=$(client --fail http://echo.mesh/echo 2>>"$log") || body=
        case $body in
        *'echo in zone-1'*) zone_1=$((zone_1 + 1)) ;;
        *'echo in zone-2'*) zone_2=$((zone_2 + 1)) ;;
        *) failed=$((failed + 1)) ;;
        esac
    done
    echo "zone-1 $zone_1, zone-2 $zone_2, nobody $failed"
}
both_zones() { tally 8 && [ "$zone_1" -gt 0 ] && [ "$zone_2" -gt 0 ] && [ "$failed" = 0 ]; }
zone_1_alone() { tally 8 && [ "$zone_1" = 8 ]; }
none_fails() { tally 8 && [ "$failed" = 0 ]; }
targets() {
    # Every target that the control planes tell of, and the control planes.
    curl --silent --fail 'http://127.0.0.1:9090/api/v1/targets?state=active' >"$state/targets.json" &&
        python3 - "$state/targets.json" "$control_planes" "$dataplanes" <<'PYTHON'
import collections, json, sys

up = collections.Counter()
for target in json.load(open(sys.argv[1]))["data"]["activeTargets"]:
    up[target["labels"]["job"], target["health"]] += 1
print(dict(up))
wanted = up["shika-cp", "up"] == int(sys.argv[2]) and up["kuma-dataplanes", "up"] >= int(sys.argv[3])
sys.exit(0 if wanted and not any(health != "up" for _, health in up) else 1)
PYTHON
}

identity() {
    client "http://$1/echo" | grep -q 'URI=spiffe://demo/client' || fail "$1 does not see the caller's identity"
    say "$1 sees the caller's identity, spiffe://demo/client"
}
scraped() {
    until_true 90 "Prometheus scrapes every target" targets
    python3 -c 'import json, sys
for target in json.load(open(sys.argv[1]))["data"]["activeTargets"]: print("   ", target["health"], target["labels"]["job"], target["scrapeUrl"])' "$state/targets.json"
}

if [ "$profile" = one-zone ]; then
    until_true 120 "zone 1 answers every call of http://echo.mesh" zone_1_alone
    until_true 60 "so does http://echo.svc.mesh.local" answers echo.svc.mesh.local "echo in zone-1"
    identity echo.mesh
    scraped
    say "everything held"
    exit
fi

until_true 120 "both zones answer to http://echo.mesh" both_zones
until_true 60 "http://echo.svc.mesh.local is zone 1's" answers echo.svc.mesh.local "echo in zone-1"
until_true 60 "http://echo.svc.zone-2.mesh.local is zone 2's" answers echo.svc.zone-2.mesh.local "echo in zone-2"
identity echo.svc.zone-2.mesh.local
scraped

say "cutting zone 2 off the backbone"
for part in zone-2 ingress-2 egress-2; do docker network disconnect shika-test_backbone "$(container "$part")" || fail "cutting $part off"; done
until_true 90 "zone 1 answers every call" zone_1_alone
say "restoring the link"
docker network connect --ip 172.31.0.12 shika-test_backbone "$(container zone-2)"
docker network connect --ip 172.31.0.22 shika-test_backbone "$(container ingress-2)"
docker network connect --ip 172.31.0.32 shika-test_backbone "$(container egress-2)"
until_true 120 "both zones answer again" both_zones
say "killing the global control plane"
docker kill "$(container global)" >>"$log"
none_fails >>"$log" || fail "calls fail without the global control plane"
say "no call fails without the global control plane"
say "everything held"
