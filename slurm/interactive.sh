#!/bin/bash
# Starts pipeinfer over the nodes of the Slurm allocation it is called in, or over a new one, and waits for it:
#   NODES=2 GPUS_PER_NODE=4 MODEL=/models/openllama-3b slurm/interactive.sh run --prompt "Once upon a time"
#   slurm/interactive.sh bench --shape openllama-3b --batch-size 1,8
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)

# What differs from site to site; each may be set in the environment.
PIPEINFER=${PIPEINFER:-}             # the executable; default: the project's gpu build, else its cpu build
MODEL=${MODEL:-}                     # --model
PROMPTS=${PROMPTS:-}                 # --prompts (run)
OUTPUT_DIR=${OUTPUT_DIR:-}           # --output-dir (run)
DEVICE=${DEVICE:-}                   # --device: auto, cpu, cuda
NODES=${NODES:-${SLURM_JOB_NUM_NODES:-1}}
GPUS_PER_NODE=${GPUS_PER_NODE:-}     # default: the allocation's; none for DEVICE=cpu
TASKS_PER_NODE=${TASKS_PER_NODE:-}   # ranks a node; default: one a GPU
LAUNCHER=${LAUNCHER:-auto}           # srun (with PMIx), mpirun, or auto: srun where Slurm has PMIx

fail() { echo "interactive.sh: $*" >&2; exit 2; }

[ $# -gt 0 ] || fail "usage: slurm/interactive.sh run|bench [options]"
for candidate in "$here/build/gpu/pipeinfer" "$here/build/cpu/pipeinfer"; do
  if [ -z "$PIPEINFER" ] && [ -x "$candidate" ]; then PIPEINFER=$candidate; fi
done
[ -n "$PIPEINFER" ] || fail "no pipeinfer is built in $here/build; build it, or set PIPEINFER to the executable"
command -v srun >/dev/null || fail "srun not found: is this a Slurm machine?"
if [ -z "$GPUS_PER_NODE" ]; then
  if [ "$DEVICE" = cpu ]; then GPUS_PER_NODE=0; else GPUS_PER_NODE=${SLURM_GPUS_ON_NODE:-0}; fi
fi
TASKS_PER_NODE=${TASKS_PER_NODE:-$((GPUS_PER_NODE > 0 ? GPUS_PER_NODE : 1))}
if [ "$NODES" -gt "${SLURM_JOB_NUM_NODES:-$NODES}" ]; then
  fail "NODES=$NODES, but this allocation has $SLURM_JOB_NUM_NODES: submit it with sbatch --nodes=$NODES"
fi

subcommand=$1
shift
command=("$PIPEINFER" "$subcommand")
[ -z "$MODEL" ] || command+=(--model "$MODEL")
[ -z "$DEVICE" ] || command+=(--device "$DEVICE")
if [ "$subcommand" = run ]; then
  [ -z "$PROMPTS" ] || command+=(--prompts "$PROMPTS")
  [ -z "$OUTPUT_DIR" ] || command+=(--output-dir "$OUTPUT_DIR")
fi
command+=("$@")

shape=(--nodes="$NODES" --ntasks-per-node="$TASKS_PER_NODE" --ntasks="$((NODES * TASKS_PER_NODE))")
[ "$GPUS_PER_NODE" = 0 ] || shape+=(--gpus-per-node="$GPUS_PER_NODE")
if [ "$LAUNCHER" = auto ]; then
  # OpenMPI starts under srun through PMIx only; a Slurm built without it can still start mpirun's daemons.
  if srun --mpi=list 2>&1 | grep -qw pmix; then LAUNCHER=srun; else LAUNCHER=mpirun; fi
fi
case $LAUNCHER in
  srun) exec srun --mpi=pmix "${shape[@]}" "${command[@]}" ;;
  mpirun)
    # No binding: a rank's threads share its node's cores with the node's other ranks, as pipeinfer counts them.
    mpirun=(mpirun -n "$((NODES * TASKS_PER_NODE))" --map-by "ppr:$TASKS_PER_NODE:node" --bind-to none)
    # Its daemons run in a step of their own, which gets the job's GPUs only if it asks.
    [ "$GPUS_PER_NODE" = 0 ] || mpirun+=(--mca plm_slurm_args "--gpus-per-node=$GPUS_PER_NODE")
    if [ -n "${SLURM_JOB_ID:-}" ]; then exec "${mpirun[@]}" "${command[@]}"; fi
    exec salloc "${shape[@]}" "${mpirun[@]}" "${command[@]}"
    ;;
  *) fail "LAUNCHER=$LAUNCHER is none of auto, srun, mpirun" ;;
esac
