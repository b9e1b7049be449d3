#!/usr/bin/env bash
# From a bare Debian 12 machine to generated text: installs what is missing, builds for the CPU, and lets two
# ranks complete the demo prompts with the demo model.
source "$(dirname "$0")/lib.sh"

step "Set-up"
scripts/setup.sh
step "Build"
build cpu pipeinfer
step "Two ranks, three layers each"
mpirun -n 2 build/cpu/pipeinfer run --config configs/demo.json --output-dir build/demo-run --overwrite

step "build/demo-run/completions.jsonl"
python3 - <<'EOF'
import json
import textwrap

with open("build/demo-run/completions.jsonl", encoding="utf-8") as lines:
    for record in map(json.loads, lines):
        print(f"\n[{record['id']}: {record['tokens_generated']} tokens, {record['finish_reason']}]")
        print(textwrap.fill(f"{record['prompt']} ...{record['completion']}", width=100))
EOF
