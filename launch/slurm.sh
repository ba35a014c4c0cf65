#!/usr/bin/env bash
#SBATCH --job-name=care-jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# sbatch launch/slurm.sh COMMAND [argument ...]: `care-jax COMMAND ...`, a process a node, all GPUs of a node in each.
#   sbatch launch/slurm.sh train dpo-llama3.1-8b h200 output_dir=/shared/runs/dpo-llama3.1-8b
# Restart-safe: five minutes before the time is up every process is told, saves and ends with 75; the job goes back into
# the queue under the same number and goes on. After a node failed SLURM requeues it (--requeue).
# Environment: CARE_JAX (the program; default care-jax), HF_TOKEN for gated weights. Paths must be seen by all nodes.
set -uo pipefail
if [ $# -lt 1 ]; then sed -n '12,16p' "$0" | cut -c3- >&2; exit 2; fi
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/care_jax/compiled}
export HF_HOME=${HF_HOME:-$HOME/.cache/huggingface}

# One task that dies ends the step: jax on the other nodes notices too, within a minute.
srun --kill-on-bad-exit=1 "${CARE_JAX:-care-jax}" "$@"
status=$?
if [ "$status" = 75 ]; then
    echo "interrupted and saved: back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
