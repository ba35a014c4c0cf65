#!/usr/bin/env bash
# launch/tpu-vm.sh NAME COMMAND [argument ...]: runs `care-jax COMMAND ...` on a TPU slice, by a queued resource.
#   TYPE=v5p-16 ZONE=us-east5-a launch/tpu-vm.sh mine train dpo-llama3.1-8b v5p-16 output_dir=gs://BUCKET/runs/mine
# Environment: ZONE, TYPE (accelerator), VERSION (of the runtime image), PROJECT (default: gcloud's), SPOT=1, WAIT
# (seconds between two checks), HF_TOKEN (for gated weights; passed on in a file that only its owner may read).
# Restart-safe: run it again after a preemption; it requests the slice again, and the run resumes from its checkpoint.
set -euo pipefail
if [ $# -lt 2 ]; then sed -n '2,6p' "$0" | cut -c3- >&2; exit 2; fi
name=$1; shift
: "${ZONE:?ZONE is not set}" "${TYPE:?TYPE is not set, such as v5p-16}"
VERSION=${VERSION:-v2-alpha-tpuv5}
where=(--zone "$ZONE"); [ -z "${PROJECT:-}" ] || where+=(--project "$PROJECT")
root=$(cd "$(dirname "$0")/.." && pwd)

scratch=$(mktemp -d); trap 'rm -rf "$scratch"' EXIT
state() { gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)'; }
options=(--node-id "$name" --accelerator-type "$TYPE" --runtime-version "$VERSION")
[ -z "${SPOT:-}" ] || options+=(--spot)
asked='' looked=''
while :; do
    if found=$(state 2>"$scratch/errors"); then :
    elif grep -q NOT_FOUND "$scratch/errors"; then found=
    else # any other error: fatal at the first check, later assumed to be temporary
        cat "$scratch/errors" >&2; [ -n "$looked" ] || exit 1
        found=unknown
    fi
    looked=1
    case $found in
    ACTIVE) break ;;
    "") gcloud compute tpus queued-resources create "$name" "${where[@]}" "${options[@]}"; asked=1 ;;
    FAILED | SUSPENDED)
        [ "$found$asked" != FAILED1 ] || { echo "the request for $name failed" >&2; exit 1; }
        gcloud compute tpus queued-resources delete "$name" "${where[@]}" --quiet --force ;;
    *) echo "waiting for $name: $found" >&2; sleep "${WAIT:-30}" ;;
    esac
done

everywhere() { gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command "$1"; }
send() { gcloud compute tpus tpu-vm scp "$1" "$name:$2" "${where[@]}" --worker=all; }
tar -czf "$scratch/care_jax.tgz" -C "$root" pyproject.toml README.md LICENSE care_jax configs
(umask 077; printf 'export HF_TOKEN=%q\n' "${HF_TOKEN:-}" >"$scratch/token")
send "$scratch/care_jax.tgz" care_jax.tgz
send "$scratch/token" .care_jax_token
everywhere "set -e; mkdir -p care_jax && tar -xzf care_jax.tgz -C care_jax
    python3 -m pip install -q --user uv # the image's Python may be too old for care_jax
    [ -d venv ] || python3 -m uv venv -q --python 3.12 venv; python3 -m uv pip install -q --python venv './care_jax[tpu,gcs]'"
# Collectives overlap with compute (launch/README.md, "Compiler flags").
flags=(
    --xla_tpu_enable_async_collective_fusion=true
    --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
    --xla_tpu_enable_async_collective_fusion_multiple_steps=true
    --xla_tpu_overlap_compute_collective_tc=true
    --xla_enable_async_all_gather=true
)
command=$(printf ' %q' "$@")
everywhere ". ./.care_jax_token; export CARE_JAX_DISTRIBUTED=auto JAX_COMPILATION_CACHE_DIR=\$HOME/compiled;
    export LIBTPU_INIT_ARGS='${flags[*]}';
    exec venv/bin/care-jax$command"
