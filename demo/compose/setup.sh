#!/bin/sh
# Gives a control plane of docker-compose.yml its resources and puts what the others need into /run/shika. Runs in the control plane's network
# namespace, once: setup.sh global|zone-1|zone-2|alone.
set -eu

role=$1
ca=/var/lib/shika-cp/dp-server-ca.pem
ctl() { shikactl --config-file /tmp/shikactl.yaml "$@"; }

until curl --silent --fail --output /dev/null http://127.0.0.1:5681/ && [ -s "$ca" ]; do sleep 0.2; done
ctl config control-planes add --name "$role" --address http://127.0.0.1:5681 --overwrite

# Others see a file whole or not at all.
publish() {
    cat >"/run/shika/$1.new"
    mv "/run/shika/$1.new" "/run/shika/$1"
}

resources() {
    ctl apply -f /demo/zones/mesh.yaml
    ctl apply -f /demo/zones/permission.yaml
    ctl apply -f /demo/zones/resilience.yaml
    ctl apply -f /demo/zones/metrics.yaml
    for name in "$@"; do
        ctl generate dataplane-token --mesh demo --name "$name" --tag "kuma.io/service=${name%-*}" --valid-for 720h | publish "$name.token"
    done
}

case $role in
global)
    resources echo-1 client-1 echo-2 client-2
    for zone in zone-1 zone-2; do
        ctl generate zone-token --zone "$zone" --scope cp --scope ingress --scope egress --valid-for 720h | publish "$zone.token"
    done
    publish global-ca.pem <"$ca"
    ;;
zone-1 | zone-2) publish "$role-ca.pem" <"$ca" ;;
alone)
    resources echo-1 client-1
    publish zone-1-ca.pem <"$ca"
    ;;
esac
