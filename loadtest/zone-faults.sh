#!/usr/bin/env bash
# What each fault costs: two zones under load, every process killed and started again in turn, every cable pulled and put back in turn. Prints a table
# and exits 0 when traffic was whole again after each fault, both zones answered again, nothing that was configured is lost or changed, and no
# process ended but those that were killed. Nobody repairs anything in between.
#
# The client in zone 1 calls two names all the time, each call on a connection of its own with a name lookup, and waits at most 2 s:
#   echo.mesh                    an instance in each zone, with demo/zones/resilience.yaml
#   echo.svc.zone-2.mesh.local   the one in zone 2, through egress 1 and ingress 2
#
#   RATE=25       calls per second to each of the two names
#   DOWN=5        seconds from a fault to its end
#   LIMIT=90      seconds after the end of a fault within which everything is as before
#   TABLE=file    writes the table there too
#   ONLY=regex    only the faults whose name matches, as "kill egress-1"
#   The zones, BIN and PROFILE: see demo/zones/lib.sh.
cd "$(dirname "$0")/.." || exit
# shellcheck source=demo/zones/lib.sh
source demo/zones/lib.sh

rate=${RATE:-25} down=${DOWN:-5} limit=${LIMIT:-90}
both=echo.mesh across=echo.svc.zone-2.mesh.local
log=$work/outcomes
problems=0

programs
step "Two zones"
network
start_global
for zone in 1 2; do
    zone_token "$zone"
    start_zone "$zone"
done
give_mesh
start_services
until_true 60 "both zones answer to http://$both" client-1-proxy both_zones_answer "$both"
until_true 60 "zone 2 answers to http://$across" client-1-proxy zone_2_answers_all "$across"

now() { date +%s%3N; }

# configured: everything that somebody gave to a control plane or that it made from that, secrets as sums; not what it observes.
configured() {
    local where kind
    for where in global cp-1 cp-2; do
        for kind in meshes zones dataplanes zoneingresses zoneegresses meshservices hostnamegenerators meshcircuitbreakers meshretries meshtimeouts \
            meshtrafficpermissions; do
            printf '== %s %s\n' "$where" "$kind"
            ctl "$where" --mesh demo get "$kind" -o yaml || echo "not to be had"
        done | grep -vE '^ *(creationTime|modificationTime):'
        for kind in secrets globalsecrets; do
            printf '== %s %s ' "$where" "$kind"
            ctl "$where" --mesh demo get "$kind" -o yaml | grep -vE '^ *(creationTime|modificationTime):' | sha256sum
        done
    done 2>&1
}
# Services say so once their proxies have certificates.
settled() {
    configured >"$work/before"
    ! grep -qE 'status: NotReady|not to be had' "$work/before"
}
as_before() { configured >"$work/now" && cmp -s "$work/before" "$work/now"; }

# whole: whether in the 3 s which ended a timeout ago every call had its answer, both zones answered where they may, and the calls were made at all.
whole() {
    awk -F '\t' -v from="$(($(now) - 5100))" -v to="$(($(now) - 2100))" -v least="$(awk "BEGIN { print int($rate * 3 * 0.6) }")" -v both="$both" '
        $1 >= from && $3 != "ok" { failed = 1 }
        $1 >= from && $1 < to && $3 == "ok" { answered[$2]++ ; if ($2 == both) by[$5]++ }
        END {
            for (name in answered) { names++; if (answered[name] < least) failed = 1 }
            for (zone in by) zones++
            exit failed || names < 2 || zones < 2
        }' < <(tail -n "$((rate * 30))" "$log")
}

all_run() {
    local name
    for name in "${!pids[@]}"; do
        kill -0 "${pids[$name]}" 2>/dev/null || return 1
    done
}

# cost NAME BEGIN MEND END: what the calls to NAME cost: "failed of made while the fault lasted, failed after it (how) | seconds from the first to
# the last failure | seconds from the end of the fault until the last failure had failed".
cost() {
    awk -F '\t' -v name="$1" -v begin="$2" -v mend="$3" -v end="$4" '
        $2 != name || $1 < begin - 2000 || $1 >= end { next }
        # What was under way when the fault began belongs to it if it failed.
        $1 < mend && ($1 >= begin || $3 != "ok") { made++ }
        $3 == "ok" { next }
        {
            if (!first || $1 < first) first = $1
            if ($1 > last) last = $1
            if ($1 + $4 > over) over = $1 + $4
            if ($1 < mend) during++; else after++
            how[$3]++
        }
        END {
            if (!first) { printf "0 of %d | – | –", made; exit }
            for (word in how) list = list (list ? ", " : "") word " " how[word]
            printf "%d of %d, %d after (%s) | %.1f s | ", during, made, after, list, (last - first) / 1000
            if (over > mend) printf "%.1f s", (over - mend) / 1000; else printf "–"
        }' "$log"
}

# both_back MEND END: seconds from the end of the fault until each zone had answered to the name that both answer to.
both_back() {
    awk -F '\t' -v name="$both" -v mend="$1" -v end="$2" '
        $2 == name && $1 >= mend && $1 < end && $3 == "ok" && !($5 in seen) { seen[$5]; if (++zones == 2) at = $1 + $4 }
        END { if (at) printf "%.1f s", (at - mend) / 1000; else printf "–" }' "$log"
}

rows=()
# fault NAME BREAK... -- MEND...
fault() {
    local name=$1 begin mend end verdict=yes commands=() deadline
    shift
    if [[ ! $name =~ ${ONLY:-.} ]]; then return; fi
    while [ "$1" != -- ]; do
        commands+=("$1")
        shift
    done
    shift
    begin=$(now)
    "${commands[@]}"
    sleep "$down"
    mend=$(now)
    "$@"
    deadline=$((SECONDS + limit))
    # A window that begins before the end of the fault says nothing.
    sleep 5.2
    until whole; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            verdict="NO: calls fail or one zone does not answer after $limit s"
            break
        fi
        sleep 0.3
    done
    end=$(now)
    until as_before; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            verdict="NO: what is configured differs, see $(basename "$work")/differs-${name// /-}"
            diff "$work/before" "$work/now" >"$work/differs-${name// /-}" || true
            break
        fi
        sleep 0.3
    done
    all_run || verdict="NO: another process ended"
    if [ "$verdict" != yes ]; then problems=$((problems + 1)); fi
    rows+=("| $name | $(cost "$both" "$begin" "$mend" "$end") | $(both_back "$mend" "$end") | $(cost "$across" "$begin" "$mend" "$end") | $verdict |")
    printf '  %s\n' "${rows[-1]}"
}

start probe client-1 shika-loadtest probe --target "$both" --target "$across" --rate "$rate" --timeout 2s --log "$log"
until_true 10 "the probe calls" probe test -s "$log"
until_true 30 "the calls are answered" probe whole
until_true 60 "the certificates are there" cp-1 settled

step "Every process is killed and started again after $down s"
for name in global cp-1 cp-2 client-1-proxy echo-1-proxy echo-2-proxy echo-1 echo-2 ingress-1-proxy ingress-2-proxy egress-1-proxy egress-2-proxy; do
    fault "kill $name" crash "$name" -- again "$name"
done

step "Every cable is pulled and put back after $down s"
for name in router-1 router-2 global cp-1 cp-2 client-1 echo-1 echo-2 ingress-1 ingress-2 egress-1 egress-2; do
    fault "cut $name" pull "$name" -- plug "$name"
done

table() {
    printf '| fault | %s: failed calls | over | until after its end | both zones answer after | ' "$both"
    printf '%s: failed calls | over | until after its end | all as before |\n' "$across"
    printf '|---|---|---|---|---|---|---|---|---|\n'
    printf '%s\n' "${rows[@]}"
}
step "$rate calls per second to each name; $((${#rows[@]})) faults of $down s"
table
if [ -n "${TABLE:-}" ]; then table >"$TABLE"; fi
if [ -n "${KEEP:-}" ]; then keep_work=yes; fi
[ "$problems" = 0 ] || fail "not everything was as before after $problems of ${#rows[@]} faults"
