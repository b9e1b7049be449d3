#!/usr/bin/env bash
# Feeds each reader of untrusted bytes (tests/fuzz) to libFuzzer, all at once, under the address and
# undefined-behaviour sanitizers.
# usage: scripts/soak.sh [SECONDS]     600 unless given
# Inputs that reach new code are kept in build/fuzz/corpus: the next run starts from them.
source "$(dirname "$0")/lib.sh"
seconds=${1:-600}

scripts/setup.sh --tests
names=()
for source in tests/fuzz/fuzz_*.cpp; do names+=("$(basename "$source" .cpp)"); done
build fuzz "${names[@]}"

step "${names[*]}: $seconds s"
cd build/fuzz
jobs=()
for fuzzer in "${names[@]}"; do
  name=${fuzzer#fuzz_}
  mkdir -p "corpus/$name"
  options=(-max_total_time="$seconds" -timeout=10 -print_final_stats=1 -artifact_prefix="$PWD/$name-")
  if [ -e "$project/tests/fuzz/$name.dict" ]; then options+=(-dict="$project/tests/fuzz/$name.dict"); fi
  "./$fuzzer" "${options[@]}" "corpus/$name" "$project/tests/fuzz/corpus/$name" >"$fuzzer.log" 2>&1 &
  jobs+=($!)
done
failed=0
for i in "${!names[@]}"; do
  log=${names[i]}.log
  if wait "${jobs[i]}"; then
    echo "${names[i]}: clean, $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") runs"
  else
    failed=1
    echo "${names[i]}: FAILED, see build/fuzz/$log"
    tail -n 40 "$log"
  fi
done
exit $failed
