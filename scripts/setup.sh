#!/usr/bin/env bash
# Installs what pipeinfer is built from, once: Debian's packages with apt, LibTorch and CMake from PyPI in
# build/venv. A second run finds everything there and is done in a moment.
# usage: scripts/setup.sh [--tests]     --tests: also what scripts/test.sh needs (clang for libFuzzer, Slurm)
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "setup: $*" >&2; exit 1; }

packages=(g++ ninja-build ccache pkg-config python3-venv libopenmpi-dev openmpi-bin libsentencepiece-dev
          nlohmann-json3-dev libspdlog-dev libcli11-dev libgtest-dev)
# libpmix-dev: Slurm's PMIx plug-in opens the unversioned libpmix.so, which only the -dev package holds.
if [ "${1:-}" = --tests ]; then
  packages+=(clang clang-format libclang-rt-dev libpmix-dev munge slurm-client slurmctld slurmd
             slurmdbd mariadb-server)
fi

# PyPI's libtorch_cpu.so needs libcudart and libcupti even where there is no GPU. Of torch's other CUDA libraries
# (4.7 GB) the program needs none, the gpu preset included.
python_packages=('cmake==4.4.*' 'numpy==2.*')
# A torch of the caller's choosing is used as it is.
if [ -z "${PIPEINFER_TORCH_ROOT:-}" ]; then
  python_packages+=('torch==2.11.0' 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cupti==13.0.*')
fi

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) || true
  [ "$status" = installed ] || missing+=("$package")
done

mkdir -p build
log=build/setup.log
: >"$log"

if [ ${#missing[@]} -gt 0 ]; then
  command -v apt-get >/dev/null || fail "needs apt-get (Debian 12) to install: ${missing[*]}"
  root=()
  if [ "$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null || fail "needs root, or sudo without a password, to install: ${missing[*]}"
    root=(sudo)
  fi
  echo "setup: installing ${missing[*]}"
  "${root[@]}" apt-get update -qq >>"$log" 2>&1 || fail "apt-get update failed, is a Debian mirror reachable? See $log"
  # Services that a package would start (Slurm's, munge's) are not wanted: the tests start their own.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' | "${root[@]}" install -m 755 /dev/stdin $policy
    trap '"${root[@]}" rm -f $policy' EXIT
  fi
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" \
    >>"$log" 2>&1 || fail "apt-get could not install ${missing[*]} (wanted: Debian 12 with its mirror): $(tail -n 1 "$log")"
fi

wanted="$(/usr/bin/python3 -V) ${python_packages[*]}"
stamp=build/venv/pipeinfer-setup
if [ "$(cat $stamp 2>/dev/null)" != "$wanted" ]; then
  echo "setup: installing ${python_packages[*]} in build/venv"
  /usr/bin/python3 -m venv build/venv >>"$log" 2>&1 || fail "python3 -m venv failed: $(tail -n 1 "$log")"
  # --no-deps: none of these needs another one to build or test with.
  build/venv/bin/pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps "${python_packages[@]}" \
    >>"$log" 2>&1 || fail "pip could not install ${python_packages[*]}, is PyPI reachable? See $log"
  echo "$wanted" >$stamp
fi
