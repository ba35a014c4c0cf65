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
#   sbatch launch/slurm.sh train dpo-llama3.1-8b h200 batch.microbatch_rows=64 output_dir=/shared/runs/dpo-llama3.1-8b
# Restart-safe: five minutes before the time is up every process is told, saves and ends with 75; the job goes back into
# the queue under the same number and goes on. After a node failed SLURM requeues it (--requeue).
# Environment: CARE_JAX (the program; default care-jax), HF_TOKEN for gated weights. Paths must be seen by all nodes.
set -uo pipefail
if [ $# -lt 1 ]; then sed -n '12,16p' "$0" | cut -c3- >&2; exit 2; fi
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/care_jax/compiled}
export HF_HOME=${HF_HOME:-$HOME/.cache/huggingface}

# jax takes one GPU a SLURM task unless it is told which: the task of a node has them all.
gpus=${SLURM_GPUS_ON_NODE:-}
[ -z "$gpus" ] || export JAX_LOCAL_DEVICE_IDS=${JAX_LOCAL_DEVICE_IDS:-$(seq -s, 0 $((gpus - 1)))}
# Collectives beside compute (launch/README.md, "Compiler flags"); what is set before stands behind and wins.
flags=(
    --xla_gpu_enable_latency_hiding_scheduler=true
    --xla_gpu_enable_triton_gemm=false
    --xla_gpu_enable_while_loop_double_buffering=true
    --xla_gpu_enable_pipelined_all_gather=true
    --xla_gpu_enable_pipelined_reduce_scatter=true
    --xla_gpu_enable_pipelined_all_reduce=true
    --xla_gpu_all_gather_combine_threshold_bytes=134217728
    --xla_gpu_reduce_scatter_combine_threshold_bytes=67108864
)
export XLA_FLAGS="${flags[*]} ${XLA_FLAGS:-}"

# Not killed on a bad exit: each task ends with 75 when it has saved, one sooner than another. Where one dies at work, jax
# on the other nodes notices within a minute, and they end by themselves.
srun --kill-on-bad-exit=0 --wait=0 "${CARE_JAX:-care-jax}" "$@"
status=$?
if [ "$status" = 75 ]; then
    echo "interrupted and saved: back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
