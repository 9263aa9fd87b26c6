"""What the matrix products of a training step would take by themselves: the floor under its time on a CPU.

Every product that the compiled step executes, by the shapes of its operands, as often as it does. It is timed in a loop
of its own on operands that stay in cache, alone and sixteen side by side, which keeps all cores busy where products are
small: the faster of the two counts.

Command: python benchmarks/products.py --length 4096 16384 65536
"""

import argparse
import collections
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import hlo, hlo_cost, record, train_step

_SIDE_BY_SIDE = (1, 16)  # XLA gives the operations of a loop of few to one thread, one after another
_SECONDS = 0.05  # that a timed loop should take, about


class Product(NamedTuple):
    """A matrix product: the sizes of its operands, the axes that are summed and those that are batches, operations."""

    left: tuple[int, ...]
    right: tuple[int, ...]
    contracting: tuple[tuple[int, ...], tuple[int, ...]]
    batch: tuple[tuple[int, ...], tuple[int, ...]]
    flops: float

    def run(self, left, right):
        """Computes it."""
        return jax.lax.dot_general(left, right, (self.contracting, self.batch))


def products(text: str) -> collections.Counter[Product]:
    """Returns how often a program, given as optimized HLO, executes each product."""
    module = hlo.parse(text)
    costs = hlo_cost.Costs(module)
    found: collections.Counter[Product] = collections.Counter()
    for launch in hlo.run(module).launches:
        instruction = launch.instruction
        if instruction.opcode != "dot":
            continue
        body = module.computations[launch.computation]
        left, right = (hlo.sizes(body[name].shape) for name in instruction.operands)
        axes = [
            _axes(instruction.attributes, f"{side}_{kind}_dims")
            for kind in ("contracting", "batch")
            for side in ("lhs", "rhs")
        ]
        cost = costs.of(launch.computation, instruction)
        flops = cost.flops + cost.flops32
        found[Product(left, right, (axes[0], axes[1]), (axes[2], axes[3]), flops)] += launch.times
    return found


def _axes(attributes: str, name: str) -> tuple[int, ...]:
    listed = re.search(rf"{name}=\{{([\d,]*)\}}", attributes)
    return tuple(int(axis) for axis in listed[1].split(",") if axis) if listed else ()


def seconds_of(product: Product, num_repeats: int) -> float:
    """Returns the time of one execution."""
    return min(_seconds(product, side_by_side, num_repeats) for side_by_side in _SIDE_BY_SIDE)


def _seconds(product: Product, side_by_side: int, num_repeats: int) -> float:
    """The time of one execution where several run side by side: the median of `num_repeats` loops."""
    operands = [
        (jax.random.normal(jax.random.key(i), product.left), jax.random.normal(jax.random.key(-i), product.right))
        for i in range(side_by_side)
    ]
    num_trips = max(2, int(_SECONDS * 1e11 / product.flops / side_by_side))

    def step(lefts, _):
        # Every trip depends on the one before it by a single number, written in place, so that none is left out.
        outs = [product.run(left, right) for left, (_, right) in zip(lefts, operands, strict=True)]
        first = (0,) * outs[0].ndim
        return [left.at[(0,) * left.ndim].set(out[first]) for left, out in zip(lefts, outs, strict=True)], None

    def loop(lefts):
        return jax.lax.scan(step, lefts, None, length=num_trips)[0]

    lefts = [left for left, _ in operands]
    compiled = train_step.compile_step(loop, (lefts,))
    return _median_seconds(lambda: compiled(lefts), num_repeats) / num_trips / side_by_side


def _median_seconds(run: Callable, num_repeats: int) -> float:
    """The median time of a call after one to warm up."""
    record.seconds(run)
    return statistics.median(record.seconds(run) for _ in range(num_repeats))


def measure(length: int, num_repeats: int) -> dict:
    """Returns the time of a step and that of its products alone."""
    config = train_step.make_config(length, dropout_rate=0.0)
    step, arguments = train_step.make_step(config)
    compiled = train_step.compile_step(step, arguments)
    counts = products(compiled.as_text())
    seconds = {product: count * seconds_of(product, num_repeats) for product, count in counts.items()}
    step_seconds = _median_seconds(lambda: compiled(*arguments), num_repeats)
    total = sum(seconds.values())
    flops = sum(product.flops * count for product, count in counts.items())
    return {
        "length": length,
        "step_seconds": round(step_seconds, 3),
        "products_seconds": round(total, 3),
        "share": round(total / step_seconds, 2),
        "gflop": round(flops / 1e9, 1),
        "gflops_of_products": round(flops / total / 1e9),
        "slowest": {
            f"{list(product.left)} x {list(product.right)} over {list(product.contracting[0])}": [
                counts[product],
                round(1e3 * seconds[product]),
                round(product.flops * counts[product] / seconds[product] / 1e9),
            ]
            for product in sorted(seconds, key=seconds.__getitem__, reverse=True)[:8]
        },
    }


def main() -> None:
    """Measures, prints a table and appends JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, nargs="+", default=[4096])
    parser.add_argument("--num_repeats", type=int, default=5)
    arguments = parser.parse_args()
    origin = record.provenance()
    rows = [record.in_fresh_process(measure, length, arguments.num_repeats) for length in arguments.length]
    for row in rows:
        record.append("products", row | origin)
    names = [name for name in rows[0] if name != "slowest"]
    print(record.markdown(names, [[row[name] for name in names] for row in rows]))
    for row in rows:
        table = [[shapes, *figures] for shapes, figures in row["slowest"].items()]
        print(f"\n{row['length']} tokens, the products that take longest:\n")
        print(record.markdown(["left x right, summed axes of left", "times", "ms", "GFLOP/s"], table))


if __name__ == "__main__":
    main()
