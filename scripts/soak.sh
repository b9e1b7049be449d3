#!/usr/bin/env bash
# Feeds each reader of untrusted bytes (tests/fuzz) to libFuzzer, all at once, under the address and
# undefined-behaviour sanitizers; then kills and stops ranks at random and resumes the runs (tests/app/chaos.py).
# usage: scripts/soak.sh [SECONDS [ROUNDS]]     600 s of fuzzing and 50 rounds unless given
# Inputs that reach new code are kept in build/fuzz/corpus: the next run starts from them.
source "$(dirname "$0")/lib.sh"
seconds=${1:-600} rounds=${2:-50}

scripts/setup.sh --tests
names=()
for source in tests/fuzz/fuzz_*.cpp; do names+=("$(basename "$source" .cpp)"); done
build fuzz fuzzers

step "${names[*]}: $seconds s"
jobs=()
for fuzzer in "${names[@]}"; do
  name=${fuzzer#fuzz_}
  corpus=build/fuzz/corpus/$name
  mkdir -p "$corpus"
  options=(-max_total_time="$seconds" -timeout=10 -print_final_stats=1 -artifact_prefix="build/fuzz/$name-")
  if [ -e "$project/tests/fuzz/$name.dict" ]; then options+=(-dict="$project/tests/fuzz/$name.dict"); fi
  "build/fuzz/$fuzzer" "${options[@]}" "$corpus" "tests/fuzz/corpus/$name" >"build/fuzz/$fuzzer.log" 2>&1 &
  jobs+=($!)
done
failed=0
for i in "${!names[@]}"; do
  log=build/fuzz/${names[i]}.log
  if wait "${jobs[i]}"; then
    echo "${names[i]}: clean, $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") runs"
  else
    failed=1
    echo "${names[i]}: FAILED, see $log"
    tail -n 40 "$log"
  fi
done
[ "$rounds" -gt 0 ] || exit $failed

build cpu pipeinfer
step "Lost ranks: $rounds rounds"
python3 tests/app/chaos.py build/cpu/pipeinfer . --rounds "$rounds" | tee build/cpu/chaos.log
exit $failed
