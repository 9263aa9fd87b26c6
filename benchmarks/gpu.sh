#!/usr/bin/env bash
# What to measure where a GPU is available; results are appended to benchmarks/results/.
#   benchmarks/gpu.sh [QUESTION ...]     train_step attention decode table2 text long_range images paper resume; default: train_step
# DATA is a folder with enwik8_prefix (or any text under that name) and images64.npz; runs are kept under RUNS.
# PYTHON needs the requirements and JAX for the GPU: .venv/bin/pip install "jax[cuda12]".
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-.venv/bin/python}"
DATA="${DATA:-../shared/data}"
RUNS="${RUNS:-runs/gpu}"

train_step() {
  "$PYTHON" benchmarks/train_step.py --length 65536 524288 1048576 --dropout_rate 0 0.05
}

attention() { # errors, times beside cuDNN, what the program holds, one layer of a million tokens
  "$PYTHON" benchmarks/gpu_attention.py
  "$PYTHON" benchmarks/attention.py --sweep_length 65536
}

decode() {
  "$PYTHON" benchmarks/decode.py
}

table2() { # 150,000 steps each as in the paper; a run that was interrupted continues
  "$PYTHON" benchmarks/table2.py --preset paper --workdir "$RUNS/table2"
}

text() {
  "$PYTHON" benchmarks/long_range.py --config configs/text.py:small --workdir "$RUNS/text" --name long_range_gpu \
    --kinds lsh local_wide full paper_full --config.data.path="$DATA/enwik8_prefix" --config.training.num_steps=3000
}

long_range() { # the tables of docs/look_ahead.md on longer windows and for longer
  for length in 4k 8k 16k; do
    "$PYTHON" benchmarks/long_range.py --config "configs/recall.py:bytes_$length" --workdir "$RUNS/recall_$length" \
      --name long_range_gpu --seeds 0 1 2 --config.training.num_steps=5000 --config.training.batch_size=4
  done
}

images() {
  "$PYTHON" benchmarks/long_range.py --config configs/imagenet64.py:small --workdir "$RUNS/images" \
    --name long_range_gpu --kinds lsh local_wide paper_lsh \
    --config.data.name=images --config.data.path="$DATA/images64.npz" --config.training.num_steps=1000
}

paper() { # a 12-layer step of 65,536 tokens in bfloat16: tokens/s and memory in metrics.jsonl
  "$PYTHON" train.py --config=configs/enwik8.py:paper --workdir="$RUNS/paper" --config.data.name=text \
    --config.data.path="$DATA/enwik8_prefix" --config.model.dtype=bfloat16 --config.training.num_steps=30 \
    --config.training.log_every_steps=10 --config.evaluation.max_examples=1
}

resume() { # 65,536 tokens in bfloat16, killed after 90 seconds, continued
  local run=("$PYTHON" train.py --config=configs/enwik8.py:small --workdir="$RUNS/resume" --config.data.name=text
    --config.data.path="$DATA/enwik8_prefix" --config.model.dtype=bfloat16 --config.training.num_steps=300
    --config.training.log_every_steps=10 --config.checkpoint.every_steps=20 --config.evaluation.max_examples=2)
  timeout --signal=KILL 90 "${run[@]}" || true
  "${run[@]}"
}

"$PYTHON" -c 'import sys, jax; sys.exit(jax.default_backend() != "gpu" and "JAX sees no GPU: " + str(jax.devices()))'
for question in "${@:-train_step}"; do
  case "$question" in
    train_step | attention | decode | table2 | text | long_range | images | paper | resume) "$question" ;;
    *)
      echo "there is no question '$question'; choose from train_step attention decode table2 text long_range images paper resume" >&2
      exit 1
      ;;
  esac
done
