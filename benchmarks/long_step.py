"""One training step (loss and gradient) on a very long sequence: its time and its peak memory.

The model is that of trax's and Hugging Face's half-a-million-token examples: 6 layers local-lsh, embed 256, 2 heads
of 64, mlp 512, vocabulary 320, 1 hash, chunks of 64.

Command: python benchmarks/long_step.py --length 524288
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import record
from reformer import ReformerConfig, ReformerLM


def make_config(length: int, dropout_rate: float) -> ReformerConfig:
    """Returns the model for sequences of `length` tokens."""
    return ReformerConfig(
        vocab_size=320,
        max_length=length,
        num_layers=6,
        embed_dim=256,
        mlp_dim=512,
        num_heads=2,
        head_dim=64,
        attention_pattern=("local", "lsh"),
        num_hashes=1,
        axial_shape=(512, -(-length // 512)),
        axial_dims=(64, 192),
        dropout_rate=dropout_rate,
        mlp_chunk_length=16_384,
        loss_chunk_length=16_384,
    )


def measure(config: ReformerConfig, num_steps: int) -> dict:
    """Returns compile seconds, step seconds and peak resident gigabytes."""
    model = ReformerLM(config)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, config.max_length), np.int32)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]

    def loss(params, tokens, rng):
        options = {"deterministic": False, "rngs": {"hash": rng, "dropout": rng}, "method": "loss"}
        nats, weight = model.apply({"params": params}, tokens, jnp.roll(tokens, -1, axis=1), **options)
        return nats / weight

    started = time.perf_counter()
    step = jax.jit(jax.value_and_grad(loss)).lower(params, tokens, jax.random.key(0)).compile()
    compiled = time.perf_counter()
    seconds = []
    for i in range(num_steps):
        began = time.perf_counter()
        value, gradients = jax.block_until_ready(step(params, tokens, jax.random.key(i)))
        seconds.append(round(time.perf_counter() - began, 2))
        if not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves((value, gradients))):
            raise FloatingPointError(f"step {i}: loss {value} or its gradient is not finite")
    return {
        "compile_seconds": round(compiled - started, 1),
        "step_seconds": seconds,
        "loss_nats": round(float(value), 4),
        "peak_resident_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "temp_gb": round(step.memory_analysis().temp_size_in_bytes / 1e9, 2),
    }


def main() -> None:
    """Measures, prints and appends one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=524_288)
    parser.add_argument("--dropout_rate", type=float, default=0.05)
    parser.add_argument("--num_steps", type=int, default=1)
    arguments = parser.parse_args()
    origin = record.provenance()
    result = {
        "length": arguments.length,
        "dropout_rate": arguments.dropout_rate,
        **measure(make_config(arguments.length, arguments.dropout_rate), arguments.num_steps),
        **origin,
    }
    record.append("long_step", result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
