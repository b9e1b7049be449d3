#!/bin/bash
# pipeinfer on nodes that you wait for, or in the allocation you are in:
#   NODES=2 GPUS_PER_NODE=4 MODEL=/models/openllama-3b slurm/interactive.sh run --prompt "Once upon a time"
#   slurm/interactive.sh bench --shape openllama-3b --batch-size 1,8
# Everything that differs from site to site is a variable at the top of run.sh.
set -euo pipefail
exec "$(dirname "$0")/run.sh" "$@"
