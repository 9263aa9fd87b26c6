#!/usr/bin/env bash
# What to measure where a GPU is available; results are appended to benchmarks/results/.
set -euo pipefail
cd "$(dirname "$0")/.."
for length in 65536 524288 1048576; do
  python benchmarks/long_step.py --length "$length" --num_steps 5
done
