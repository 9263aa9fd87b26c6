"""Compiles attention alone for devices that are not there: bytes per token and head, registers and spills.

Output and all cotangents of one layer whose order is given: hashing and sorting are not in the figures. Nothing is
executed; bytes are estimates, and the time is theirs at the rate of the memory. What a program of the kernel reads
around its own tile does not count: the program next to it reads the same at about the same time, from the cache.

Command: make bench-aot, or
  .venv-aot-gpu/bin/python benchmarks/aot_attention.py --chunk_length 64 128 256 --head_dim 64 128
"""

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import aot, record, targets
from benchmarks.targets import TARGETS


def main() -> None:
    """Compiles every combination of the given sizes, prints a table and appends a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=TARGETS, default="h100")
    parser.add_argument("--implementation", default="pallas")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--length", type=int, default=2**16)
    parser.add_argument("--num_heads", type=int, default=16)
    parser.add_argument("--num_hashes", type=int, nargs="+", default=[8], help="0 = local attention")
    parser.add_argument("--chunk_length", type=int, nargs="+", default=[64])
    parser.add_argument("--head_dim", type=int, nargs="+", default=[64])
    arguments = parser.parse_args()
    fixed = {name: getattr(arguments, name) for name in ("implementation", "dtype", "length", "num_heads")}
    axes = {name: getattr(arguments, name) for name in ("num_hashes", "chunk_length", "head_dim")}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        aot.prepare(arguments.target, Path(folder))
        origin = record.provenance()
        for values in itertools.product(*axes.values()):
            sizes = fixed | dict(zip(axes, values, strict=True))
            rows.append({"target": arguments.target, "attention": sizes, **measure(arguments.target, sizes, folder)})
            record.append("aot", rows[-1] | origin)
    print(report(rows))


def measure(target: str, sizes: dict[str, Any], folder: str) -> dict[str, Any]:
    """Compiles attention of the given sizes.

    Returns:
      `bytes` and `ns` for each token and head, and what `aot.measure` tells of whole steps; or `error`.
    """
    import jax

    for file in Path(folder).iterdir():  # of the sizes before
        file.unlink()
    began = time.monotonic()
    try:
        compiled = lower(target, sizes).compile(aot.compiler_options(target))
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        return {"error": str(error).splitlines()[0]}
    seconds = round(time.monotonic() - began, 1)
    row = {"compile_seconds": seconds} | aot.describe(compiled, compiled.as_text(), target, Path(folder))
    num_bytes = row["gb"] * 1e9 / (sizes["length"] * sizes["num_heads"])
    return {"bytes": round(num_bytes), "ns": round(1e9 * num_bytes / TARGETS[target].bytes_per_second, 2), **row}


def lower(target: str, sizes: dict[str, Any]) -> Any:
    """Returns output and cotangents of causal attention with one chunk before, as JAX hands them to the compiler."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from reformer.ops.masking import Rule
    from reformer.ops.plan import Arrays, Given, Order
    from reformer.ops.planned import attend_with_gradients, chunked_plan

    mesh = Mesh(targets.devices(target, 1), ("devices",), axis_types=(AxisType.Auto,))
    on_device = NamedSharding(mesh, PartitionSpec())
    rows = (1, sizes["num_heads"])

    def array(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=on_device)

    vectors = array((*rows, sizes["length"], sizes["head_dim"]), jnp.dtype(sizes["dtype"]))
    rounds = sizes["num_hashes"]
    given = Given(order=Order(array((*rows, rounds, sizes["length"]), jnp.int32)) if rounds else None)

    def run(query, value, given, out_gradient):
        rule = Rule(causal=True, shared=True, before=1)
        plan = chunked_plan(query.shape[2], sizes["chunk_length"], rule, implementation=sizes["implementation"])
        return attend_with_gradients(plan, Arrays(query, None, value), given, out_gradient)

    with jax.set_mesh(mesh):
        return jax.jit(run, out_shardings=on_device).lower(vectors, vectors, given, vectors)


def report(rows: list[dict[str, Any]]) -> str:
    """Returns a table, a line for each compiled program."""
    header = ["rounds", "chunk", "head_dim", "bytes (estimate)", "ns (estimate)", "scratch GiB", "kernels"]
    header.append("Pallas kernel: registers / spilled bytes / shared KB / threads")
    lines = []
    for row in rows:
        sizes = [row["attention"][name] for name in ("num_hashes", "chunk_length", "head_dim")]
        if "error" in row:
            lines.append([*sizes, *[""] * 4, row["error"]])
            continue
        kernels = [
            f"{x['kernel']} {x['registers']} / {x['spilled_bytes']} / {x['shared_bytes'] >> 10} / {x['threads']}"
            for x in row["pallas_kernels"]
        ]
        lines.append([*sizes, row["bytes"], row["ns"], row["scratch_gib"], row["kernels"], ", ".join(kernels)])
    return record.markdown(header, lines)


if __name__ == "__main__":
    main()
