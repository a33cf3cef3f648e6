#!/usr/bin/env bash
# What a sidecar adds beside the data path: DNS under load while the mesh's names change, and the delay of a server that speaks first.
# Everything runs in a network namespace of its own, with the ports that a sidecar has by default. Needs root. Prints the tables that belong
# in benches/RESULTS.md.
#
#   SECONDS_EACH=60   time of each run of dnsperf
#   NAMES=1000        names in the mesh
#   GREETINGS=500     connections to the database, for each way
#   BIN=…             directory with shika-cp, shikactl, shika-proxy and shika-loadtest; without it they are built
set -euo pipefail
cd "$(dirname "$0")/.."

[ "$(id -u)" = 0 ] || {
    echo "bench-sidecar makes a network namespace: run it as root" >&2
    exit 1
}
seconds=${SECONDS_EACH:-60}
names=${NAMES:-1000}
greetings=${GREETINGS:-500}
# Names that come and go besides.
changing=50

work=$(mktemp -d "${TMPDIR:-/tmp}/shika-sidecar.XXXXXX")
space=shikadns$$
pids=()

fail() {
    printf 'bench-sidecar failed: %s\n' "$1" >&2
    if [ -n "${2:-}" ]; then tail -n 20 "$work/$2.log" >&2; fi
    exit 1
}
finish() {
    local code=$? pid
    trap - EXIT INT TERM
    for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    ip netns del "$space" 2>/dev/null || true
    rm -rf "$work" "/etc/netns/$space"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

inside() { ip netns exec "$space" "$@"; }
start() {
    local name=$1
    shift
    ip netns exec "$space" "$@" >"$work/$name.log" 2>&1 </dev/null &
    pids+=($!)
}
until_true() {
    local what=$1 log=$2 end=$((SECONDS + 60))
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || fail "not within 60 s: $what" "$log"
        sleep 0.1
    done
}
ctl() { inside shikactl --config-file "$work/shikactl.yaml" "$@"; }
get() { inside curl --silent --show-error --fail --max-time 10 "$@"; }

if [ -z "${BIN:-}" ]; then
    cargo build --release --locked -p shika-cp -p shika-proxy -p shika-loadtest
    BIN=$PWD/target/release
fi
PATH="$BIN:$PATH"

ip netns add "$space"
ip -n "$space" link set lo up
ip -n "$space" address add 10.99.0.1/32 dev lo
mkdir -p "/etc/netns/$space"
# Nobody is there; nothing but names of the mesh is asked for.
echo 'nameserver 10.99.0.53' >"/etc/netns/$space/resolv.conf"

# dataplane NAME SERVICE
dataplane() {
    printf -- '---\ntype: Dataplane\nmesh: bench\nname: %s\nnetworking:\n  address: 10.98.0.1\n  inbound: [{port: 80, tags: {kuma.io/service: %s}}]\n' "$1" "$2"
}
{
    printf 'type: Mesh\nname: bench\n'
    for number in $(seq "$names"); do dataplane "dp-$number" "s$number"; done
} >"$work/mesh.yaml"
for round in a b; do
    for number in $(seq "$changing"); do dataplane "changing-$number" "changing-$number-$round"; done >"$work/changing-$round.yaml"
done
cat >"$work/dataplane.yaml" <<'YAML'
type: Dataplane
mesh: bench
name: client
networking:
  address: 10.99.0.1
  inbound: [{port: 80, servicePort: 8080, tags: {kuma.io/service: client, kuma.io/protocol: tcp}}]
  transparentProxying: {redirectPortInbound: 15006, redirectPortOutbound: 15001}
YAML

start cp shika-cp run --store memory --work-dir "$work/cp"
until_true "the control plane answers" cp get http://127.0.0.1:5681/
ctl config control-planes add --name bench --address http://127.0.0.1:5681 >/dev/null
ctl apply -f "$work/mesh.yaml" >/dev/null || fail "the mesh was not accepted" cp
ctl apply -f "$work/changing-a.yaml" >/dev/null || fail "the changing names were not accepted" cp
ctl generate dataplane-token --mesh bench --name client --valid-for 24h >"$work/token" || fail "no token" cp
start proxy shika-proxy run --cp-address=https://127.0.0.1:5678 --ca-cert-file="$work/cp/dp-server-ca.pem" \
    --dataplane-file="$work/dataplane.yaml" --dataplane-token-file="$work/token" --transparent-proxy --dns-enabled --concurrency 1
proxy=${pids[-1]}

for number in $(seq "$names"); do printf 's%s.mesh A\ns%s.mesh AAAA\n' "$number" "$number"; done >"$work/queries"
# resolves NAME: the proxy answers for it.
resolves() { echo "$1 A" | inside dnsperf -s 127.0.0.1 -p 15053 -n 1 -v -t 2 2>/dev/null | grep -q "^> NOERROR $1"; }
until_true "s$names.mesh resolves" proxy resolves "s$names.mesh"

# measure TITLE FLAG...: dnsperf for the time, names changing meanwhile; a row of the table.
measure() {
    local title=$1 rounds=0 round=b load begin cpu
    shift
    begin=$(awk '{ print $14 + $15 }' "/proc/$proxy/stat")
    # Its own receive buffers are 32 kB by default: what a pause of the machine lets through at once would be lost there.
    inside dnsperf -s 127.0.0.1 -p 15053 -d "$work/queries" -l "$seconds" -c 4 -b 4096 -v "$@" 2>"$work/dnsperf.log" >"$work/dnsperf.out" &
    load=$!
    pids+=("$load")
    while kill -0 "$load" 2>/dev/null; do
        ctl apply -f "$work/changing-$round.yaml" >/dev/null || fail "the changing names were not accepted" cp
        rounds=$((rounds + 1))
        if [ "$round" = a ]; then round=b; else round=a; fi
        sleep 0.5
    done
    wait "$load" || fail "dnsperf" dnsperf
    cpu=$(awk -v begin="$begin" '{ print ($14 + $15 - begin) * 10 }' "/proc/$proxy/stat")
    # What was set last is what is answered.
    if [ "$round" = a ]; then round=b; else round=a; fi
    until_true "the names that were set last" proxy resolves "changing-$changing-$round.mesh"
    # `> NOERROR s1.mesh A 0.000123` for each query, then the summary.
    awk -v title="$title" -v rounds="$rounds" -v cpu="$cpu" '
        /^> / { if ($2 == "T" || $2 == "I") next; if ($2 != "NOERROR") bad++; micros = int($5 * 1e6 + 0.5); count[micros]++; total++; if (micros > max) max = micros; next }
        /Queries sent:/ { sent = $3 }
        /Queries completed:/ { completed = $3 }
        /Queries lost:/ { lost = $3 }
        /Queries per second:/ { qps = $4 }
        function percentile(share,   need, seen, micros) {
            need = total * share
            for (micros = 0; micros <= max; micros++) { seen += count[micros]; if (seen >= need) return micros }
        }
        END {
            printf "| %s | %d | %d | %d | %d | %d | %d | %d | %d | %.1f | %d |\n", title, sent, lost, bad, qps,
                percentile(0.5), percentile(0.99), percentile(0.999), max, cpu * 1000 / (completed ? completed : 1), rounds
        }' "$work/dnsperf.out"
}

printf '| dnsperf, %s s, %s names | queries | lost | other than NOERROR | queries/s | p50 µs | p99 µs | p99.9 µs | longest µs | CPU µs per query, all of the proxy | times that %s other names changed |\n' \
    "$seconds" "$names" "$changing"
echo '|---|---|---|---|---|---|---|---|---|---|---|'
measure "100 outstanding, as fast as answered" -q 100
measure "5,000/s" -q 1000 -Q 5000

# A server that speaks first: MariaDB greets, its client waits.
mariadb-install-db --no-defaults --user=root --auth-root-authentication-method=normal --skip-test-db --datadir="$work/data" \
    >"$work/install.log" 2>&1 || fail "mariadb-install-db" install
start database mariadbd --no-defaults --user=root --port=3306 --bind-address=127.0.0.1 --skip-grant-tables --skip-networking=0 \
    --skip-name-resolve --max-connect-errors=1000000 --datadir="$work/data" --socket="$work/mysql" --pid-file="$work/mysql.pid"
until_true "the database greets" database inside shika-loadtest greet --target 127.0.0.1:3306 --count 1
tcp_proxy='{name: tcp, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: db, cluster: db}}'
cat >"$work/bootstrap.yaml" <<YAML
static_resources:
  listeners:
  - name: declared
    address: {socket_address: {address: 127.0.0.1, port_value: 3307}}
    filter_chains: [{filters: [$tcp_proxy]}]
  - name: detected
    address: {socket_address: {address: 127.0.0.1, port_value: 3308}}
    listener_filters:
    - {name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}
    - {name: http, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector}}
    filter_chains:
    - {filter_chain_match: {transport_protocol: raw_buffer}, filters: [$tcp_proxy]}
    - {filter_chain_match: {transport_protocol: tls}, filters: [$tcp_proxy]}
  clusters:
  - name: db
    type: STATIC
    connect_timeout: 5s
    load_assignment: {cluster_name: db, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 3306}}}}]}]}
YAML
start static shika-proxy -c "$work/bootstrap.yaml" --concurrency 1
until_true "the database greets through the proxy" static inside shika-loadtest greet --target 127.0.0.1:3308 --count 1
printf '\n| MariaDB greets, %s connections | p50 µs | p90 µs | p99 µs | longest µs |\n|---|---|---|---|---|\n' "$greetings"
# greet TITLE PORT
greet() {
    inside shika-loadtest greet --target "127.0.0.1:$2" --count "$greetings" >"$work/greet.log" 2>&1 || fail "greetings on port $2" greet
    awk -v title="$1" '{ printf "| %s | %d | %d | %d | %d |\n", title, $5, $7, $9, $11 }' "$work/greet.log"
}
greet "without a proxy" 3306
greet "protocol declared: no inspection" 3307
greet "not declared: TLS or HTTP is looked for" 3308
