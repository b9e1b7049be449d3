#!/usr/bin/env bash
# Feeds each reader of untrusted bytes to libFuzzer, under the address and undefined-behaviour sanitizers.
# usage: scripts/soak.sh [SECONDS]     for each fuzzer; 600 unless given
# What a fuzzer finds is kept in build/fuzz/corpus, and the next run goes on from there.
source "$(dirname "$0")/lib.sh"
seconds=${1:-600}

scripts/setup.sh --tests
build fuzz
for fuzzer in build/fuzz/fuzz_*; do
  [ -x "$fuzzer" ] && [ -f "$fuzzer" ] || continue
  name=$(basename "$fuzzer")
  step "$name, $seconds s"
  mkdir -p "build/fuzz/corpus/$name"
  seeds=()
  [ ! -d "tests/fuzz/$name" ] || seeds=("tests/fuzz/$name")
  "$fuzzer" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 -verbosity=0 \
    -artifact_prefix="build/fuzz/$name-" "build/fuzz/corpus/$name" "${seeds[@]}"
done
