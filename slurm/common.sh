# Sourced by the sbatch files: finds the checkout and Python, and checks every node before a job's work starts.
# Set by `python -m crawl2clip.submit` from the cluster file, and all optional:
#   CRAWL2CLIP_CHECKOUT   the checkout; else where sbatch was called
#   CRAWL2CLIP_PYTHON     the Python to use; else the checkout's .venv
#   CRAWL2CLIP_SRUN       options of srun (Pyxis)
#   CRAWL2CLIP_CONTAINER  what stands before a program (Apptainer)
#   CRAWL2CLIP_RENDEZVOUS host that all nodes can reach, on the first node; else the address that Slurm has of it
#   CRAWL2CLIP_SCRATCH    where s3:// addresses are worked on; several nodes that train in one need a folder they share
#   CRAWL2CLIP_PORT       its port; else one that follows from the job's number
# shellcheck shell=bash

fail() {
    echo "error: $*" >&2
    exit 2
}

cd "${CHECKOUT:?set by the sbatch file}" || exit 2
mkdir -p runs/slurm
PYTHON=${CRAWL2CLIP_PYTHON:-$PWD/.venv/bin/python}
[[ -n ${CRAWL2CLIP_CONTAINER:-}${CRAWL2CLIP_SRUN:-} || -x $PYTHON ]] ||
    fail "no Python at $PYTHON; run 'make install', or set CRAWL2CLIP_PYTHON"
read -ra SRUN <<< "srun ${CRAWL2CLIP_SRUN:-}"
read -ra BEFORE <<< "${CRAWL2CLIP_CONTAINER:-}"
RUN=("${BEFORE[@]}" "$PYTHON")

# Since 22.05 a step does not get the cores that its job asked for a task, unless it is told.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

# The first node of the allocation is where the processes meet, at the address that Slurm itself uses. A port below
# 32768 is not given to outgoing connections; two jobs on a node, and a requeued job, have different ones.
HEAD_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
HEAD=$(scontrol -o show node "$HEAD_NODE" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
HEAD=${CRAWL2CLIP_RENDEZVOUS:-${HEAD:-$HEAD_NODE}}
PORT=${CRAWL2CLIP_PORT:-$((20000 + (SLURM_JOB_ID + 101 * ${SLURM_RESTART_COUNT:-0}) % 12000))}

# One process a GPU that Slurm granted. Without any, a job that does not say device=cpu has been submitted wrongly.
PROCESSES=${SLURM_GPUS_ON_NODE:-0}
NEEDS_GPU=1
for word in "$@"; do
    if [[ $word == device=cpu ]]; then
        NEEDS_GPU=0
        # shellcheck disable=SC2034  # the sbatch files read it
        PROCESSES=1
    fi
done

# folder_of PLACE: the folder of this machine that is written to for it. What is at s3:// is worked on in
# CRAWL2CLIP_SCRATCH; without it, in the temporary folder, which needs no check.
folder_of() {
    if [[ $1 == s3://* ]]; then
        printf '%s' "${CRAWL2CLIP_SCRATCH:-}"
    else
        printf '%s' "$1"
    fi
}

# check_nodes WRITABLE_FOLDER...: every node says whether it can do the job; the first that cannot ends it.
check_nodes() {
    local FOLDERS=() FOLDER
    for FOLDER in "$@"; do
        FOLDER=$(folder_of "$FOLDER")
        [[ -n $FOLDER ]] && FOLDERS+=("$FOLDER")
    done
    "${SRUN[@]}" --ntasks-per-node=1 --kill-on-bad-exit=0 "${RUN[@]}" -m crawl2clip.node_check \
        --nodes "$SLURM_JOB_NUM_NODES" --rendezvous "$HEAD:$PORT" --needs-gpu "$NEEDS_GPU" "${FOLDERS[@]}" || {
        echo "error: preflight failed, nothing was started: see the lines above for what to mend" >&2
        exit 3
    }
}
