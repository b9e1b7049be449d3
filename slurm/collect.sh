#!/bin/bash
# Writes what Slurm knows of a run's jobs into its folder (slurm_jobs.txt), and copies the results:
#   slurm/collect.sh RUN_DIR [FOLDER]      RUN_DIR: the folder that submit.sh made
set -euo pipefail

# What differs from site to site; may be set in the environment.
SACCT_FIELDS=${SACCT_FIELDS:-JobID,JobName,State,ExitCode,Submit,Start,End,Elapsed,TotalCPU,MaxRSS,AveDiskRead,AllocTRES,NodeList}

fail() { echo "slurm/collect.sh: $*" >&2; exit 2; }

run=${1:?usage: slurm/collect.sh RUN_DIR [FOLDER]}
[ -s "$run/jobs" ] || fail "$run is no folder that slurm/submit.sh made: it has no file 'jobs'"
jobs=$(sort -un "$run/jobs" | paste -sd,)

# With a Slurm database, every attempt of a requeued job has its line (--duplicates). Without, there may be a job
# completion log; what slurmctld remembers is the last resort, for some minutes after a job's end.
if text=$(sacct --jobs="$jobs" --duplicates --parsable2 --format="$SACCT_FIELDS" 2>/dev/null) &&
    [ "$(wc -l <<<"$text")" -gt 1 ]; then
  source="sacct"
elif text=$(sacct --completion --jobs="$jobs" --parsable2 2>/dev/null) && [ "$(wc -l <<<"$text")" -gt 1 ]; then
  source="sacct --completion (no accounting database)"
else
  text=$(for job in ${jobs//,/ }; do scontrol show job "$job"; done) || fail "Slurm knows nothing of job $jobs any more"
  source="scontrol show job (no accounting)"
fi
printf '# %s\n%s\n' "$source" "$text" >"$run/slurm_jobs.txt"
echo "$run/slurm_jobs.txt: from $source"

if [ $# -gt 1 ]; then
  mkdir -p "$2"
  cp -r "$run/." "$2"
  echo "$2: $(du -sh "$2" | cut -f1)"
fi
