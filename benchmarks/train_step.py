"""One training step (loss and gradient, no optimizer): its time, speed, memory and compile time.

The model is that of trax's and Hugging Face's half-a-million-token examples: 6 layers local-lsh, embed 256, 2 heads
of 64, mlp 512, vocabulary 320, 1 hash, chunks of 64, ReLU.

Command: python benchmarks/train_step.py --length 4096 16384 65536 --dropout_rate 0 0.05
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import record
from reformer import ReformerConfig, ReformerLM, compiler_options
from reformer.models.flops import flops_per_token
from reformer.training import memory

CACHED_TOKENS = 4096  # whose operands of a product stay in cache


def make_config(length: int, **changes) -> ReformerConfig:
    """Returns the model for sequences of `length` tokens, with fields as in `changes`."""
    fields = {
        "vocab_size": 320,
        "max_length": length,
        "num_layers": 6,
        "embed_dim": 256,
        "mlp_dim": 512,
        "num_heads": 2,
        "head_dim": 64,
        "attention_pattern": ("local", "lsh"),
        "num_hashes": 1,
        "look_ahead": False,  # as in the examples, to compare with other libraries; `look_ahead.py` tells what it costs
        "activation": "relu",
        "axial_shape": record.axial_shape(length),
        "axial_dims": (64, 192),
    }
    return ReformerConfig(**(fields | changes))


def make_step(config: ReformerConfig, batch_size: int = 1) -> tuple[Callable, tuple]:
    """Returns a function of (params, tokens, rng) to (loss, gradients), not compiled, and arguments for it."""
    shape = (batch_size, config.max_length)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, config.vocab_size, shape, np.int32))
    params = jax.jit(ReformerLM(config).init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return make_gradient(config), (params, tokens, jax.random.key(1))


def abstract_step(config: ReformerConfig, batch_size: int = 1) -> tuple[Callable, tuple]:
    """Returns the function of `make_step`, and the shapes of its arguments: no arrays, whatever the length."""
    rng = jax.eval_shape(lambda: jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((batch_size, config.max_length), jnp.int32)
    params = jax.eval_shape(ReformerLM(config).init, rng, tokens)["params"]
    return make_gradient(config), (params, tokens, rng)


def make_gradient(config: ReformerConfig) -> Callable:
    """Returns a function of (params, tokens, rng) to the mean loss in nats and its gradient."""
    model = ReformerLM(config)

    def loss(params, tokens, rng):
        options = {"deterministic": False, "rngs": {"hash": rng, "dropout": rng}, "method": "loss"}
        nats, weight = model.apply({"params": params}, tokens, jnp.roll(tokens, -1, axis=1), **options)
        return nats / weight

    return jax.value_and_grad(loss)


def compile_step(step: Callable, arguments: tuple, **options):
    """Returns the compiled step, compiled as `train.py` compiles its own; `arguments` may be shapes."""
    return jax.jit(step, compiler_options=(compiler_options() or {}) | options).lower(*arguments).compile()


def matmul_rate(config: ReformerConfig, num_repeats: int = 9) -> float:
    """Returns FLOP/s of the feed-forward's matrix products on cached operands, as what this machine can do."""
    # On an accelerator a product of a chunk alone would measure the launch of a kernel.
    rows = min(config.max_length, CACHED_TOKENS if jax.default_backend() == "cpu" else 2**20)
    x = jax.random.normal(jax.random.key(0), (rows, config.embed_dim), config.dtype)
    w = jax.random.normal(jax.random.key(1), (config.embed_dim, config.mlp_dim), config.dtype)
    multiply = jax.jit(jnp.dot).lower(x, w).compile()
    multiply(x, w).block_until_ready()
    seconds = [record.seconds(lambda: multiply(x, w)) for _ in range(num_repeats)]
    return 2 * rows * config.embed_dim * config.mlp_dim / min(seconds)


def measure(length: int, num_steps: int, **changes) -> dict:
    """Measures one configuration in this process, which should be a fresh one: peak memory is the process's."""
    config = make_config(length, **changes)
    step, arguments = make_step(config)
    began = time.perf_counter()
    compiled = compile_step(step, arguments)
    compile_seconds = time.perf_counter() - began
    params, tokens, _ = arguments

    def run(i: int) -> float:
        rng, began = jax.random.key(i), time.perf_counter()
        result = jax.block_until_ready(compiled(params, tokens, rng))
        seconds = time.perf_counter() - began
        if not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(result)):
            raise FloatingPointError(f"step {i}: the loss {result[0]} or its gradient is not finite")
        return seconds

    first, *others = [run(i) for i in range(1 + num_steps)] if num_steps > 1 else [run(0)]
    median = statistics.median(others or [first])
    peak = memory.peak_bytes()
    rate = flops_per_token(config, length) * length / median
    return {
        "compile_seconds": round(compile_seconds, 1),
        "step_seconds": round(median, 3),
        "tokens_per_second": round(length / median),
        "gflops": round(rate / 1e9, 1),
        "share_of_matmul_rate": round(rate / matmul_rate(config), 3),
        "peak_gb": round(peak / 1e9, 2),
        "scratch_gb": round(compiled.memory_analysis().temp_size_in_bytes / 1e9, 3),
    }


def main() -> None:
    """Measures every combination, prints a table and appends JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, nargs="+", default=[4096, 16_384])
    parser.add_argument("--dropout_rate", type=float, nargs="+", default=[0.0, 0.05])
    parser.add_argument("--num_hashes", type=int, nargs="+", default=[1])
    parser.add_argument("--num_heads", type=int, default=2)
    parser.add_argument("--num_steps", type=int, default=5, help="timed steps after one to warm up; 1 = no warm-up")
    parser.add_argument("--not_reversible", action="store_true")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    origin = record.provenance()
    rows = []
    for length, rate, num_hashes in itertools.product(arguments.length, arguments.dropout_rate, arguments.num_hashes):
        changes = {
            "dropout_rate": rate,
            "num_hashes": num_hashes,
            "num_heads": arguments.num_heads,
            "reversible": not arguments.not_reversible,
            "dtype": arguments.dtype,
        }
        result = record.in_fresh_process(measure, length, arguments.num_steps, **changes)
        row = {"length": length, **changes, **result}
        record.append("train_step", row | origin)
        rows.append(row)
    print(record.markdown(list(rows[0]), [list(row.values()) for row in rows]))


if __name__ == "__main__":
    main()
