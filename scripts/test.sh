#!/usr/bin/env bash
# Every test that needs no GPU, from a bare Debian 12 machine: the tests of the cpu build (Slurm's and the
# installed tree's among them), the same under the sanitizers, and short runs of the fuzzers.
source "$(dirname "$0")/lib.sh"

# Tests side by side, each with one thread: more threads than cores wait for each other.
export OMP_NUM_THREADS=1
run_tests() { ctest --test-dir "build/$1" --output-on-failure --parallel "$jobs" "${@:2}"; }

step "Set-up"
scripts/setup.sh --tests

step "Build and test: cpu"
build cpu
run_tests cpu -LE gpu

step "Build and test: thread sanitizer, without LibTorch"
build tsan test_pipeline test_sched test_comm planted
run_tests tsan -L '^(pipeline|sched|comm|sanitizers)$'

step "Build and test: address and undefined-behaviour sanitizers"
build asan
run_tests asan -LE '^(gpu|slurm|install|layering|scripts)$'

step "Fuzzers"
scripts/soak.sh 20 0

step "All tests passed"
