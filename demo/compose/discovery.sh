#!/bin/sh
# Asks control planes whom Prometheus is to scrape, as kuma_sd_configs does (MADS v1 over HTTP), and writes the answers for file_sd_configs.
# discovery.sh HOST...: the control planes that tell of proxies. One that cannot be reached keeps the targets that it last told of.
set -eu

out=/run/discovery
mkdir -p "$out/control-planes"
request='{"node": {"id": "prometheus"}, "type_url": "type.googleapis.com/kuma.observability.v1.MonitoringAssignment"}'
targets='[.resources[]? | . as $assignment | .targets[]? | {
    targets: [.address],
    labels: (($assignment.labels // {}) + (.labels // {}) + {
        mesh: $assignment.mesh, service: $assignment.service, dataplane: .name,
        __scheme__: (.scheme // "http"), __metrics_path__: (.metrics_path // .metricsPath // "/metrics")
    })
}]'
while :; do
    for host in "$@"; do
        # Prometheus sees a file whole or not at all.
        if curl --silent --fail --max-time 5 --output "$out/$host.answer" --header 'Content-Type: application/json' --data "$request" \
            "http://$host:5676/v3/discovery:monitoringassignments?fetch-timeout=0s" && jq "$targets" "$out/$host.answer" >"$out/$host.new"; then
            mv "$out/$host.new" "$out/$host.json"
        fi
        if curl --silent --fail --max-time 5 --output /dev/null "http://$host:5680/healthy"; then
            printf '[{"targets": ["%s:5680"]}]\n' "$host" >"$out/control-planes/$host.new"
            mv "$out/control-planes/$host.new" "$out/control-planes/$host.json"
        fi
    done
    sleep 5
done
