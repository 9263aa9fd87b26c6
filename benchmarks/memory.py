"""What a training step's memory does with depth, length and batch, reversible and not; and how long a sequence may be.

Planned memory is what XLA's compiled program asks for: arguments, results and scratch. Nothing is allocated for it, so
that lengths which this machine could not hold can be planned too. The model is that of `train_step.py`. With
`--resident` every row is also run once, in a process of its own, for the most memory that the process held: with
Python and its libraries.

Command: python benchmarks/memory.py --resident
"""

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import record, train_step

NUM_LAYERS, LENGTH, BATCH_SIZE = 6, 4096, 1  # where they are not what varies
UNIT = 4096  # tokens; lengths that are searched are multiples of it
LONGEST = 2**24  # tokens; the search does not look further
TOLERANCE = 1.03  # how much too long the first length that does not fit may be


@functools.cache
def plan(num_layers: int, length: int, batch_size: int, reversible: bool) -> dict[str, int]:
    """Returns planned bytes."""
    config = train_step.make_config(length, num_layers=num_layers, reversible=reversible)
    # The plan is that of the program that `train_step.py` runs; machine code as slow as this is made ten times faster.
    compiled = train_step.compile_step(*train_step.abstract_step(config, batch_size), xla_backend_optimization_level=0)
    memory = compiled.memory_analysis()
    arrays = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return {"scratch": memory.temp_size_in_bytes, "planned": memory.temp_size_in_bytes + arrays}


def resident_bytes(num_layers: int, length: int, batch_size: int, reversible: bool) -> int:
    """Runs a step in this process, which should be a fresh one, and returns the most memory that it held."""
    config = train_step.make_config(length, num_layers=num_layers, reversible=reversible)
    step, arguments = train_step.make_step(config, batch_size)
    jax.block_until_ready(train_step.compile_step(step, arguments)(*arguments))
    return record.peak_resident_bytes()


def longest_fitting(planned_bytes: Callable[[int], int], budget: float) -> int | None:
    """Returns by bisection a number of tokens whose planned bytes fit, while 3 % more would not.

    Args:
      planned_bytes: of a length in tokens; grows with it.
      budget: bytes.

    Returns:
      A multiple of `UNIT`, at most `LONGEST`; None if not even `UNIT` fits.
    """
    if planned_bytes(UNIT) > budget:
        return None
    if planned_bytes(LONGEST) <= budget:
        return LONGEST
    fits, too_long = 1, LONGEST // UNIT
    while too_long - fits > 1 and too_long > TOLERANCE * fits:
        middle = min(max(round((fits * too_long) ** 0.5), fits + 1), too_long - 1)
        if planned_bytes(middle * UNIT) <= budget:
            fits = middle
        else:
            too_long = middle
    return fits * UNIT


def measure(sweep: str, resident: bool, **sizes) -> dict:
    """Returns a row in GB."""
    found = plan(**sizes)
    row = {"sweep": sweep, **sizes, **{f"{name}_gb": round(size / 1e9, 3) for name, size in found.items()}}
    if resident:
        row["peak_resident_gb"] = round(record.in_fresh_process(resident_bytes, **sizes) / 1e9, 2)
    return row


def report_sweeps(arguments: argparse.Namespace, origin: dict) -> None:
    """Measures, appends and prints every sweep, one size changed at a time."""
    usual = {"num_layers": NUM_LAYERS, "length": LENGTH, "batch_size": BATCH_SIZE}
    rows = []
    for sweep in usual:
        for size in getattr(arguments, sweep):
            for reversible in (True, False):
                sizes = usual | {sweep: size, "reversible": reversible}
                rows.append(measure(sweep, arguments.resident, **sizes))
                record.append("memory", rows[-1] | origin)
    print(record.markdown(list(rows[0]), [list(row.values()) for row in rows]))


def report_longest(budgets_gb: list[float], origin: dict) -> None:
    """Searches, appends and prints the longest sequences."""
    rows = []
    for reversible in (True, False):
        for budget in budgets_gb:
            length = longest_fitting(lambda n, kind=reversible: plan(NUM_LAYERS, n, 1, kind)["planned"], budget * 1e9)
            rows.append({"sweep": "longest", "reversible": reversible, "budget_gb": budget, "length": length})
            record.append("memory", rows[-1] | {"num_layers": NUM_LAYERS} | origin)
    print(f"\nThe longest sequence whose plan fits ({TOLERANCE - 1:.0%} more does not):\n")
    print(record.markdown(list(rows[0]), [list(row.values()) for row in rows]))


def main() -> None:
    """Plans, runs if asked to, prints tables and appends JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_layers", type=int, nargs="+", default=[2, 4, 6, 12, 24, 48])
    parser.add_argument("--length", type=int, nargs="+", default=[4096, 8192, 16_384, 32_768, 65_536])
    parser.add_argument("--batch_size", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--budgets_gb", type=float, nargs="*", default=[8, 16], help="none: no search")
    parser.add_argument("--resident", action="store_true", help="run a step of every size too")
    arguments = parser.parse_args()
    origin = record.provenance()
    report_sweeps(arguments, origin)
    if arguments.budgets_gb:
        report_longest(arguments.budgets_gb, origin)


if __name__ == "__main__":
    main()
