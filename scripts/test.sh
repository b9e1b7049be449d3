#!/usr/bin/env bash
# Every test that needs no GPU, from a bare Debian 12 machine: the tests of the cpu build (Slurm's and the
# installed tree's among them), the same under the sanitizers, and short runs of the fuzzers.
source "$(dirname "$0")/lib.sh"

# Each test with one thread, and one test more than there are cores: many wait, for deadlines or for Slurm.
export OMP_NUM_THREADS=1
run_tests() { ctest --test-dir "build/$1" --output-on-failure --parallel $((jobs + 1)) "${@:2}"; }

step "Set-up"
scripts/setup.sh --tests

step "Build: cpu"
build cpu

# What the tests leave of the cores builds the rest: a process group of its own, so that it ends with this script.
step "Build: asan, tsan, fuzz (at low priority, into build/sanitizers.log)"
setsid nice -n 19 bash -c 'source scripts/lib.sh
  build tsan test_pipeline test_sched test_comm planted && build asan && build fuzz fuzzers' >build/sanitizers.log 2>&1 &
builds=$!
trap 'kill -- -$builds 2>/dev/null || true' EXIT

step "Test: cpu"
run_tests cpu -LE gpu

step "Wait for the builds"
wait $builds || { tail -n 60 build/sanitizers.log; exit 1; }
trap - EXIT

step "Test: address and undefined-behaviour sanitizers; beside it thread sanitizer, without LibTorch, and fuzzers"
run_tests tsan -L '^(pipeline|sched|comm|sanitizers)$' >build/tsan-tests.log 2>&1 &
tsan=$!
scripts/soak.sh 20 0 >build/fuzz.log 2>&1 &
fuzzers=$!
run_tests asan -LE '^(gpu|slurm|install|layering|scripts)$'
for beside in "$tsan build/tsan-tests.log" "$fuzzers build/fuzz.log"; do
  read -r job log <<<"$beside"
  wait "$job" && failed=0 || failed=1
  cat "$log"
  [ $failed = 0 ] || exit 1
done

step "All tests passed"
