#!/usr/bin/env bash
# launch/local.sh N COMMAND [argument ...]: runs `care-jax COMMAND ...` as one job of N processes here.
#   launch/local.sh 2 train quickstart data.max_steps=20
# Process 0 writes to this terminal, the others to $CARE_JAX_LOGS/process-N.log (default: in a new folder). If one dies,
# the others end within a minute. Exit status: the first that is not 0; 75: interrupted and saved, run it again.
set -uo pipefail
[ $# -ge 2 ] && [ "$1" -ge 1 ] 2>/dev/null || { sed -n '2,3p' "$0" | cut -c3- >&2; exit 2; }
count=$1; shift
logs=${CARE_JAX_LOGS:-$(mktemp -d)}; mkdir -p "$logs"
export JAX_COORDINATOR_ADDRESS=${JAX_COORDINATOR_ADDRESS:-localhost:$((20000 + RANDOM % 20000))}
export JAX_NUM_PROCESSES=$count
program=${CARE_JAX:-care-jax}

pids=()
for ((i = 0; i < count; i++)); do
    if [ "$i" = 0 ]; then JAX_PROCESS_ID=$i $program "$@" &
    else JAX_PROCESS_ID=$i $program "$@" >"$logs/process-$i.log" 2>&1 &
    fi
    pids+=($!)
done
# A signal is sent on to every process: each saves its part and ends with 75.
trap 'kill -TERM "${pids[@]}" 2>/dev/null' TERM INT

status=0
for pid in "${pids[@]}"; do
    while :; do
        wait "$pid"; ended=$?
        kill -0 "$pid" 2>/dev/null || break # otherwise a signal ended the wait, not the process
    done
    wait "$pid" 2>/dev/null; again=$?
    [ "$again" = 127 ] || ended=$again
    [ "$ended" = 0 ] || echo "process $pid ended with $ended; logs: $logs" >&2
    [ "$status" != 0 ] || status=$ended
done
exit "$status"
