#!/usr/bin/env bash
# What to measure where a GPU is available; results are appended to benchmarks/results/.
#   benchmarks/gpu.sh [QUESTION ...]     train_step attention decode table2 text images; default: train_step
# DATA is a folder with enwik8_prefix (or any text under that name) and images64.npz; runs are kept under RUNS.
set -euo pipefail
cd "$(dirname "$0")/.."
DATA="${DATA:-../shared/data}"
RUNS="${RUNS:-runs/gpu}"

train_step() {
  python benchmarks/train_step.py --length 65536 524288 1048576 --dropout_rate 0 0.05
}

attention() { # errors, times beside cuDNN, what the program holds, one layer of a million tokens
  python benchmarks/gpu_attention.py
  python benchmarks/attention.py --sweep_length 65536
}

decode() {
  python benchmarks/decode.py
}

table2() { # 150,000 steps each as in the paper; a run that was interrupted continues
  python benchmarks/table2.py --preset paper --workdir "$RUNS/table2"
}

text() {
  python benchmarks/attention_kinds.py --config configs/text.py:small --workdir "$RUNS/text" \
    --config.data.path="$DATA/enwik8_prefix" --config.training.num_steps=3000
}

images() {
  python benchmarks/attention_kinds.py --config configs/imagenet64.py:small --workdir "$RUNS/images" \
    --config.data.name=images --config.data.path="$DATA/images64.npz" --config.training.num_steps=1000
}

for question in "${@:-train_step}"; do
  case "$question" in
    train_step | attention | decode | table2 | text | images) "$question" ;;
    *)
      echo "there is no question '$question'; choose from train_step attention decode table2 text images" >&2
      exit 1
      ;;
  esac
done
