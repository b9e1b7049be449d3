#!/bin/bash
# Checks what a job will need, copies configuration and prompts into a folder of the run, submits the job, and says how
# to follow it:
#   NODES=2 MODEL=/models/openllama-3b PROMPTS=prompts/prompts.jsonl slurm/submit.sh [options of `pipeinfer run`]
# A run that was stopped or has failed goes on with RUN_DIR=<its folder> slurm/submit.sh
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)

# What differs from site to site; each may be set in the environment. The rest is run.sh's.
NODES=${NODES:-2}
TIME=${TIME:-1:00:00}                # after which the job is stopped and queued again
PARTITION=${PARTITION:-}
ACCOUNT=${ACCOUNT:-}
SBATCH_OPTIONS=${SBATCH_OPTIONS:-}   # more options of sbatch
RUNS=${RUNS:-$PWD/runs}              # where run folders are made; on a file system that all nodes see
RUN_DIR=${RUN_DIR:-$RUNS/$(date +%Y%m%d-%H%M%S)-$$}
CONFIG=${CONFIG:-}                   # --config
export PIPEINFER=${PIPEINFER:-} IMAGE=${IMAGE:-} MODEL=${MODEL:-} PROMPTS=${PROMPTS:-} DEVICE=${DEVICE:-}

fail() { echo "slurm/submit.sh: $*" >&2; exit 2; }

if [ -n "$PIPEINFER" ] && [ -z "$IMAGE" ]; then PIPEINFER=$(realpath "$PIPEINFER"); fi
[ -z "$IMAGE" ] || IMAGE=$(realpath "$IMAGE")
command -v sbatch >/dev/null || fail "sbatch not found: is this a Slurm machine?"
if [ -e "$RUN_DIR/options" ]; then  # goes on with what it was submitted with
  [ $# = 0 ] || fail "$RUN_DIR holds a run already: it goes on with its own options"
  mapfile -d '' -t staged <"$RUN_DIR/options"
else
  [ -n "$MODEL$CONFIG" ] || fail "set MODEL (a folder with config.json and *.safetensors) or CONFIG"
  [ -z "$MODEL" ] || [ -e "$MODEL/config.json" ] || fail "MODEL=$MODEL has no config.json"
  [ -z "$PROMPTS" ] || [ -r "$PROMPTS" ] || fail "PROMPTS=$PROMPTS cannot be read"
  [ -z "$CONFIG" ] || [ -r "$CONFIG" ] || fail "CONFIG=$CONFIG cannot be read"
  mkdir -p "$RUN_DIR"
  RUN_DIR=$(realpath "$RUN_DIR")
  staged=()
  if [ -n "$CONFIG" ]; then
    # A copy elsewhere needs absolute paths; its prompts are copied too.
    python3 - "$CONFIG" "$RUN_DIR" <<'END'
import json, os, shutil, sys
source, run = sys.argv[1:]
config = json.load(open(source, encoding="utf-8"))
for section, key in (("model", "model_path"), ("model", "tokenizer_path"), ("inputs", "prompt_path")):
    value = config.get(section, {}).get(key)
    if value:
        config[section][key] = os.path.join(os.path.dirname(os.path.abspath(source)), value)
prompts = config.get("inputs", {}).get("prompt_path")
if prompts and not os.environ["PROMPTS"]:
    config["inputs"]["prompt_path"] = shutil.copy(prompts, os.path.join(run, "prompts.jsonl"))
json.dump(config, open(os.path.join(run, "config.json"), "w", encoding="utf-8"), indent=2)
END
    staged+=(--config "$RUN_DIR/config.json")
  fi
  [ -z "$MODEL" ] || staged+=(--model "$(realpath "$MODEL")")
  if [ -n "$PROMPTS" ]; then
    cp "$PROMPTS" "$RUN_DIR/prompts.jsonl"
    staged+=(--prompts "$RUN_DIR/prompts.jsonl")
  fi
  staged+=("$@")
  printf '%s\0' "${staged[@]}" >"$RUN_DIR/options"
fi
RUN_DIR=$(realpath "$RUN_DIR")

options=(--nodes="$NODES" --time="$TIME" --chdir="$RUN_DIR" --output="$RUN_DIR/slurm-%j.out")
[ -z "$PARTITION" ] || options+=(--partition="$PARTITION")
[ -z "$ACCOUNT" ] || options+=(--account="$ACCOUNT")
read -ra more <<<"$SBATCH_OPTIONS"
job=$(MODEL='' PROMPTS='' PROJECT="$here" OUTPUT_DIR="$RUN_DIR/output" \
  sbatch --parsable "${options[@]}" "${more[@]}" "$here/slurm/submit.sbatch" "${staged[@]}")
job=${job%%;*}
echo "$job" >>"$RUN_DIR/jobs"
cat <<END
job $job, run folder $RUN_DIR
  state:    squeue --job=$job
  output:   tail -F $RUN_DIR/slurm-$job.out
  done:     wc -l $RUN_DIR/output/completions_rank_*.jsonl
  stop it:  scancel --signal=USR1 --full $job      (resumably; it is queued again unless submitted with REQUEUE=0)
  collect:  $here/slurm/collect.sh $RUN_DIR [FOLDER]
END
