#!/usr/bin/env bash
# Two services, two sidecars, one control plane on this machine: a call over mutual TLS, who the caller was, what happens
# when the permission is taken away, and how to look inside. Exits 0 when everything went as told, 1 with what failed.
# On a terminal it stays up at the end until Ctrl-C. Everything it starts it also ends; files live in a temporary directory.
set -euo pipefail
cd "$(dirname "$0")/.."

bold='' dim='' red='' reset=''
if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' reset=$'\e[0m'; fi

work=$(mktemp -d "${TMPDIR:-/tmp}/shika-demo.XXXXXX")
pids=()
keep_work=

step() { printf '\n%s%s%s\n' "$bold" "$*" "$reset"; }
show() { sed 's/^/    /'; }
# run COMMAND...: shows the command as one would type it, runs it, indents what it prints.
run() {
    local shown="${*/#ctl/shikactl}"
    printf '  %s$ %s%s\n' "$dim" "${shown//$work\//}" "$reset"
    "$@" 2>&1 | show
}

# fail WHAT [LOG]: says what failed, shows the end of the log, ends the demo.
fail() {
    printf '\n%sdemo failed: %s%s\n' "$red" "$1" "$reset" >&2
    if [ -n "${2:-}" ] && [ -s "$work/$2.log" ]; then
        printf 'the end of %s:\n' "$work/$2.log" >&2
        tail -n 15 "$work/$2.log" | show >&2
    fi
    printf 'logs are kept in %s\n' "$work" >&2
    keep_work=yes
    exit 1
}

finish() {
    local code=$? pid
    trap - EXIT INT TERM
    for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
    # Five seconds to end in good order; sidecars drain.
    for _ in $(seq 50); do
        local alive=
        for pid in "${pids[@]}"; do if kill -0 "$pid" 2>/dev/null; then alive=yes; fi; done
        if [ -z "$alive" ]; then break; fi
        sleep 0.1
    done
    for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    if [ -z "$keep_work" ]; then rm -rf "$work"; fi
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# start NAME COMMAND...: in the background, its output in NAME.log.
start() {
    local name=$1
    shift
    printf '  %s$ %s &%s\n' "$dim" "${*//$work\//}" "$reset"
    "$@" >"$work/$name.log" 2>&1 </dev/null &
    pids+=($!)
    printf -v "pid_$name" '%s' $!
}

# until_true SECONDS WHAT NAME COMMAND...: polls the command; gives up when the time is over or process NAME has ended.
until_true() {
    local limit=$1 what=$2 name=$3 pid_of="pid_$3" end
    shift 3
    end=$((SECONDS + limit))
    until "$@" >/dev/null 2>&1; do
        kill -0 "${!pid_of}" 2>/dev/null || fail "$name ended while waiting for: $what" "$name"
        [ "$SECONDS" -lt "$end" ] || fail "not within $limit s: $what" "$name"
        sleep 0.05
    done
}

# pick PREFERRED: sets $port to the preferred port when nothing listens there, else to another one. Ports given out once are not
# given out again.
taken=' '
pick() {
    local try=$1
    while [[ $taken == *" $try "* ]] || (exec 3<>"/dev/tcp/127.0.0.1/$try") 2>/dev/null; do
        try=$((20000 + RANDOM % 12000))
    done
    taken+="$try "
    port=$try
}

curl_quietly() { curl --silent --show-error --max-time 5 "$@"; }
admin() { curl_quietly --fail "http://127.0.0.1:$1$2"; }
# Sets $status and $body.
call() {
    status=$(curl_quietly --output "$work/body" --write-out '%{http_code}' "http://127.0.0.1:$outbound/echo" 2>"$work/curl.log") || true
    body=$(cat "$work/body" 2>/dev/null || true)
    : >"$work/body"
}
call_gives_200() { call; [ "$status" = 200 ]; }
call_is_refused() { call; [ "$status" != 200 ]; }

step "Building (the first time takes some minutes)"
if [ "${PROFILE:-release}" = release ]; then
    cargo build --release --locked -p shika-cp -p shika-proxy -p shika-loadtest || fail "the build"
    bin=$PWD/target/release
else
    cargo build --locked -p shika-cp -p shika-proxy -p shika-loadtest || fail "the build"
    bin=$PWD/target/debug
fi
PATH="$bin:$PATH"

pick 5681; api=$port
pick 5678; dp=$port
pick 5680; diagnostics=$port
pick 5676; mads=$port
pick 10001; outbound=$port
pick 10080; backend_in=$port
pick 10081; web_in=$port
pick 9901; backend_admin=$port
pick 9911; web_admin=$port
pick 9902; backend_ready=$port
pick 9912; web_ready=$port

step "1. The control plane, with its store in one SQLite file"
start control_plane shika-cp run --store sqlite --store-path "$work/shika.db" --work-dir "$work/cp" \
    --api-http-interface 127.0.0.1 --api-http-port "$api" --dp-server-interface 127.0.0.1 --dp-server-port "$dp" \
    --diagnostics-interface 127.0.0.1 --diagnostics-port "$diagnostics" --mads-interface 127.0.0.1 --mads-port "$mads"
until_true 30 "the control plane answers on port $api" control_plane admin "$api" /
ctl() { shikactl --config-file "$work/shikactl.yaml" "$@"; }
run ctl config control-planes add --name demo --address "http://127.0.0.1:$api" || fail "shikactl could not be set up" control_plane

step "2. A mesh with mutual TLS, and a permission: web may call backend"
run ctl apply -f demo/mesh.yaml || fail "the Mesh was not accepted" control_plane
run ctl apply -f demo/permission.yaml || fail "the MeshTrafficPermission was not accepted" control_plane

step "3. Two services, each behind a sidecar that joins with its token"
for service in backend web; do
    start "$service" shika-loadtest echo --name "$service" --port 0 --port-file "$work/$service.port"
    until_true 10 "service $service listens" "$service" test -s "$work/$service.port"
    ctl generate dataplane-token --mesh demo --name "$service-1" --tag "kuma.io/service=$service" --valid-for 24h \
        >"$work/$service.token" || fail "no token for $service-1" control_plane
    in_var=${service}_in admin_var=${service}_admin ready_var=${service}_ready
    start "${service}_sidecar" shika-proxy run --cp-address="https://127.0.0.1:$dp" --ca-cert-file="$work/cp/dp-server-ca.pem" \
        --dataplane-file="demo/dataplane-$service.yaml" --dataplane-token-file="$work/$service.token" \
        --dataplane-var "port=${!in_var}" --dataplane-var "servicePort=$(cat "$work/$service.port")" \
        --dataplane-var "adminPort=${!admin_var}" --dataplane-var "outboundPort=$outbound" \
        --readiness-port "${!ready_var}"
    until_true 30 "the sidecar of $service is ready" "${service}_sidecar" admin "${!ready_var}" /ready
done
joined() { ctl get dataplanes --mesh demo | grep -cE 'backend-1|web-1' | grep -qx 2; }
until_true 30 "the control plane knows both Dataplanes" control_plane joined
run ctl get dataplanes --mesh demo || fail "the Dataplanes cannot be listed" control_plane

step "4. web calls backend through its sidecar"
until_true 30 "a call through 127.0.0.1:$outbound succeeds" web_sidecar call_gives_200
printf '  %s$ curl http://127.0.0.1:%s/echo%s\n' "$dim" "$outbound" "$reset"
printf '%s\n' "$body" | show
case $body in
*'"service": "backend"'*) ;;
*) fail "the reply is not from backend" backend_sidecar ;;
esac

step "5. Who called, as backend's sidecar saw it in the client certificate"
identity=$(printf '%s' "$body" | grep -o 'URI=spiffe://[^;,"]*' | head -n 1) ||
    fail "backend saw no x-forwarded-client-cert with a SPIFFE identity" backend_sidecar
printf '    %s\n' "$identity"
[ "$identity" = "URI=spiffe://demo/web" ] || fail "the caller should be spiffe://demo/web" backend_sidecar

step "6. The certificates and when they end; they are renewed long before"
run ctl inspect dataplanes --mesh demo || fail "the Dataplanes cannot be inspected" control_plane
admin "$backend_admin" /certs >"$work/certs.json" || fail "admin /certs of backend's sidecar" backend_sidecar
printf '  %s$ curl http://127.0.0.1:%s/certs%s\n' "$dim" "$backend_admin" "$reset"
grep -E '"(uri|valid_from|days_until_expiration|expiration_time)"' "$work/certs.json" | sort -u | show ||
    fail "admin /certs shows no certificate" backend_sidecar

step "7. The permission is taken away"
denied_before=$(admin "$backend_admin" '/stats?filter=rbac.denied' | awk '{ n += $2 } END { print n + 0 }') ||
    fail "admin /stats of backend's sidecar" backend_sidecar
run ctl delete meshtrafficpermission web-may-call-backend --mesh demo || fail "the permission was not deleted" control_plane
until_true 30 "calls are refused" backend_sidecar call_is_refused
printf '  %s$ curl http://127.0.0.1:%s/echo%s\n' "$dim" "$outbound" "$reset"
printf 'status %s\n%s\n' "$status" "${body:-$(cat "$work/curl.log")}" | show

step "   Which rule refused it"
admin "$backend_admin" '/stats?filter=rbac.denied' >"$work/denied" || fail "admin /stats of backend's sidecar" backend_sidecar
show <"$work/denied"
denied_after=$(awk '{ n += $2 } END { print n + 0 }' "$work/denied")
[ "$denied_after" -gt "$denied_before" ] || fail "backend's sidecar counts no denial" backend_sidecar
grep 'RBAC: denied spiffe://demo/web' "$work/backend_sidecar.log" | sed 's/.*\(RBAC: \)/\1/' | tail -n 1 | show ||
    fail "the log of backend's sidecar does not say what refused the call" backend_sidecar

step "8. The permission is given back"
run ctl apply -f demo/permission.yaml || fail "the MeshTrafficPermission was not accepted again" control_plane
until_true 30 "calls succeed again" web_sidecar call_gives_200
printf 'status %s\n' "$status" | show

step "9. A few counters of the two sidecars"
for service in web backend; do
    admin_var=${service}_admin
    printf '  %s$ curl http://127.0.0.1:%s/stats%s\n' "$dim" "${!admin_var}" "$reset"
    admin "${!admin_var}" '/stats?usedonly' |
        grep -E 'upstream_rq_(total|2xx)|ssl\.handshake|downstream_cx_total|update_success|rbac\.(allowed|denied)' | head -n 12 | show ||
        fail "admin /stats of $service's sidecar" "${service}_sidecar"
done

step "Everything went as told."
if [ -t 0 ] && [ -t 1 ]; then
    # From here on Ctrl-C is the way out, not a failure.
    trap 'exit 0' INT TERM
    cat <<END

It stays up until Ctrl-C. In another terminal:

  export PATH=$bin:\$PATH
  curl http://127.0.0.1:$outbound/echo                    # web calls backend
  shikactl --config-file $work/shikactl.yaml get dataplanes --mesh demo
  shikactl --config-file $work/shikactl.yaml delete meshtrafficpermission web-may-call-backend --mesh demo
  shikactl --config-file $work/shikactl.yaml apply -f demo/permission.yaml
  curl http://127.0.0.1:$backend_admin/help                     # backend's sidecar: Envoy's admin endpoints
  curl http://127.0.0.1:$web_admin/config_dump              # what web's sidecar was given
  shika-loadtest hold --target 127.0.0.1:$outbound --long-connections 0 --duration 20s &   # fails on any lost request
  kill -9 $pid_control_plane                                        # the control plane dies; traffic goes on

Logs and files: $work
END
    while :; do
        sleep 1
        for name in web_sidecar backend_sidecar; do
            pid_of="pid_$name"
            kill -0 "${!pid_of}" 2>/dev/null || fail "$name ended" "$name"
        done
    done
fi
