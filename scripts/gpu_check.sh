#!/usr/bin/env bash
# What only a machine with GPUs can show, in parts of a few minutes each. Such a machine may be bare and without a
# network: it needs the CUDA toolkit, g++, cmake, ninja, and a python3 with torch.
# usage: scripts/gpu_check.sh pack                    (where there is a network) Debian's packages to build/gpu-packages
#        scripts/gpu_check.sh build|tests|equality|speed|scaling|faults...    (where there are GPUs) unpacks what is missing;
#                                                    figures go to build/gpu-results
source "$(dirname "$0")/lib.sh"
packages=build/gpu-packages
results=build/gpu-results
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

# Never over a file that is there: the machine's own libraries may be newer.
unpack() {
  local wanted=("$packages"/*.deb) archive
  if command -v mpirun >/dev/null; then wanted=("$packages"/libcli11-dev*.deb); fi
  for archive in "${wanted[@]}"; do
    [ -e "$archive" ] && dpkg-deb --fsys-tarfile "$archive" | tar -C / -x --skip-old-files --keep-directory-symlink
  done
  # What Open MPI's packages' scripts would link.
  local program
  for program in mpirun mpicc mpicxx; do
    command -v $program >/dev/null || ln -sf "$program.openmpi" "/usr/bin/$program"
  done
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

# A checkpoint of OpenLLaMA-3B's shape with random fp16 weights, outside the project: 7 GB.
model=${MODEL_3B:-/tmp/pipeinfer-openllama-3b}
make_model() {
  [ -e "$model/config.json" ] || python3 scripts/make_random_checkpoint.py openllama-3b "$model" --tokenizer demo
}

# over N COMMAND...: on N GPUs; where there is one, two ranks share it, with activations through the host.
over() {
  local ranks=$1
  shift
  if [ "$ranks" = 1 ]; then "$@"
  elif [ "$gpus" -ge "$ranks" ]; then mpirun -n "$ranks" "$@"
  else mpirun -n "$ranks" "$@" --transport mpi
  fi
}

part_equality() {
  mkdir -p $results
  step "equality: the demo model in fp32, on the CPU and on the GPU"
  grep -v temperature prompts/demo.jsonl >$results/demo-greedy.jsonl  # a reference run does not sample
  local demo=(build/gpu/pipeinfer run --config configs/demo.json --prompts $results/demo-greedy.jsonl --overwrite)
  "${demo[@]}" --device cpu --local-debug --output-dir $results/demo-cpu
  "${demo[@]}" --device cuda --precision fp32 --output-dir $results/demo-gpu
  python3 tests/gpu/compare_transformers.py tokens $results/demo-{cpu/reference,gpu/completions}.jsonl

  step "equality: 3B in fp16, 1, 2 and 4 stages and without graphs, with a reference run"
  make_model
  local big=(build/gpu/pipeinfer run --model "$model" --prompts prompts/prompts.jsonl --max-new-tokens 64 --overwrite)
  "${big[@]}" --local-debug --output-dir $results/3b-reference
  "${big[@]}" --output-dir $results/3b-1
  "${big[@]}" --no-cuda-graphs --reference-kernels --output-dir $results/3b-plain
  over 2 "${big[@]}" --output-dir $results/3b-2
  local runs=("$results"/3b-{1,plain,2}/completions.jsonl)
  if [ "$gpus" -ge 4 ]; then
    over 4 "${big[@]}" --output-dir $results/3b-4
    runs+=("$results/3b-4/completions.jsonl")
  fi
  python3 tests/gpu/compare_transformers.py tokens $results/3b-reference/reference.jsonl "${runs[@]}"

  step "equality: 3B, every logit with transformers in fp16 and fp32; through prefill, then through decode kernels"
  # The shortest prompts, up to some 3,000 positions.
  python3 - $results/3b-reference/reference.jsonl >$results/sequences.jsonl <<'EOF'
import json
import sys

lines = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
positions = 0
for line in sorted(lines, key=lambda line: len(line["prompt_token_ids"])):
    if positions < 3000:
        print(json.dumps({key: line[key] for key in ("prompt_token_ids", "token_ids")}))
    positions += len(line["prompt_token_ids"]) + len(line["token_ids"])
EOF
  local kernels
  for kernels in "--chunk 256 --batch 1" "--chunk 1 --batch 16"; do
    # shellcheck disable=SC2086
    build/gpu/teacher_force --model "$model" --sequences $results/sequences.jsonl --output $results/logits.bin $kernels
    python3 tests/gpu/compare_transformers.py logits "$model" $results/sequences.jsonl $results/logits.bin
    rm $results/logits.bin
  done
}

part_speed() {
  mkdir -p $results
  local bench=(build/gpu/pipeinfer bench --shape openllama-3b)
  "${bench[@]}" --batch-size 1,8,16,32,64 --prompt-tokens 128 --new-tokens 128 --json $results/speed.jsonl
  "${bench[@]}" --batch-size 128 --prompt-tokens 1024 --new-tokens 64 --json $results/speed-long.jsonl
  step "speed: kernel by kernel, and library products with plain kernels"
  "${bench[@]}" --no-cuda-graphs --batch-size 1,64 --prompt-tokens 128 --new-tokens 128 --json $results/no-graphs.jsonl
  "${bench[@]}" --no-cuda-graphs --reference-kernels --batch-size 1,64 --prompt-tokens 128 --new-tokens 128 \
    --json $results/plain.jsonl
  step "speed: transformers, eager and static cache"
  python3 tests/gpu/bench_transformers.py --batch-size 1,64 | tee $results/transformers.jsonl
  python3 tests/gpu/bench_transformers.py --batch-size 1,64 --mode static | tee -a $results/transformers.jsonl
  step "speed: the prompts of prompts/, batch 32, by pipeinfer and by transformers' static cache"
  make_model
  build/gpu/pipeinfer run --model "$model" --prompts prompts/prompts.jsonl --batch-size 32 --max-new-tokens 64 --ignore-eos \
    --overwrite --output-dir $results/mixed
  python3 tests/gpu/bench_transformers.py --lengths-of $results/mixed/completions.jsonl --batch-size 32 --new-tokens 64 \
    --mode static | tee -a $results/transformers.jsonl
  if [ -e build/gpu/libkernel_times.so ]; then
    step "speed: where a step's time goes"
    local work batch prompt
    for work in "1 128" "64 128" "128 1024"; do
      read -r batch prompt <<<"$work"
      CUDA_INJECTION64_PATH=$PWD/build/gpu/libkernel_times.so "${bench[@]}" --batch-size "$batch" --prompt-tokens "$prompt" \
        --new-tokens 64 | tee "$results/kernel-times-$batch.txt"
    done
  fi
}

part_scaling() {
  mkdir -p $results
  local n
  for n in 1 2 4; do
    if [ "$gpus" -lt $n ]; then
      echo "not run: $n GPUs (there are $gpus)"
      continue
    fi
    step "scaling: $n GPUs"
    over $n build/gpu/pipeinfer bench --shape openllama-3b --batch-size 128 --prompt-tokens 1024 --new-tokens 64 \
      --json $results/fixed-$n.jsonl
    over $n build/gpu/pipeinfer bench --shape openllama-3b --batch-size 1,$((64 * n)) --prompt-tokens 128 --new-tokens 128 \
      --json $results/growing-$n.jsonl
  done
  if [ "$gpus" -ge 2 ]; then
    step "scaling: 2 GPUs as if on two hosts"
    NCCL_P2P_DISABLE=1 NCCL_SHM_DISABLE=1 over 2 build/gpu/pipeinfer bench --shape openllama-3b --batch-size 128 \
      --prompt-tokens 128 --new-tokens 128 --json $results/sockets.jsonl
    over 2 build/gpu/pipeinfer bench --shape openllama-3b --batch-size 128 --prompt-tokens 128 --new-tokens 128 \
      --json $results/nvlink.jsonl
    step "scaling: a timeline of 2 GPUs"
    make_model
    over 2 build/gpu/pipeinfer run --model "$model" --prompts prompts/prompts.jsonl --batch-size 32 --max-new-tokens 64 \
      --ignore-eos --trace --overwrite --output-dir $results/timeline
    python3 scripts/plot_trace.py $results/timeline/trace.json $results/timeline.svg --begin-ms 60 --ms 100
  fi
}

# Two GPUs: many steps with lanes in flight, then lost ranks.
part_faults() {
  if [ "$gpus" -lt 2 ]; then
    echo "not run: 2 GPUs (there are $gpus)"
    return
  fi
  mkdir -p $results
  step "faults: 100,000 steps, three lanes on two GPUs, with the tokens of a reference run"
  local prompts=$results/stress-prompts.jsonl
  python3 -c '
import json
for i in range(450):
    print(json.dumps({"prompt_token_ids": [1] + [3 + (i * 7919 + j * j * 31) % 1997 for j in range(1 + i % 29)],
                      "max_new_tokens": 480, "ignore_eos": True}))' >$prompts
  local stress=(build/gpu/pipeinfer run --model configs/demo_model --precision fp32 --prompts $prompts --batch-size 6 --overwrite)
  "${stress[@]}" --local-debug --output-dir $results/stress-reference
  over 2 "${stress[@]}" --lanes 3 --output-dir $results/stress
  python3 tests/gpu/compare_transformers.py tokens $results/{stress-reference/reference,stress/completions}.jsonl
  python3 -c '
import json, sys
steps = json.load(open(sys.argv[1]))["steps"]
print(steps, "steps")
sys.exit(steps < 100000)' $results/stress/summary.json

  step "faults: ranks killed and stopped at random"
  python3 tests/app/chaos.py build/gpu/pipeinfer . --device cuda --ranks 2 --timeout-s 5 --rounds 8 --launcher mpirun recovery
}

if [ $# = 0 ]; then set -- build tests equality speed scaling faults; fi
for part in "$@"; do
  step "$part"
  case $part in
    pack) pack ;;
    build | tests | equality | speed | scaling | faults) "part_$part" ;;
    *) echo "gpu_check.sh: no part is called $part: pack, build, tests, equality, speed, scaling, faults" >&2; exit 2 ;;
  esac
done
