#!/usr/bin/env bash
# Every test that needs no GPU, from a bare Debian 12 machine: the tests of the cpu build (Slurm's and the
# installed tree's among them), the same under the sanitizers, and short runs of the fuzzers.
source "$(dirname "$0")/lib.sh"

# Each test with one thread, and one test more than there are cores: many wait, for deadlines or for Slurm.
export OMP_NUM_THREADS=1
run_tests() { ctest --test-dir "build/$1" --output-on-failure --parallel $((jobs + 1)) "${@:2}"; }
export -f run_tests

# beside NAME COMMANDS: begins them, into build/NAME.log. Each is a process group, which ends with this script, and
# shows its log where the script fails.
declare -A groups=()
beside() {
  setsid bash -c "source scripts/lib.sh; $2" >"build/$1.log" 2>&1 &
  groups[$1]=$!
}
end() {
  local status=$? name
  for name in "${!groups[@]}"; do
    kill -- "-${groups[$name]}" 2>/dev/null || true
    [ $status = 0 ] || tail -n 200 "build/$name.log" | sed "s/^/$name: /"
  done
}
trap end EXIT
await() {
  wait "${groups[$1]}"
  unset "groups[$1]"
}

step "Set-up"
scripts/setup.sh --tests

step "Build: cpu"
build cpu

# What the tests leave of the cores builds the rest.
step "Build: asan, tsan, fuzz (at low priority, into build/sanitizers.log)"
beside sanitizers 'renice -n 19 $$ >/dev/null
  build tsan test_pipeline test_sched test_comm planted && build asan && build fuzz fuzzers'

step "Test: cpu"
run_tests cpu -LE gpu

step "Wait for the builds"
await sanitizers

step "Test: address and undefined-behaviour sanitizers; beside it thread sanitizer, without LibTorch, and fuzzers"
beside tsan "run_tests tsan -L '^(pipeline|sched|comm|sanitizers)$'"
beside fuzz 'scripts/soak.sh 20 0'
run_tests asan -LE '^(gpu|slurm|install|layering|scripts)$'
for name in tsan fuzz; do
  await $name
  cat build/$name.log
done

step "All tests passed"
