"""What one run of a compiled program launches, moves and computes, in numbers and with a roofline for its time."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from benchmarks import hlo, hlo_cost
from benchmarks.hlo import Instruction, Launch, Module
from benchmarks.hlo_cost import Cost
from benchmarks.targets import Target

SHORT_SECONDS = 3e-6
NUM_DEAREST = 12


def summarize(text: str, target: Target) -> dict[str, Any]:
    """Returns counts and estimates for one run of a program.

    A kernel takes the time of its bytes or of its matrix products at the rates of `target`, whichever is longer, and
    no less than a launch. The wires between devices have no such rate: collectives count what they move in memory.

    Args:
      text: Optimized HLO.
      target: The device that it is for.

    Returns:
      `kernels`, `loop_iterations`, `unknown_loops`, `short_kernels` (share), `gb`, `tflop`, `estimated_ms`,
      `scatter_adds`, `collectives`, `pallas_kernels` and `dearest`, the operations that take longest together.
    """
    module = hlo.parse(text)
    run, costs = hlo.run(module), hlo_cost.Costs(module)
    totals, groups = defaultdict(float), defaultdict(lambda: defaultdict(float))
    for launch in run.launches:
        number = hlo_cost.num_kernels(module, launch.instruction, target.platform == "cuda")
        row = _row(costs.of(launch.computation, launch.instruction), number, target)
        for name, value in row.items():
            totals[name] += launch.times * value
            groups[_source(launch.instruction)][name] += launch.times * value
    return {
        "kernels": int(totals["kernels"]),
        "loop_iterations": run.num_iterations,
        "unknown_loops": run.num_unknown_loops,
        "short_kernels": round(totals["short"] / max(1, totals["kernels"]), 3),
        "gb": round(totals["gb"], 2),
        "tflop": round(totals["tflop"], 3),
        "estimated_ms": round(totals["ms"], 2),
        "scatter_adds": _scatter_adds(module, run.launches),
        "collectives": _collectives(module, run.launches),
        "pallas_kernels": _pallas_kernels(run.launches),
        "dearest": _dearest(groups),
    }


def _row(cost: Cost, number: int, target: Target) -> dict[str, float]:
    products = cost.flops / target.flops_per_second
    products += cost.flops32 / (target.flops_per_second * target.float32_share)
    seconds = max(cost.bytes / target.bytes_per_second, products)
    return {
        "kernels": number,
        "short": number if seconds < number * SHORT_SECONDS else 0,
        "gb": cost.bytes / 1e9,
        "tflop": (cost.flops + cost.flops32) / 1e12,
        "ms": 1e3 * max(seconds, number * target.launch_seconds),
    }


def _source(instruction: Instruction) -> str:
    """Returns the operation of JAX that an instruction comes from, without what all have in common and numbers."""
    source = re.sub(r"^jit\(\w+\)/|closed_call/|\d+", "", instruction.source)
    return source or f"({instruction.opcode})"


def _dearest(groups: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    first = sorted(groups, key=lambda source: -groups[source]["ms"])[:NUM_DEAREST]
    return [
        {
            "source": source,
            "kernels": int(groups[source]["kernels"]),
            **{name: round(groups[source][name], 3) for name in ("gb", "tflop", "ms")},
        }
        for source in first
    ]


def _scatter_adds(module: Module, launches: Sequence[Launch]) -> dict[str, int]:
    """Counts scatters that add, which a GPU does by atomics, by the loops around them."""
    found: dict[str, int] = defaultdict(int)
    for launch in launches:
        for one in (launch.instruction, *module.inside(launch.instruction).values()):
            combiner = module.computations.get(one.called("to_apply"), {})
            if one.opcode == "scatter" and any(x.opcode == "add" for x in combiner.values()):
                found[loops(launch)] += launch.times
    return dict(found)


def _collectives(module: Module, launches: Sequence[Launch]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for launch in launches:
        if kind := launch.instruction.collective:
            row = found.setdefault(kind, {"number": 0, "gb": 0.0, "by_loops": {}})
            body = module.computations[launch.computation]
            shapes = [body[name].shape for name in launch.instruction.operands]
            row["number"] += launch.times
            row["gb"] += launch.times * hlo_cost.collective_bytes(launch.instruction, shapes) / 1e9
            row["by_loops"][loops(launch)] = row["by_loops"].get(loops(launch), 0) + launch.times
    return {kind: row | {"gb": round(row["gb"], 3)} for kind, row in sorted(found.items())}


def loops(launch: Launch) -> str:
    """Returns the trip counts of the loops around an instruction, as '3 x 32'; 'none' outside loops."""
    return " x ".join(str(trips) for trips in launch.trips) or "none"


def _pallas_kernels(launches: Sequence[Launch]) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for launch in launches:
        if name := launch.instruction.pallas_kernel:
            found[name] += launch.times
    return dict(found)
