#!/usr/bin/env bash
# What only a machine with GPUs can show, in parts of a few minutes each. Such a machine may be bare and without a
# network: it needs the CUDA toolkit, g++, cmake, ninja, and a python3 with torch.
# usage: scripts/gpu_check.sh pack                    (where there is a network) Debian's packages to build/gpu-packages
#        scripts/gpu_check.sh build|tests|equality... (where there are GPUs) unpacks them if MPI is missing
source "$(dirname "$0")/lib.sh"
packages=build/gpu-packages
# The packages below leave out what one machine needs no MPI for: a remote shell, and InfiniBand's libraries.
export OMPI_MCA_plm_rsh_agent=sh OMPI_MCA_mtl=^ofi,psm,psm2
gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c GPU || true)

pack() {
  mkdir -p $packages
  (cd $packages && rm -f ./*.deb && apt-get download -qq \
    pkg-config pkgconf pkgconf-bin libpkgconf3 openmpi-bin openmpi-common libopenmpi3 libopenmpi-dev libpmix2 \
    libhwloc15 libevent-core-2.1-7 libevent-pthreads-2.1-7 libmunge2 libucx0 libfabric1 libibverbs1 librdmacm1 \
    libnl-3-200 libnl-route-3-200 libnuma1 libltdl7 zlib1g libsentencepiece0 \
    libsentencepiece-dev libprotobuf-lite32 nlohmann-json3-dev libspdlog1.10 libspdlog-dev libfmt9 libfmt-dev \
    libcli11-dev libgtest-dev googletest)
  du -sh $packages
}

unpack() {
  ! command -v mpirun >/dev/null || return 0
  local archive
  for archive in "$packages"/*.deb; do
    # Never over a file that is there: the machine's own libraries may be newer.
    dpkg-deb --fsys-tarfile "$archive" | tar -C / -x --skip-old-files --keep-directory-symlink
  done
  # What these packages' scripts would link.
  local program
  for program in mpirun mpicc mpicxx; do ln -sf "$program.openmpi" "/usr/bin/$program"; done
  ldconfig
}

part_build() {
  unpack
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  # Its python3's torch, and the NCCL that came with it.
  PIPEINFER_TORCH_ROOT=$(python3 -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])')
  build gpu
  build/gpu/pipeinfer --version
}

part_tests() { ctest --test-dir build/gpu --output-on-failure -L gpu; }

# same A B: the token ids of two output folders, prompt by prompt.
same() {
  python3 - "$@" <<'EOF'
import json
import sys

a, b = ([json.loads(line) for line in open(f"{folder}/completions.jsonl", encoding="utf-8")] for folder in sys.argv[1:])
assert [x["id"] for x in a] == [x["id"] for x in b], "not the same prompts"
split = {x["id"]: next(i for i, (p, q) in enumerate(zip(x["token_ids"] + [-1], y["token_ids"] + [-1])) if p != q)
         for x, y in zip(a, b) if x["token_ids"] != y["token_ids"]}
print(f"{len(a) - len(split)} of {len(a)} completions are equal; the first difference of the others: {split}")
EOF
}

part_equality() {
  local run=(build/gpu/pipeinfer run --config configs/demo.json --overwrite)
  "${run[@]}" --device cpu --output-dir build/gpu-cpu
  "${run[@]}" --device cuda --dtype fp32 --output-dir build/gpu-1
  same build/gpu-cpu build/gpu-1
  if [ "$gpus" -gt 1 ]; then
    mpirun -n "$gpus" "${run[@]}" --device cuda --dtype fp32 --output-dir "build/gpu-$gpus"
    same build/gpu-1 "build/gpu-$gpus"
  fi
}

if [ $# = 0 ]; then set -- build tests equality; fi
for part in "$@"; do
  step "$part"
  case $part in
    pack) pack ;;
    build | tests | equality) "part_$part" ;;
    *) echo "gpu_check.sh: no part is called $part: pack, build, tests, equality" >&2; exit 2 ;;
  esac
done
