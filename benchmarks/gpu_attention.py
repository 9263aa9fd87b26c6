"""LSH attention on a GPU, plain and by the fused kernel, beside cuDNN's: errors, times, programs, a layer.

Everything is bfloat16 and causal, with 16 heads of 64, chunks of 64 and one chunk before; times are those of the whole
operation, hashing and sorting included, in nanoseconds per token and head.

Command: python benchmarks/gpu_attention.py
"""

import argparse
import functools
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import record, train_step
from reformer import lsh_attention
from reformer.ops import attention, hashing, planned
from reformer.ops.masking import Rule
from reformer.ops.plan import Arrays, Given
from reformer.ops.planned import IMPLEMENTATIONS, chunked_plan
from reformer.training import memory

HEAD_DIM, CHUNK_LENGTH = 64, 64
LENGTHS = [2**13, 2**14, 2**15, 2**16, 2**18, 2**20]
LAYER_LENGTH = 2**20
LONGEST_FLASH_STEP, LONGEST_FLASH, LONGEST_XLA = 2**16, 2**18, 2**13  # quadratic: seconds per call beyond these


def make_inputs(length: int, num_heads: int, dtype=jnp.bfloat16) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns random query (or query-key), key, value and cotangent [1, length, num_heads, head_dim]."""
    keys = jax.random.split(jax.random.key(length), 4)
    query, key, value, cotangent = (jax.random.normal(k, (1, length, num_heads, HEAD_DIM), dtype) for k in keys)
    return query, key, value, cotangent


def lsh(length: int, num_heads: int, num_hashes: int, implementation: str) -> Callable:
    """Returns LSH attention as a function of query, key (unused) and value."""
    factors = hashing.choose_num_buckets(length, CHUNK_LENGTH)
    rotations = hashing.draw_rotations(jax.random.key(0), num_heads, HEAD_DIM, num_hashes, factors)
    options: dict[str, Any] = {"num_buckets": factors, "chunk_length": CHUNK_LENGTH, "implementation": implementation}
    return lambda query, key, value: lsh_attention(query, value, rotations=rotations, **options)


def flash(implementation: str) -> Callable:
    """Returns JAX's full attention."""
    return functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation=implementation)


def forward_and_backward(op: Callable) -> Callable:
    """Returns a function of query, key, value and cotangent to the output and all cotangents."""

    def run(query, key, value, cotangent):
        out, transpose = jax.vjp(op, query, key, value)
        return out, transpose(cotangent)

    return run


# Errors


def errors(length: int) -> list[list[str]]:
    """Returns rows: implementation, type, and the largest error over the largest value of output and cotangents."""
    rows = []
    for dtype in (jnp.float32, jnp.bfloat16):
        query, _, value, cotangent = (jnp.swapaxes(x, 1, 2) for x in make_inputs(length, 2, dtype))
        factors = hashing.choose_num_buckets(length, CHUNK_LENGTH)
        rotations = hashing.draw_rotations(jax.random.key(0), 2, HEAD_DIM, 2, factors)
        given = Given(order=attention.sort_by_hash(query, rotations, factors))

        def run(implementation, query, value, cotangent, given):
            rule = Rule(causal=True, shared=True, before=1)
            plan = chunked_plan(query.shape[2], CHUNK_LENGTH, rule, implementation=implementation)
            return planned.attend_with_gradients(plan, Arrays(query, None, value), given, cotangent)

        run = jax.jit(run, static_argnums=0)
        arguments = (query, value, cotangent, given)
        found = {name: jax.device_get(run(name, *arguments)) for name in IMPLEMENTATIONS}
        with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
            host = jax.tree.map(np.asarray, arguments)
            exact = jax.device_get(run("plain", *(x.astype(np.float64) for x in host[:3]), host[3]))
        rows += [[name, jnp.dtype(dtype).name, *map(_format, _errors(tree, exact))] for name, tree in found.items()]
    return rows


def _errors(tree, exact) -> list[float]:
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(exact), strict=True)
    return [float(np.max(np.abs(x.astype(np.float64) - y)) / np.max(np.abs(y))) for x, y in pairs]


def _format(x: float | None) -> str:
    return "" if x is None else f"{x:.3g}"


# Times


def nanoseconds(function: Callable, arguments: tuple, num_repeats: int) -> float | None:
    """Returns the median time of a call per token and head; None where memory does not suffice."""
    try:
        compiled = jax.jit(function).lower(*arguments).compile()
        jax.block_until_ready(compiled(*arguments))
        seconds = [record.seconds(lambda: compiled(*arguments)) for _ in range(num_repeats)]
    except jax.errors.JaxRuntimeError as error:
        if not memory.is_exhausted(error):
            raise
        return None
    _, length, num_heads, _ = arguments[0].shape
    return statistics.median(seconds) * 1e9 / (length * num_heads)


def time_op(name: str, op: Callable, arguments: tuple, num_repeats: int, with_step: bool = True) -> dict[str, Any]:
    """Returns a row of the table of times."""
    return {
        "attention": name,
        "length": arguments[0].shape[1],
        "forward_ns": nanoseconds(op, arguments[:3], num_repeats),
        "step_ns": nanoseconds(forward_and_backward(op), arguments, num_repeats) if with_step else None,
    }


def times(length: int, num_heads: int, num_hashes: list[int], num_repeats: int, has_gpu: bool) -> list[dict[str, Any]]:
    """Returns rows for one length: full attention first, then LSH attention with its speed relative to cuDNN's."""
    arguments, rows = make_inputs(length, num_heads), []
    if has_gpu and length <= LONGEST_FLASH:
        rows.append(time_op("cudnn", flash("cudnn"), arguments, num_repeats, length <= LONGEST_FLASH_STEP))
    bar = rows[0] if rows else {"forward_ns": None, "step_ns": None}
    if length <= LONGEST_XLA:
        rows.append(time_op("xla", flash("xla"), arguments, num_repeats))
    for rounds in num_hashes:
        for name in IMPLEMENTATIONS:
            op = lsh(length, num_heads, rounds, name)
            rows.append(time_op(f"{name} R={rounds}", op, arguments, num_repeats))
    for row in rows:
        for kind in ("forward", "step"):
            known = bar[f"{kind}_ns"] and row[f"{kind}_ns"]
            row[f"{kind}_speedup"] = bar[f"{kind}_ns"] / row[f"{kind}_ns"] if known else None
    return rows


def crossovers(rows: list[dict[str, Any]]) -> list[list[Any]]:
    """Returns, for every kind of LSH attention, the shortest length at which it is faster than cuDNN."""

    def first(name: str, kind: str):
        found = [row["length"] for row in rows if row["attention"] == name and (row[f"{kind}_speedup"] or 0) > 1]
        return min(found, default="none measured")

    names = dict.fromkeys(row["attention"] for row in rows if "R=" in row["attention"])
    return [[name, first(name, "forward"), first(name, "step")] for name in names]


# Programs


def program_facts(length: int, num_heads: int, implementation: str) -> list[str]:
    """Returns whether the compiled gradient sorts by CUB's radix sort, and whether a scatter of it adds."""
    op = forward_and_backward(lsh(length, num_heads, 4, implementation))
    program = jax.jit(op).lower(*make_inputs(length, num_heads)).compile().as_text()
    combiners = re.findall(r" scatter\(.*to_apply=(%?[\w.-]+)", program)
    bodies = [re.search(re.escape(name) + r" \(.*?\n}", program, re.DOTALL) for name in combiners]
    adds = any(" add(" in body.group() for body in bodies if body)
    return [implementation, "yes" if "__cub$DeviceRadixSort" in program else "no", "yes" if adds else "no"]


# A layer


def layer(length: int, num_heads: int, num_hashes: int, num_steps: int, implementation: str) -> dict[str, Any]:
    """Returns time and memory of a step (loss and gradient) of a model of one LSH layer and its feed-forward."""
    width = num_heads * HEAD_DIM
    config = train_step.make_config(
        length,
        num_layers=1,
        attention_pattern=("lsh",),
        num_hashes=num_hashes,
        embed_dim=width,
        mlp_dim=4 * width,
        num_heads=num_heads,
        axial_dims=(width // 4, width - width // 4),
        dtype="bfloat16",
        attention_implementation=implementation,
    )
    step, arguments = train_step.make_step(config)
    compiled = jax.jit(step).lower(*arguments).compile()
    jax.block_until_ready(compiled(*arguments))
    seconds = [record.seconds(lambda: compiled(*arguments)) for _ in range(num_steps)]
    scratch = compiled.memory_analysis().temp_size_in_bytes
    return {
        "attention": f"{implementation} R={num_hashes}",
        "layer_length": length,
        "layer_step_seconds": round(statistics.median(seconds), 4),
        "scratch_gb": round(scratch / 1e9, 2),
    }


def main() -> None:
    """Prints the tables, and appends the rows as JSON lines if there is a GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--layer_length", type=int, default=LAYER_LENGTH)
    parser.add_argument("--num_hashes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--num_heads", type=int, default=16)
    parser.add_argument("--num_repeats", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="run without a GPU; with --lengths 256, say")
    arguments = parser.parse_args()
    has_gpu = jax.default_backend() == "gpu"
    if not (has_gpu or arguments.smoke):
        sys.exit(
            "There is no GPU here, and these times mean nothing elsewhere; --smoke --lengths 256 tries the script."
        )
    origin = record.provenance()
    shortest, num_heads = min(arguments.lengths), arguments.num_heads

    def keep(row: dict[str, Any]) -> None:
        if has_gpu:
            record.append("gpu_attention", row | {"num_heads": num_heads} | origin)

    print("Largest error over largest value, against float64\n")
    print(
        record.markdown(
            ["attention", "type", "output", "gradient of query-key", "gradient of value"], errors(min(shortest, 1024))
        )
    )
    print("\nThe compiled gradient\n")
    facts = [program_facts(shortest, num_heads, name) for name in IMPLEMENTATIONS]
    print(record.markdown(["attention", "sorts by CUB's radix sort", "scatter-add"], facts))
    rows = []
    for length in arguments.lengths:
        of_length = times(length, num_heads, arguments.num_hashes, arguments.num_repeats, has_gpu)
        for row in of_length:
            keep(row)
        rows += of_length
    header = ["attention", "length", "forward_ns", "step_ns", "forward_speedup", "step_speedup"]
    print("\nNanoseconds per token and head (step = forward and backward), and speed relative to cuDNN\n")
    cells = [[row["attention"], row["length"], *(_format(row[name]) for name in header[2:])] for row in rows]
    print(record.markdown(header, cells))
    print("\nShortest length faster than cuDNN\n")
    print(record.markdown(["attention", "forward", "forward and backward"], crossovers(rows)))
    print("\nOne layer\n")
    layers = []
    for name in IMPLEMENTATIONS:
        rounds = max(arguments.num_hashes)
        layers.append(layer(arguments.layer_length, num_heads, rounds, arguments.num_repeats, name))
        keep(layers[-1])
    print(record.markdown(list(layers[0]), [list(row.values()) for row in layers]))


if __name__ == "__main__":
    main()
