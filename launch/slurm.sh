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
# sbatch launch/slurm.sh COMMAND [argument ...]: runs `care-jax COMMAND ...`, one process per node with all its GPUs.
#   sbatch launch/slurm.sh train dpo-llama3.1-8b h200 batch.microbatch_rows=64 output_dir=/shared/runs/dpo-llama3.1-8b
# Restart-safe: five minutes before the time limit every process gets a signal, saves and ends with 75; the job is put
# back into the queue with the same number and resumes. SLURM requeues it if a node fails (--requeue).
# Environment: CARE_JAX (the program; default care-jax), HF_TOKEN for gated weights. All nodes must see the paths.
set -uo pipefail
if [ $# -lt 1 ]; then sed -n '12,16p' "$0" | cut -c3- >&2; exit 2; fi
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/care_jax/compiled}
export HF_HOME=${HF_HOME:-$HOME/.cache/huggingface}

# By default jax uses one GPU per SLURM task; here the task of a node uses all of them.
gpus=${SLURM_GPUS_ON_NODE:-}
[ -z "$gpus" ] || export JAX_LOCAL_DEVICE_IDS=${JAX_LOCAL_DEVICE_IDS:-$(seq -s, 0 $((gpus - 1)))}
# Collectives overlap with compute (launch/README.md, "Compiler flags"); flags set before come last and win.
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

# Do not kill the others when one task ends: each ends with 75 when it has saved, at its own time. If a task dies, jax
# on the other nodes notices within a minute, and they end by themselves.
srun --kill-on-bad-exit=0 --wait=0 "${CARE_JAX:-care-jax}" "$@"
status=$?
if [ "$status" = 75 ]; then
    echo "interrupted and saved: back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
