#!/usr/bin/env bash
# Every test that needs no GPU, from a bare Debian 12 machine: the tests of the cpu build (Slurm's and the
# installed tree's among them), the same under the sanitizers, and short runs of the fuzzers.
source "$(dirname "$0")/lib.sh"

# Each test with one thread, and one test more than there are cores: many wait, for deadlines or for Slurm.
export OMP_NUM_THREADS=1
run_tests() { ctest --test-dir "build/$1" --output-on-failure --parallel $((jobs + 1)) "${@:2}"; }
export -f run_tests

# begin NAME COMMANDS: begins them as a process group, which ends with this script. Bash lets what it does not wait for
# ignore interrupts.
declare -A groups=()
begin() {
  env --default-signal=INT,QUIT setsid bash -c "source scripts/lib.sh; $2" &
  groups[$1]=$!
}
# beside NAME COMMANDS: begins them, into build/NAME.log, which is shown where the script fails.
beside() { begin "$1" "exec >build/$1.log 2>&1; $2"; }
end() {
  local status=$? name
  for name in "${!groups[@]}"; do
    kill -- "-${groups[$name]}" 2>/dev/null || true
    [ $status = 0 ] || [ "$name" = now ] || tail -n 200 "build/$name.log" | sed "s/^/$name: /"
  done
}
trap end EXIT
await() {
  wait "${groups[$1]}"
  unset "groups[$1]"
}
# now COMMANDS: begins them and waits, which a signal to this script ends.
now() {
  begin now "$1"
  await now
}

step "Set-up"
now 'scripts/setup.sh --tests'

step "Build: cpu"
now 'build cpu'

# What the tests leave of the cores builds the rest.
step "Build: asan, tsan, fuzz (at low priority, into build/sanitizers.log)"
beside sanitizers 'renice -n 19 $$ >/dev/null
  build tsan test_pipeline test_sched test_comm planted && build asan && build fuzz fuzzers'

step "Test: cpu"
now 'run_tests cpu -LE gpu'

step "Wait for the builds"
await sanitizers

step "Test: address and undefined-behaviour sanitizers; beside it thread sanitizer, without LibTorch, and fuzzers"
beside tsan "run_tests tsan -L '^(pipeline|sched|comm|sanitizers)$'"
beside fuzz 'scripts/soak.sh 20 0'
now "run_tests asan -LE '^(gpu|slurm|install|layering|scripts)$'"
for name in tsan fuzz; do
  await $name
  cat build/$name.log
done

step "All tests passed"
