# shellcheck shell=bash
# Two zones and a global control plane on this machine, each part in a network namespace of its own, traffic redirected as on real hosts.
# Sourced by demo/zones.sh and loadtest/zone-faults.sh from the root of the tree. Needs root. Everything it starts and makes it also ends and removes,
# whatever ends the script; only after a failure the logs stay.
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
#
#   BIN=dir       takes shika-cp, shika-proxy, shikactl and shika-loadtest from there, ready-built
#   PROFILE=dev   builds programs that build faster and run slower

set -euo pipefail
script=$(basename "$0" .sh)

[ "$(id -u)" = 0 ] || {
    echo "$script makes network namespaces: run it as root" >&2
    exit 1
}

bold='' dim='' red='' reset=''
if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' reset=$'\e[0m'; fi

prefix=shikaz$$
# By the name of a process: its id, its namespace, its command line as the shell reads it.
declare -A pids=() space_of=() command_of=()
spaces=()
keep_work=
work=$(mktemp -d "${TMPDIR:-/tmp}/shika-zones.XXXXXX")

step() { printf '\n%s%s%s\n' "$bold" "$*" "$reset"; }
show() { sed 's/^/    /'; }
note() { printf '  %s%s%s\n' "$dim" "$*" "$reset"; }

# fail WHAT [NAME]: says what failed and shows the end of a process's log.
fail() {
    printf '\n%s%s failed: %s%s\n' "$red" "$script" "$1" "$reset" >&2
    if [ -n "${2:-}" ] && [ -s "$work/$2.log" ]; then
        printf 'the end of %s:\n' "$work/$2.log" >&2
        tail -n 15 "$work/$2.log" | show >&2
    fi
    printf 'logs are kept in %s\n' "$work" >&2
    keep_work=yes
    exit 1
}

finish() {
    local code=$? name inside
    trap '' INT TERM HUP
    trap - EXIT
    # The shell would report each process that ends here.
    exec 2>/dev/null
    # Whatever runs in the namespaces, also what was started in the very moment of a signal and is in no list yet.
    for name in "${spaces[@]}"; do
        mapfile -t inside < <(ip netns pids "$prefix-$name")
        if [ ${#inside[@]} -gt 0 ]; then kill -KILL "${inside[@]}" || true; fi
    done
    for name in "${!pids[@]}"; do kill -KILL "${pids[$name]}" || true; done
    wait
    for name in "${spaces[@]}"; do
        ip netns del "$prefix-$name" || true
        rm -rf "/etc/netns/$prefix-$name"
    done
    if [ -z "$keep_work" ]; then rm -rf "$work"; fi
    exit "$code"
}
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# The proxies' user reads its tokens there.
chmod 755 "$work"

# space NAME: a network namespace. Its DNS server does not exist: queries to it are redirected to the proxy, or lost.
space() {
    spaces+=("$1")
    ip netns add "$prefix-$1"
    ip -n "$prefix-$1" link set lo up
    mkdir -p "/etc/netns/$prefix-$1"
    printf 'nameserver 10.91.0.53\noptions timeout:1 attempts:2\n' >"/etc/netns/$prefix-$1/resolv.conf"
}

in_space() {
    local space=$1
    shift
    ip netns exec "$prefix-$space" "$@"
}

# The switch at the other end of a part's cable.
declare -A switch_of=()

# attach SPACE SWITCH ADDRESS GATEWAY: a cable to a switch, and the way out.
attach() {
    ip -n "$prefix-$1" link add eth0 type veth peer name "to-$1" netns "$prefix-$2"
    ip -n "$prefix-$2" link set "to-$1" master br0 up
    ip -n "$prefix-$1" address add "$3/24" dev eth0
    ip -n "$prefix-$1" link set eth0 up
    if [ -n "${4:-}" ]; then ip -n "$prefix-$1" route add default via "$4"; fi
    switch_of[$1]=$2
}

# pull SPACE, plug SPACE: the cable comes out of the switch and goes in again. Addresses and routes of the host stay, as they do then.
pull() { ip -n "$prefix-${switch_of[$1]}" link set "to-$1" down; }
plug() { ip -n "$prefix-${switch_of[$1]}" link set "to-$1" up; }

address_of() { ip -n "$prefix-$1" -4 -brief address show dev eth0 | awk '{ sub("/.*", "", $3); print $3 }'; }

# start NAME SPACE COMMAND...: in the background, its output in NAME.log.
start() {
    local name=$1 space=$2
    shift 2
    note "$name\$ ${*//$work\//} &"
    space_of[$name]=$space
    command_of[$name]=$(printf '%q ' "$@")
    again "$name"
}

# again NAME: starts with the same command line what was started before and has ended.
again() {
    local -a command
    eval "command=(${command_of[$1]})"
    ip netns exec "$prefix-${space_of[$1]}" "${command[@]}" >>"$work/$1.log" 2>&1 </dev/null &
    pids[$1]=$!
}

# crash NAME: ends a process as a defect or the kernel would, without a word to it.
crash() {
    kill -KILL "${pids[$1]}"
    wait "${pids[$1]}" 2>/dev/null || true
    unset "pids[$1]"
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
ready() { in_space "$1" curl --silent --fail --max-time 5 http://127.0.0.1:9902/ready; }

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

# programs: sets $bin and puts it in front of PATH.
programs() {
    local program
    if [ -n "${BIN:-}" ]; then
        bin=$(cd "$BIN" && pwd) || fail "BIN=$BIN is no directory"
    elif [ "${PROFILE:-release}" = release ]; then
        step "Building (the first time takes some minutes)"
        cargo build --release --locked -p shika-cp -p shika-proxy -p shika-loadtest || fail "the build"
        bin=$PWD/target/release
    else
        step "Building (the first time takes some minutes)"
        cargo build --locked -p shika-cp -p shika-proxy -p shika-loadtest || fail "the build"
        bin=$PWD/target/debug
    fi
    for program in shika-cp shika-proxy shikactl shika-loadtest; do
        [ -x "$bin/$program" ] || fail "$bin has no program $program"
    done
    PATH="$bin:$PATH"
}

# network: the namespaces, the cables, and routers that let through what a zone is meant to show.
network() {
    local zone other part
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
}

# answers_in SPACE: whether the control plane there answers.
answers_in() { in_space "$1" curl --silent --fail --max-time 5 http://127.0.0.1:5681/; }

know() {
    ctl "$1" config control-planes add --name "$1" --address http://127.0.0.1:5681 >/dev/null || fail "shikactl could not be set up for $1"
}

start_global() {
    start global global shika-cp run --mode global --kds-auth cpToken --store sqlite --store-path "$work/global.db" --work-dir "$work/global"
    until_true 30 "the global control plane answers" global answers_in global
    know global
}

# zone_token ZONE: makes the token that the zone's control plane, ingress and egress show, in zone-ZONE.token.
zone_token() {
    ctl global generate zone-token --zone "zone-$1" --scope cp --scope ingress --scope egress --valid-for 24h >"$work/zone-$1.token" ||
        fail "no token for zone-$1" global
    # User 5678 reads it.
    chmod 644 "$work/zone-$1.token"
}

# start_zone ZONE: the zone's control plane.
start_zone() {
    start "cp-$1" "cp-$1" shika-cp run --mode zone --zone-name "zone-$1" --kds-global-address grpcs://10.91.0.10:5685 \
        --kds-root-ca-file "$work/global/dp-server-ca.pem" --kds-token-file "$work/zone-$1.token" \
        --store sqlite --store-path "$work/cp-$1.db" --work-dir "$work/cp-$1"
    until_true 30 "the control plane of zone-$1 answers" "cp-$1" answers_in "cp-$1"
    know "cp-$1"
}

# give_mesh: the mesh and its policies, to global; waits until both zones have it.
give_mesh() {
    local zone
    ctl global apply -f demo/zones/mesh.yaml || fail "the Mesh was not accepted" global
    ctl global apply -f demo/zones/permission.yaml || fail "the MeshTrafficPermission was not accepted" global
    ctl global apply -f demo/zones/resilience.yaml || fail "the MeshCircuitBreaker and the MeshRetry were not accepted" global
    for zone in 1 2; do
        until_true 30 "zone-$zone has the mesh" "cp-$zone" ctl "cp-$zone" get mesh demo
    done
}

# proxy NAME ZONE FILE TOKEN [FLAG...]: a proxy as user 5678, whose traffic is not redirected.
proxy() {
    local name=$1 zone=$2 file=$3 token=$4
    shift 4
    start "$name-proxy" "$name" setpriv --reuid 5678 --clear-groups "$bin/shika-proxy" run \
        --cp-address="https://10.91.$zone.2:5678" --ca-cert-file="$work/cp-$zone/dp-server-ca.pem" \
        --dataplane-file="demo/zones/$file" --dataplane-token-file="$token" \
        --dataplane-var "name=$name" --dataplane-var "address=$(address_of "$name")" "$@"
}

# workload NAME ZONE SERVICE: an application behind a transparent sidecar.
workload() {
    local name=$1 zone=$2 service=$3
    ctl global generate dataplane-token --mesh demo --name "$name" --tag "kuma.io/service=$service" --valid-for 24h \
        >"$work/$name.token" || fail "no token for $name" global
    chmod 644 "$work/$name.token"
    in_space "$name" shika-proxy install transparent-proxy --config demo/zones/transparent-proxy.yaml >>"$work/$name-install.log" 2>&1 ||
        fail "the redirection of $name" "$name-install"
    start "$name" "$name" setpriv --reuid 1000 --clear-groups "$bin/shika-loadtest" echo --address 0.0.0.0 --name "$service in zone-$zone" --port 8080
    proxy "$name" "$zone" dataplane.yaml "$work/$name.token" --dataplane-var "service=$service" \
        --transparent-proxy-config=demo/zones/transparent-proxy.yaml
}

# start_services: echo, an ingress and an egress in each zone, the client in zone 1; waits until all are ready.
start_services() {
    local zone name
    for zone in 1 2; do
        workload "echo-$zone" "$zone" echo
        proxy "ingress-$zone" "$zone" ingress.yaml "$work/zone-$zone.token" --proxy-type=ingress
        proxy "egress-$zone" "$zone" egress.yaml "$work/zone-$zone.token" --proxy-type=egress
    done
    workload client-1 1 client
    for name in echo-1 echo-2 client-1 ingress-1 ingress-2 egress-1 egress-2; do
        until_true 60 "$name is ready" "$name-proxy" ready "$name"
    done
}
