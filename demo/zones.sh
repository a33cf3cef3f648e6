#!/usr/bin/env bash
# A client in zone 1 calls `echo` by name; replies come from both zones. Then zone 2's link is cut and restored, and the global control plane killed.
# Exits 0 when everything went as told, 1 with what failed. The zones, and what may be set: see demo/zones/lib.sh.
cd "$(dirname "$0")/.." || exit
# shellcheck source=demo/zones/lib.sh
source demo/zones/lib.sh

programs

step "1. Two zones, a network between them, and routers that let through what a zone is meant to show"
network
for name in global client-1 echo-1 echo-2; do
    note "$name $(address_of "$name")"
done

step "2. The global control plane, and one in each zone that connects to it"
start_global
for zone in 1 2; do
    zone_token "$zone"
    start_zone "$zone"
done

step "3. A mesh with mutual TLS and a permission, given to the global control plane, arrive in the zones"
give_mesh
ctl global get zones | show || fail "the zones cannot be listed" global

step "4. Services behind transparent sidecars, an ingress and an egress in each zone"
start_services

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
pull router-2
until_true 60 "zone 1 answers every call" client-1-proxy zone_1_answers_all echo.mesh
printf '  %s\n' "$answers"

step "7. The link is back: zone 2 answers again"
plug router-2
until_true 90 "both zones answer" client-1-proxy both_zones_answer echo.mesh
printf '  %s\n' "$answers"

step "8. The global control plane is killed: traffic goes on, inside a zone and across"
crash global
for name in echo.mesh echo.svc.zone-2.mesh.local; do
    tally "$name" 20
    printf '  %s\n' "$answers"
    [ "$failed" = 0 ] || fail "calls failed without the global control plane: $answers" client-1-proxy
done

step "9. It comes back, and what is given to it arrives again: the permission is taken away"
again global
until_true 30 "the global control plane answers" global answers_in global
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
  ip -n $prefix-wan link set to-router-2 down                              # cut zone 2 off

Logs and files: $work
END
    while :; do sleep 1; done
fi
