#!/usr/bin/env bash
# Two zones and a global control plane on this machine, each part in a network namespace of its own, traffic redirected as on real hosts. A client in
# zone 1 calls `echo` by name; replies come from both zones. Then zone 2's link is cut and restored, and the global control plane killed.
# Exits 0 when everything went as told, 1 with what failed. Needs root. Everything it starts and makes it also ends and removes.
#
#            global 10.91.0.10
#                  │
#      wan 10.91.0.0/24 ───────────────────────┐
#            │                                 │
#     router 1: only egress and control    router 2
#     plane out, only ingress in               │
#            │                                 │
#     zone 1 10.91.1.0/24               zone 2 10.91.2.0/24
#     .2 cp  .11 echo  .12 client       .2 cp  .11 echo
#     .21 ingress  .22 egress           .21 ingress  .22 egress
set -euo pipefail
cd "$(dirname "$0")/.."

[ "$(id -u)" = 0 ] || {
    echo "demo-zones makes network namespaces: run it as root" >&2
    exit 1
}

bold='' dim='' red='' reset=''
if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' reset=$'\e[0m'; fi

work=$(mktemp -d "${TMPDIR:-/tmp}/shika-zones.XXXXXX")
# The proxies' user reads its tokens there.
chmod 755 "$work"
prefix=shikaz$$
declare -A pids=()
spaces=()
keep_work=

step() { printf '\n%s%s%s\n' "$bold" "$*" "$reset"; }
show() { sed 's/^/    /'; }
note() { printf '  %s%s%s\n' "$dim" "$*" "$reset"; }

# fail WHAT [NAME]: says what failed and shows the end of a process's log.
fail() {
    printf '\n%sdemo-zones failed: %s%s\n' "$red" "$1" "$reset" >&2
    if [ -n "${2:-}" ] && [ -s "$work/$2.log" ]; then
        printf 'the end of %s:\n' "$work/$2.log" >&2
        tail -n 15 "$work/$2.log" | show >&2
    fi
    printf 'logs are kept in %s\n' "$work" >&2
    keep_work=yes
    exit 1
}

finish() {
    local code=$? name
    trap - EXIT INT TERM
    for name in "${!pids[@]}"; do kill -KILL "${pids[$name]}" 2>/dev/null || true; done
    for name in "${!pids[@]}"; do wait "${pids[$name]}" 2>/dev/null || true; done
    for name in "${spaces[@]}"; do
        ip netns del "$prefix-$name" 2>/dev/null || true
        rm -rf "/etc/netns/$prefix-$name"
    done
    if [ -z "$keep_work" ]; then rm -rf "$work"; fi
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# space NAME: a network namespace. Its DNS server does not exist: queries to it are redirected to the proxy, or lost.
space() {
    ip netns add "$prefix-$1"
    spaces+=("$1")
    ip -n "$prefix-$1" link set lo up
    mkdir -p "/etc/netns/$prefix-$1"
    echo 'nameserver 10.91.0.53' >"/etc/netns/$prefix-$1/resolv.conf"
}

in_space() {
    local space=$1
    shift
    ip netns exec "$prefix-$space" "$@"
}

# attach SPACE SWITCH ADDRESS GATEWAY: a cable to a switch, and the way out.
attach() {
    ip -n "$prefix-$1" link add eth0 type veth peer name "to-$1" netns "$prefix-$2"
    ip -n "$prefix-$2" link set "to-$1" master br0 up
    ip -n "$prefix-$1" address add "$3/24" dev eth0
    ip -n "$prefix-$1" link set eth0 up
    if [ -n "${4:-}" ]; then ip -n "$prefix-$1" route add default via "$4"; fi
}

address_of() { ip -n "$prefix-$1" -4 -brief address show dev eth0 | awk '{ sub("/.*", "", $3); print $3 }'; }

# start NAME SPACE COMMAND...: in the background, its output in NAME.log.
start() {
    local name=$1 space=$2
    shift 2
    note "$name\$ ${*//$work\//} &"
    ip netns exec "$prefix-$space" "$@" >>"$work/$name.log" 2>&1 </dev/null &
    pids[$name]=$!
}

# until_true SECONDS WHAT NAME COMMAND...: polls the command; gives up when the time is over or process NAME has ended.
until_true() {
    local limit=$1 what=$2 name=$3 end
    shift 3
    end=$((SECONDS + limit))
    until "$@" >/dev/null 2>&1; do
        kill -0 "${pids[$name]}" 2>/dev/null || fail "$name ended while waiting for: $what" "$name"
        [ "$SECONDS" -lt "$end" ] || fail "not within $limit s: $what" "$name"
        sleep 0.1
    done
}

curl_in() {
    local space=$1
    shift
    in_space "$space" setpriv --reuid 1000 --clear-groups curl --silent --show-error --max-time 10 "$@"
}
admin() { in_space "$1" curl --silent --fail --max-time 5 "http://127.0.0.1:9901$2"; }
ctl() {
    local space=$1
    shift
    in_space "$space" shikactl --config-file "$work/$space.shikactl.yaml" "$@"
}

# tally NAME COUNT: calls http://NAME/echo from the client; counts the answers by who gave them into $answers (text) and $zone_1, $zone_2, $failed.
tally() {
    local name=$1 count=$2 body
    zone_1=0 zone_2=0 failed=0
    for _ in $(seq "$count"); do
        body=$(curl_in client-1 --fail "http://$name/echo" 2>>"$work/curl.log") || body=
        case $body in
        *'"service": "echo in zone-1"'*) zone_1=$((zone_1 + 1)) ;;
        *'"service": "echo in zone-2"'*) zone_2=$((zone_2 + 1)) ;;
        *) failed=$((failed + 1)) ;;
        esac
    done
    answers="http://$name: zone-1 answered $zone_1, zone-2 $zone_2, nobody $failed of $count"
}
both_zones_answer() { tally "$1" 10 && [ "$zone_1" -gt 0 ] && [ "$zone_2" -gt 0 ] && [ "$failed" = 0 ]; }
zone_1_answers_all() { tally "$1" 10 && [ "$zone_1" = 10 ]; }
zone_2_answers_all() { tally "$1" 10 && [ "$zone_2" = 10 ]; }

step "Building (the first time takes some minutes)"
if [ "${PROFILE:-release}" = release ]; then
    cargo build --release --locked -p shika-cp -p shika-proxy -p shika-loadtest || fail "the build"
    bin=$PWD/target/release
else
    cargo build --locked -p shika-cp -p shika-proxy -p shika-loadtest || fail "the build"
    bin=$PWD/target/debug
fi
PATH="$bin:$PATH"

step "1. Two zones, a network between them, and routers that let through what a zone is meant to show"
space wan
ip -n "$prefix-wan" link add br0 type bridge
ip -n "$prefix-wan" link set br0 up
space global
attach global wan 10.91.0.10
for zone in 1 2; do
    space "router-$zone"
    ip -n "$prefix-router-$zone" link add br0 type bridge
    ip -n "$prefix-router-$zone" link set br0 up
    ip -n "$prefix-router-$zone" address add "10.91.$zone.254/24" dev br0
    attach "router-$zone" wan "10.91.0.$zone"
    in_space "router-$zone" sysctl -qw net.ipv4.ip_forward=1
    other=$((3 - zone))
    ip -n "$prefix-router-$zone" route add "10.91.$other.0/24" via "10.91.0.$other"
    ip -n "$prefix-global" route add "10.91.$zone.0/24" via "10.91.0.$zone"
    # Nothing passes but the zone proxies and the control plane.
    in_space "router-$zone" nft -f - <<RULES
table inet zone {
    chain forward {
        type filter hook forward priority 0; policy drop;
        ct state established,related accept
        # Where bridges go through netfilter, what stays in the zone comes by here too.
        iifname "br0" oifname "br0" accept
        iifname "eth0" ip daddr 10.91.$zone.21 tcp dport 10001 accept
        iifname "br0" ip saddr 10.91.$zone.22 tcp dport 10001 accept
        iifname "br0" ip saddr 10.91.$zone.2 ip daddr 10.91.0.10 accept
    }
}
RULES
    for part in cp:2 echo:11 ingress:21 egress:22; do
        space "${part%:*}-$zone"
        attach "${part%:*}-$zone" "router-$zone" "10.91.$zone.${part#*:}" "10.91.$zone.254"
    done
done
space client-1
attach client-1 router-1 10.91.1.12 10.91.1.254
for name in global client-1 echo-1 echo-2; do
    note "$name $(address_of "$name")"
done

step "2. The global control plane, and one in each zone that connects to it"
start_global() {
    start global global shika-cp run --mode global --store sqlite --store-path "$work/global.db" --work-dir "$work/global"
    until_true 30 "the global control plane answers" global in_space global curl --silent --fail http://127.0.0.1:5681/
}
start_global
know() {
    ctl "$1" config control-planes add --name "$1" --address http://127.0.0.1:5681 >/dev/null || fail "shikactl could not be set up for $1"
}
know global
for zone in 1 2; do
    ctl global generate zone-token --zone "zone-$zone" --scope cp --scope ingress --scope egress --valid-for 24h >"$work/zone-$zone.token" ||
        fail "no token for zone-$zone" global
    start "cp-$zone" "cp-$zone" shika-cp run --mode zone --zone-name "zone-$zone" --kds-global-address grpcs://10.91.0.10:5685 \
        --kds-root-ca-file "$work/global/dp-server-ca.pem" --kds-token-file "$work/zone-$zone.token" \
        --store sqlite --store-path "$work/cp-$zone.db" --work-dir "$work/cp-$zone"
    until_true 30 "the control plane of zone-$zone answers" "cp-$zone" in_space "cp-$zone" curl --silent --fail http://127.0.0.1:5681/
    know "cp-$zone"
done

step "3. A mesh with mutual TLS and a permission, given to the global control plane, arrive in the zones"
ctl global apply -f demo/zones/mesh.yaml || fail "the Mesh was not accepted" global
ctl global apply -f demo/zones/permission.yaml || fail "the MeshTrafficPermission was not accepted" global
ctl global apply -f demo/zones/resilience.yaml || fail "the MeshCircuitBreaker and the MeshRetry were not accepted" global
for zone in 1 2; do
    until_true 30 "zone-$zone has the mesh" "cp-$zone" ctl "cp-$zone" get mesh demo
done
ctl global get zones | show || fail "the zones cannot be listed" global

step "4. Services behind transparent sidecars, an ingress and an egress in each zone"
# proxy NAME ZONE FILE TOKEN [FLAG...]: a proxy as user 5678, whose traffic is not redirected.
proxy() {
    local name=$1 zone=$2 file=$3 token=$4
    shift 4
    start "$name-proxy" "$name" setpriv --reuid 5678 --clear-groups "$bin/shika-proxy" run \
        --cp-address="https://10.91.$zone.2:5678" --ca-cert-file="$work/cp-$zone/dp-server-ca.pem" \
        --dataplane-file="demo/zones/$file" --dataplane-token-file="$token" \
        --dataplane-var "name=$name" --dataplane-var "address=$(address_of "$name")" "$@"
}
# workload NAME ZONE SERVICE
workload() {
    local name=$1 zone=$2 service=$3
    ctl global generate dataplane-token --mesh demo --name "$name" --tag "kuma.io/service=$service" --valid-for 24h \
        >"$work/$name.token" || fail "no token for $name" global
    in_space "$name" shika-proxy install transparent-proxy --config demo/zones/transparent-proxy.yaml >>"$work/$name-install.log" 2>&1 ||
        fail "the redirection of $name" "$name-install"
    start "$name" "$name" setpriv --reuid 1000 --clear-groups "$bin/shika-loadtest" echo --address 0.0.0.0 --name "$service in zone-$zone" --port 8080
    proxy "$name" "$zone" dataplane.yaml "$work/$name.token" --dataplane-var "service=$service" \
        --transparent-proxy-config=demo/zones/transparent-proxy.yaml
}
for zone in 1 2; do
    workload "echo-$zone" "$zone" echo
    proxy "ingress-$zone" "$zone" ingress.yaml "$work/zone-$zone.token" --proxy-type=ingress
    proxy "egress-$zone" "$zone" egress.yaml "$work/zone-$zone.token" --proxy-type=egress
done
workload client-1 1 client
chmod 644 "$work"/*.token
for name in echo-1 echo-2 client-1 ingress-1 ingress-2 egress-1 egress-2; do
    until_true 60 "$name is ready" "$name-proxy" in_space "$name" curl --silent --fail http://127.0.0.1:9902/ready
done

step "5. The client calls by name, in plain HTTP; its kernel and its sidecar do the rest"
until_true 60 "both zones answer to http://echo.mesh" client-1-proxy both_zones_answer echo.mesh
printf '  %s\n' "$answers"
for name in echo.svc.mesh.local echo.svc.zone-2.mesh.local; do
    note "client-1\$ curl http://$name/echo"
    until_true 60 "http://$name answers" client-1-proxy curl_in client-1 --fail "http://$name/echo"
    curl_in client-1 "http://$name/echo" | show
done
zone_2_answers_all echo.svc.zone-2.mesh.local || fail "echo.svc.zone-2.mesh.local has to be answered by zone 2: $answers" client-1-proxy

step "   Who called, as zone 2 saw it in the client certificate"
body=$(curl_in client-1 http://echo.svc.zone-2.mesh.local/echo)
identity=$(printf '%s' "$body" | grep -o 'URI=spiffe://[^;,"]*' | head -n 1) || fail "no SPIFFE identity in the reply" echo-2-proxy
printf '    %s\n' "$identity"
[ "$identity" = "URI=spiffe://demo/client" ] || fail "the caller should be spiffe://demo/client" echo-2-proxy

step "   Which way it went: connections that each proxy took since it started"
connections() { admin "$1" '/stats?filter=downstream_cx_total' | awk -F': ' '/^listener\..*downstream_cx_total/ && !/admin|ready/ { n += $2 } END { print n + 0 }'; }
for name in client-1 egress-1 ingress-2 echo-2; do printf '    %-10s %s\n' "$name" "$(connections "$name")"; done
for name in egress-1 ingress-2; do
    [ "$(connections "$name")" -gt 0 ] || fail "nothing went through $name" "$name-proxy"
done

step "6. Zone 2's link is cut: zone 1 serves"
ip -n "$prefix-router-2" link set eth0 down
until_true 60 "zone 1 answers every call" client-1-proxy zone_1_answers_all echo.mesh
printf '  %s\n' "$answers"

step "7. The link is back: zone 2 answers again"
ip -n "$prefix-router-2" link set eth0 up
ip -n "$prefix-router-2" route replace 10.91.1.0/24 via 10.91.0.1
until_true 90 "both zones answer" client-1-proxy both_zones_answer echo.mesh
printf '  %s\n' "$answers"

step "8. The global control plane is killed: traffic goes on, inside a zone and across"
kill -KILL "${pids[global]}"
wait "${pids[global]}" 2>/dev/null || true
unset 'pids[global]'
for name in echo.mesh echo.svc.zone-2.mesh.local; do
    tally "$name" 20
    printf '  %s\n' "$answers"
    [ "$failed" = 0 ] || fail "calls failed without the global control plane: $answers" client-1-proxy
done

step "9. It comes back, and what is given to it arrives again: the permission is taken away"
start_global
ctl global delete meshtrafficpermission client-may-call-echo --mesh demo >/dev/null || fail "the permission was not deleted" global
nobody_answers() { tally "$1" 4 && [ "$failed" = 4 ]; }
until_true 60 "calls are refused in both zones" cp-1 nobody_answers echo.mesh
printf '  %s\n' "$answers"

step "Everything went as told."
if [ -t 0 ] && [ -t 1 ]; then
    ctl global apply -f demo/zones/permission.yaml >/dev/null
    trap 'exit 0' INT TERM
    cat <<END

It stays up until Ctrl-C. In another terminal:

  ip netns exec $prefix-client-1 curl http://echo.mesh/echo
  ip netns exec $prefix-client-1 nft list ruleset                       # the redirection
  ip netns exec $prefix-egress-1 curl http://127.0.0.1:9901/clusters      # what the egress knows
  ip -n $prefix-router-2 link set eth0 down                               # cut zone 2 off

Logs and files: $work
END
    while :; do sleep 1; done
fi
