#!/usr/bin/env bash
# Trains on SLURM: one torchrun a node, one process a GPU. Arguments are those of `mssts train`:
#   sbatch --nodes 2 --gpus-per-node 8 training/launch/slurm.sh --preset mssts_r50 --data DATA --out RUN --batch 16
# A job that is requeued, after a node failed or its time was up, goes on where the run in --out was last saved.
#SBATCH --job-name=mssts
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=48:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -euo pipefail

gpus=${SLURM_GPUS_ON_NODE:?run this with sbatch, not by itself}
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))

out=
for ((i = 1; i < $#; i++)); do
  next=$((i + 1))
  if [[ ${!i} == --out ]]; then out=${!next}; fi
done
resume=()
if [[ ${SLURM_RESTART_COUNT:-0} -gt 0 && -f $out/training_state.pt ]]; then
  resume=(--resume)
fi

srun --kill-on-bad-exit=1 python -m torch.distributed.run \
  --nnodes "$SLURM_JOB_NUM_NODES" \
  --nproc-per-node "$gpus" \
  --rdzv-id "$SLURM_JOB_ID" \
  --rdzv-backend c10d \
  --rdzv-endpoint "$head_node:$port" \
  -m mssts.cli train --device cuda "$@" ${resume[@]+"${resume[@]}"}
