#!/usr/bin/env bash
# Every test that needs no GPU, from a bare Debian 12 machine: the tests of the cpu build (Slurm's and the
# installed tree's among them), the same under the sanitizers, and short runs of the fuzzers.
source "$(dirname "$0")/lib.sh"

step "Set-up"
scripts/setup.sh --tests

step "Build and test: cpu"
build cpu
ctest --test-dir build/cpu --output-on-failure -LE gpu

step "Build and test: thread sanitizer, without LibTorch"
build tsan test_pipeline test_sched test_comm planted
ctest --test-dir build/tsan --output-on-failure -L '^(pipeline|sched|comm|sanitizers)$'

step "Build and test: address and undefined-behaviour sanitizers"
build asan
ctest --test-dir build/asan --output-on-failure -LE '^(gpu|slurm|install|layering|scripts)$'

step "Fuzzers"
scripts/soak.sh 20 0

step "All tests passed"
