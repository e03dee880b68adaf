#!/usr/bin/env bash
# The torchrun of one node, started there by srun: torchrun.sh train|evaluate WORDS... The sbatch file exports PYTHON,
# PROCESSES, HEAD and PORT. Ranks follow Slurm's order of the nodes, so a resumed run has the same ones.
set -euo pipefail
exec "$PYTHON" -m torch.distributed.run --nnodes="$SLURM_NNODES" --node_rank="$SLURM_NODEID" \
    --nproc_per_node="$PROCESSES" --master_addr="$HEAD" --master_port="$PORT" -m "$@"
