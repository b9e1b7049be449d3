#!/usr/bin/env bash
# Builds the image: apptainer/build.sh [cpu|gpu] [IMAGE.sif] [more options of `apptainer build`]
# Bases other than the public images of the definition: --build-arg bootstrap=localimage --build-arg base=FOLDER ...
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${1:-cpu}
image=${2:-pipeinfer-$preset.sif}
shift $(($# < 2 ? $# : 2))

arguments=(--build-arg preset="$preset")
case $preset in
  cpu) ;;
  gpu) arguments+=(--build-arg build_base=nvidia/cuda:13.0.2-devel-ubuntu24.04
                   --build-arg base=nvidia/cuda:13.0.2-runtime-ubuntu24.04) ;;
  *) echo "usage: apptainer/build.sh [cpu|gpu] [IMAGE.sif] [options of apptainer build]" >&2; exit 2 ;;
esac
command -v apptainer >/dev/null || { echo "build.sh: apptainer is not installed" >&2; exit 2; }

source=$(mktemp --suffix=.tar)
trap 'rm -f "$source"' EXIT
git ls-files -z | tar --null -T - -cf "$source"
apptainer build --fakeroot "${arguments[@]}" --build-arg source="$source" "$@" "$image" apptainer/pipeinfer.def
