# shellcheck shell=bash
# Sourced by the scripts beside it: where things are, and how a preset is built.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
project=$PWD
export PATH=$project/build/venv/bin:$PATH

# Compilations of another clone are found again: paths below the project count as relative.
export CCACHE_BASEDIR=$project CCACHE_NOHASHDIR=1 CCACHE_SLOPPINESS=pch_defines,time_macros
export NINJA_STATUS='[%f/%t %es] '

# mpirun refuses root, and more ranks than cores, unless told that both are meant.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1

# Undefined behaviour fails a test; clang's reports name lines without llvm-symbolizer too.
export UBSAN_OPTIONS=halt_on_error=1 ASAN_OPTIONS=allow_addr2line=1

jobs=$(env -u OMP_NUM_THREADS nproc)  # nproc would count that variable's threads

step() { printf '\n== %s (%d:%02d)\n' "$*" $((SECONDS / 60)) $((SECONDS % 60)); }

# build PRESET [TARGET...]: configures once (ninja does it again where a CMake file changed), then builds.
build() {
  local preset=$1
  shift
  [ -f "build/$preset/build.ninja" ] || cmake --preset "$preset" ${PIPEINFER_TORCH_ROOT:+-DPIPEINFER_TORCH_ROOT="$PIPEINFER_TORCH_ROOT"} || return
  cmake --build --preset "$preset" --parallel "$jobs" ${1:+--target "$@"}
}
