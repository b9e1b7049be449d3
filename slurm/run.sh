#!/bin/bash
# Starts pipeinfer over the nodes of the Slurm allocation it is called in, or over a new one, and becomes it:
#   slurm/run.sh run|bench|doctor [options of pipeinfer]
# submit.sbatch and interactive.sh call it.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)

# What differs from site to site; each may be set in the environment.
PIPEINFER=${PIPEINFER:-}             # the executable; default: the image's, else the gpu build's, else the cpu build's
IMAGE=${IMAGE:-}                     # an Apptainer image or sandbox to run it in; none: bare metal
BIND=${BIND:-}                       # more folders that the image shall see: /scratch,/data:/data:ro
APPTAINER_OPTIONS=${APPTAINER_OPTIONS:-}  # more options of apptainer exec, e.g. --userns
MODEL=${MODEL:-}                     # --model
PROMPTS=${PROMPTS:-}                 # --prompts (run)
OUTPUT_DIR=${OUTPUT_DIR:-}           # --output-dir (run)
DEVICE=${DEVICE:-}                   # --device: auto, cpu, cuda
NODES=${NODES:-${SLURM_JOB_NUM_NODES:-1}}
GPUS_PER_NODE=${GPUS_PER_NODE:-}     # default: the allocation's; none for DEVICE=cpu
TASKS_PER_NODE=${TASKS_PER_NODE:-}   # ranks a node; default: one a GPU
LAUNCHER=${LAUNCHER:-auto}           # srun (with PMIx), mpirun, or auto: srun where Slurm has PMIx
SRUN_OPTIONS=${SRUN_OPTIONS:-}       # more options of srun
MPIRUN_OPTIONS=${MPIRUN_OPTIONS:-}   # more options of mpirun
PROFILER=${PROFILER:-none}           # none, nsys, perf, ncu: one report a rank
PROFILE_DIR=${PROFILE_DIR:-${OUTPUT_DIR:-.}}  # where the reports go

fail() { echo "slurm/run.sh: $*" >&2; exit 2; }
warn() { echo "slurm/run.sh: warning: $*" >&2; }

[ $# -gt 0 ] || fail "usage: slurm/run.sh run|bench|doctor [options]"
if [ -n "$IMAGE" ]; then
  [ -e "$IMAGE" ] || fail "IMAGE=$IMAGE does not exist (apptainer/build.sh makes one)"
  command -v apptainer >/dev/null || fail "IMAGE is set, but apptainer is not found"
  PIPEINFER=${PIPEINFER:-pipeinfer}
else
  for candidate in "$here/build/gpu/pipeinfer" "$here/build/cpu/pipeinfer"; do
    if [ -z "$PIPEINFER" ] && [ -x "$candidate" ]; then PIPEINFER=$candidate; fi
  done
  [ -n "$PIPEINFER" ] || fail "no pipeinfer is built in $here/build; build it, or set PIPEINFER to the executable"
fi
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

# The profiler sits between the launcher and each rank, and names its report by the rank.
report="$PROFILE_DIR/$PROFILER-rank"
case $PROFILER in
  none) profiler=() ;;
  nsys) profiler=(nsys profile --force-overwrite=true --trace=cuda,nvtx,mpi "--output=$report-%q{PMIX_RANK}") ;;
  ncu) profiler=(ncu --target-processes=all --force-overwrite "--export=$report-%q{PMIX_RANK}") ;;
  perf) profiler=(sh -c 'report=$1-$PMIX_RANK.data; shift; exec perf record -g -o "$report" -- "$@"' perf "$report") ;;
  *) fail "PROFILER=$PROFILER is none of none, nsys, perf, ncu" ;;
esac
image=()
if [ -n "$IMAGE" ]; then
  # MPI and Slurm keep their sockets under these folders; the model, prompts and results are the user's.
  read -ra image_options <<<"$APPTAINER_OPTIONS"
  binds=$PWD
  for folder in /tmp /dev/shm /var/spool "$(dirname "${PROMPTS:-.}")" "${MODEL:-.}" "$here/configs" \
      "$(dirname "${OUTPUT_DIR:-.}")"; do
    if [ -e "$folder" ]; then
      folder=$(realpath "$folder")
      case ",$binds," in *",$folder,"*) ;; *) binds+=,$folder ;; esac
    fi
  done
  image=(apptainer --silent exec "${image_options[@]}" --bind "$binds${BIND:+,$BIND}")
  [ "$GPUS_PER_NODE" = 0 ] || image+=(--nv)
  image+=("$IMAGE")
fi
if [ "$PROFILER" != none ]; then
  if "${image[@]}" sh -c 'command -v "$1"' sh "$PROFILER" >/dev/null; then
    mkdir -p "$PROFILE_DIR"
  else
    warn "$PROFILER is not installed${IMAGE:+ in $IMAGE}: the run is not profiled"
    profiler=()
  fi
fi
command=("${image[@]}" "${profiler[@]}" "${command[@]}")

shape=(--nodes="$NODES" --ntasks-per-node="$TASKS_PER_NODE" --ntasks="$((NODES * TASKS_PER_NODE))")
[ "$GPUS_PER_NODE" = 0 ] || shape+=(--gpus-per-node="$GPUS_PER_NODE")
if [ "$LAUNCHER" = auto ]; then
  # OpenMPI starts under srun through PMIx only; a Slurm built without it can still start mpirun's daemons.
  if srun --mpi=list 2>&1 | grep -qw pmix; then LAUNCHER=srun; else LAUNCHER=mpirun; fi
fi
read -ra more <<<"$([ "$LAUNCHER" = srun ] && echo "$SRUN_OPTIONS" || echo "$MPIRUN_OPTIONS")"
case $LAUNCHER in
  srun) exec srun --mpi=pmix "${shape[@]}" "${more[@]}" "${command[@]}" ;;
  mpirun)
    # No binding: a rank's threads share its node's cores with the node's other ranks, as pipeinfer counts them.
    mpirun=(mpirun -n "$((NODES * TASKS_PER_NODE))" --map-by "ppr:$TASKS_PER_NODE:node" --bind-to none "${more[@]}")
    # Its daemons run in a step of their own, which gets the job's GPUs only if it asks.
    [ "$GPUS_PER_NODE" = 0 ] || mpirun+=(--mca plm_slurm_args "--gpus-per-node=$GPUS_PER_NODE")
    if [ -n "${SLURM_JOB_ID:-}" ]; then exec "${mpirun[@]}" "${command[@]}"; fi
    exec salloc "${shape[@]}" "${mpirun[@]}" "${command[@]}"
    ;;
  *) fail "LAUNCHER=$LAUNCHER is none of auto, srun, mpirun" ;;
esac
