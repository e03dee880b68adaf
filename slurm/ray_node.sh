#!/usr/bin/env bash
# The Ray of one node, started there by srun (slurm/ray.sbatch); it ends with the step.
set -euo pipefail
FOLDER=$RAY_FOLDER-$SLURM_NODEID
trap 'rm -rf "$FOLDER"' EXIT
trap 'kill "$RAY" 2> /dev/null; wait "$RAY"; exit 0' TERM INT
OPTIONS=(--block --num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --disable-usage-stats)
# Any free ports: of the range 10002 to 19999, which is the default, Ray refuses to start if the head's port lies in it.
OPTIONS+=(--min-worker-port=0 --max-worker-port=0)
if [[ $SLURM_NODEID -eq 0 ]]; then
    OPTIONS+=(--head --node-ip-address="$HEAD" --port="$PORT" --include-dashboard=false --temp-dir="$FOLDER")
else
    OPTIONS+=(--address="$HEAD:$PORT")
fi
# A node that comes before the head is ready tries again; one that has joined stays until the step ends.
while true; do
    "$PYTHON" -m ray.scripts.scripts start "${OPTIONS[@]}" &
    RAY=$!
    STATUS=0
    wait "$RAY" || STATUS=$?
    [[ $SLURM_NODEID -ne 0 && $SECONDS -lt 150 ]] || exit "$STATUS"
done
