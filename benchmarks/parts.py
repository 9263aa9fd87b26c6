"""Where the time of a training step goes: every part of a layer by itself, with its share of the matrix-product rate.

Forward is what the forward pass runs; undo is what the reverse sweep runs: the value again, and all cotangents. The
parts take turns. The model is that of `train_step.py`.

Command: python benchmarks/parts.py --length 4096 65536
"""

import argparse
import functools
import statistics
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import record, train_step
from reformer import ReformerConfig, num_buckets
from reformer.layers.attention import Fixed
from reformer.layers.attention_residual import attention_residual
from reformer.layers.feed_forward import feed_forward_residual
from reformer.layers.kinds import KINDS
from reformer.ops import attention as ops
from reformer.ops import hashing, planned
from reformer.ops.plan import Arrays, Given

NUM_KEYS = 128  # that a query sees: two chunks


def make_parts(config: ReformerConfig) -> dict[str, tuple]:
    """Returns for every part a function, its arguments, and its matrix-product operations per token."""
    length, width = config.max_length, config.num_heads * config.head_dim
    params = train_step.make_step(config)[1][0]["stack"]
    params = jax.tree.map(lambda x: x[0], params)
    x, other = jax.random.normal(jax.random.key(0), (2, 1, length, config.embed_dim))
    seed = jnp.uint32(1) if config.dropout_rate else None
    parts: dict[str, tuple] = {}
    attention_flop = 4 * width * NUM_KEYS
    for i, kind in enumerate(config.attention_pattern):
        shape = (4, 1, config.num_heads, length, config.head_dim)
        projected, key, value, cotangent = jax.random.normal(jax.random.key(i), shape)
        factors = num_buckets(length, config)
        sizes = (config.num_heads, config.head_dim, config.num_hashes)
        rotations = hashing.draw_rotations(jax.random.key(2), *sizes, factors) if kind == "lsh" else None
        arrays = Arrays(projected, None if kind == "lsh" else key, value)
        order = ops.sort_by_hash(projected, rotations, factors) if kind == "lsh" else None
        seeds = None if seed is None else ops.dropout_seeds(seed, 1, config.num_heads)
        given, plan = Given(None, order, seeds), KINDS[kind].plan(config, length, seed is not None)
        fixed, residual = Fixed(None, rotations, seed), attention_residual(config, kind)
        of_layer = params[f"layer_{i}"]["attention"]
        linear = 2 * config.embed_dim * width * (3 if kind == "lsh" else 4)
        parts[f"{kind} attention"] = (lambda a, c, p=plan: planned.attend(p, a, c), (arrays, given), attention_flop)
        parts[f"{kind} attention with gradients"] = (
            lambda a, c, d, p=plan: planned.attend_with_gradients(p, a, c, d),
            (arrays, given, cotangent),
            3.5 * attention_flop,
        )
        if kind == "lsh":
            parts["hash and sort"] = (lambda q, r, f=factors: ops.sort_by_hash(q, r, f), (projected, rotations), 0)
        parts |= _layer_parts(f"{kind} layer", residual, of_layer, x, other, fixed, order, linear, attention_flop)
    residual, of_layer = feed_forward_residual(config), params["layer_0"]["feed_forward"]
    linear = 4 * config.embed_dim * config.mlp_dim
    return parts | _layer_parts("feed-forward", residual, of_layer, x, other, seed, (), linear, 0)


def _layer_parts(name, residual, params, x, other, fixed, saved, linear, attention) -> dict[str, tuple]:
    def forward(params, x, other):
        return residual.apply(params, x, other, (), fixed)[0]

    def undo(params, x, other, saved):
        return residual.undo(params, x, other, (), fixed, saved, other, x)[:3]

    return {
        f"{name}, forward": (forward, (params, x, other), linear + attention),
        f"{name}, undo": (undo, (params, x, other, saved), 3 * linear + 3.5 * attention),
    }


def measure(config: ReformerConfig, num_repeats: int) -> list[dict]:
    """Returns a row with the time and the rate of every part."""
    parts = make_parts(config)
    compiled = {name: train_step.compile_step(run, arguments) for name, (run, arguments, _) in parts.items()}
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(1 + num_repeats):
        for name, (_, arguments, _) in parts.items():
            seconds[name].append(record.seconds(functools.partial(compiled[name], *arguments)))
    peak = train_step.matmul_rate(config)
    rows = []
    for name, (_, _, flop) in parts.items():
        median = statistics.median(seconds[name][1:])
        rate = flop * config.max_length / median
        rows.append(
            {
                "length": config.max_length,
                "dropout_rate": config.dropout_rate,
                "part": name,
                "milliseconds": round(1e3 * median, 1),
                "gflops": round(rate / 1e9, 1),
                "share_of_matmul_rate": round(rate / peak, 2),
            }
        )
    return rows


def main() -> None:
    """Measures, prints a table and appends JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, nargs="+", default=[4096])
    parser.add_argument("--dropout_rate", type=float, default=0.0)
    parser.add_argument("--num_repeats", type=int, default=9)
    arguments = parser.parse_args()
    origin = record.provenance()
    rows = []
    for length in arguments.length:
        config = train_step.make_config(length, dropout_rate=arguments.dropout_rate)
        rows += measure(config, arguments.num_repeats)
    for row in rows:
        record.append("parts", row | origin)
    print(record.markdown(list(rows[0]), [list(row.values()) for row in rows]))


if __name__ == "__main__":
    main()
