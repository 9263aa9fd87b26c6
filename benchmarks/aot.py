"""Compiles a training step for devices that are not there, and tells what it would launch, move and hold.

XLA's compilers for GPUs and TPUs run without a device; nothing is executed. Memory, kernels, trip counts, collectives
and registers are the compiler's own. Bytes, operations and times are estimates: those of every kernel at the rates of
`targets.py`, or the cost of a launch. Not as on a device: kernels for GPUs are not tuned by trial, and sorts are XLA's
own instead of CUB's.

Command: make bench-aot, or
  .venv-aot-gpu/bin/python benchmarks/aot.py --target h100 --config configs/enwik8.py:paper --mesh data=1,fsdp=4
  .venv-aot-tpu/bin/python benchmarks/aot.py --target v5e --config configs/imagenet64.py --config.training.batch_size=1
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import hlo_summary, ptx, record, targets
from benchmarks.targets import TARGETS, Target

MESH_AXES = {"data": "data", "fsdp": "fsdp", "tensor": "tensor", "length": "tensor"}  # and the field of each


def main() -> None:
    """Compiles what the command line says, prints tables and appends a row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=TARGETS, required=True)
    parser.add_argument("--config", required=True, help="FILE or FILE:PRESET; fields are set by --config.GROUP.FIELD=X")
    parser.add_argument("--mesh", default="data=1", help="sizes of data, fsdp and tensor or length, as data=1,fsdp=4")
    parser.add_argument("--keep_hlo", help="a file for the optimized program")
    arguments, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        prepare(arguments.target, Path(folder))
        origin = record.provenance()
        row, text = measure(arguments.target, arguments.config, parse_mesh(arguments.mesh), overrides, Path(folder))
    if arguments.keep_hlo and text:
        keep(arguments.keep_hlo, text)
    record.append("aot", row | origin)
    print(report(row))


def keep(file: str, text: str) -> None:
    """Writes a program to a file."""
    from reformer.host import paths  # not before `prepare` said what JAX is to find

    paths.argument(file).write_text(text)


def parse_mesh(text: str) -> dict[str, int]:
    """Returns the sizes of the axes that a text such as 'data=1,fsdp=4' names.

    Raises:
      ValueError: If an axis is unknown or has no size, or both tensor and length are given.
    """
    sizes = {name: size for name, _, size in (part.partition("=") for part in text.split(","))}
    if sizes.keys() - MESH_AXES.keys() or {"tensor", "length"} <= sizes.keys():
        raise ValueError(f"--mesh={text} must name data, fsdp and tensor or length, as data=1,fsdp=4.")
    if not all(size.isdigit() and int(size) for size in sizes.values()):
        raise ValueError(f"--mesh={text} must give every axis a size, as data=1,fsdp=4.")
    return {name: int(size) for name, size in sizes.items()}


def prepare(target: str, folder: Path) -> None:
    """Sets the environment that the compilers read, and JAX up on the CPU; to be called before anything uses JAX."""
    targets.prepare(target)
    if TARGETS[target].platform == "cuda":
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {ptx.xla_flags(folder)}".strip()
    import jax

    jax.config.update("jax_platforms", "cpu")


def measure(
    target: str, config: str, mesh: dict[str, int], overrides: list[str], folder: Path
) -> tuple[dict[str, Any], str]:
    """Compiles a training step.

    Args:
      target: A name of `TARGETS`.
      config: `FILE:PRESET`.
      mesh: Sizes of its axes.
      overrides: Fields, as `--config.model.dtype=bfloat16`.
      folder: What `prepare` was given.

    Returns:
      (a row, optimized HLO). A program that does not compile has a row with `error`, and no HLO.
    """
    import jax

    row = {"target": target, "config": config, "overrides": overrides, "mesh": mesh}
    lowered = lower(target, config, mesh, overrides)
    began = time.monotonic()
    try:
        compiled = lowered.compile(compiler_options(target))
    except jax.errors.JaxRuntimeError as error:
        return row | {"error": str(error).splitlines()[0]}, ""
    seconds, text = round(time.monotonic() - began, 1), compiled.as_text()
    return row | {"compile_seconds": seconds} | describe(compiled, text, target, folder), text


def describe(compiled: Any, text: str, target: str, folder: Path) -> dict[str, Any]:
    """Returns what the compiler tells of a program, optimized HLO `text`: memory, counts, estimates, kernels."""
    row = memory(compiled, TARGETS[target].platform) | hlo_summary.summarize(text, TARGETS[target])
    names = row.pop("pallas_kernels")
    return row | {"pallas_kernels": ptx.kernels(folder, names) if names else []}


def compiler_options(target: str) -> dict[str, str] | None:
    """Returns what the compiler for a target is told: kernels for GPUs cannot be tuned by trial."""
    return {"xla_gpu_autotune_level": "0"} if TARGETS[target].platform == "cuda" else None


def lower(target: str, config: str, mesh: dict[str, int], overrides: list[str]) -> Any:
    """Returns the training step of an experiment as JAX hands it to the compiler."""
    import jax

    from reformer import sharding
    from reformer.commands import command_line
    from reformer.training import settings
    from reformer.training import step as training

    experiment = command_line.override(command_line.load_config(config), overrides)
    experiment.sharding.update(data=1, fsdp=1, tensor=1, split_length="length" in mesh)
    experiment.sharding.update({MESH_AXES[name]: size for name, size in mesh.items()})
    settings.validate(experiment)
    number = experiment.sharding.data * experiment.sharding.fsdp * experiment.sharding.tensor
    devices = sharding.make_mesh(**experiment.sharding, devices=targets.devices(target, number))
    settings.check_sharding(experiment, devices, is_trained=True)
    with jax.set_mesh(devices):
        made = training.make_programs(experiment, devices)
        return made.train_step.lower(made.target, batch_shapes(experiment, devices))


def batch_shapes(experiment: Any, mesh: Any) -> dict[str, Any]:
    """Returns the shapes of a training batch; only of a language model they are known without its data."""
    import jax.numpy as jnp
    from jax import ShapeDtypeStruct

    from reformer import sharding
    from reformer.tasks import registry
    from reformer.training import batches, settings

    length = settings.window_length(experiment)
    if experiment.task.name != "language":
        return batches.training_shapes(experiment, registry.load_data(experiment, length), mesh)
    shape = (experiment.training.batch_size, length)
    rows = ShapeDtypeStruct(shape, jnp.int32, sharding=sharding.batch_sharding(mesh))
    return {"tokens": rows, "targets": rows}


def memory(compiled: Any, platform: str) -> dict[str, float]:
    """Returns what a program holds on one device, by the compiler's plan, in GiB."""
    plan = compiled.memory_analysis()
    arrays = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    scratch = plan.temp_size_in_bytes
    if platform == "tpu":  # whose scratch counts arrays that follow each other in one place: it may exceed the chip
        scratch = plan.peak_memory_in_bytes - arrays
    sizes = {"scratch_gib": scratch, "peak_gib": arrays + scratch}
    return {name: round(size / 2**30, 2) for name, size in sizes.items()}


def report(row: dict[str, Any]) -> str:
    """Returns the tables of a row."""
    target = TARGETS[row["target"]]
    fields = "".join(f"`{override}` " for override in row["overrides"])
    title = f"## {row['config']} on {row['target']} (estimate)\n\n{fields}\n{rates(target)}\n"
    if "error" in row:
        return f"{title}\nDoes not compile: {row['error']}"
    mesh = ", ".join(f"{name}={size}" for name, size in row["mesh"].items())
    totals = {
        "mesh": mesh,
        "scratch / peak GiB": f"{row['scratch_gib']} / {row['peak_gib']}",
        "kernels": f"{row['kernels']:,}",
        "loop iterations": f"{row['loop_iterations']:,}",
        "under 3 µs (estimate)": f"{row['short_kernels']:.0%}",
        "GB (estimate)": f"{row['gb']:,}",
        "TFLOP (estimate)": row["tflop"],
        "ms (estimate)": row["estimated_ms"],
        "scatter-adds, by loops around them": counts(row["scatter_adds"]),
    }
    parts = [title, record.markdown(list(totals), [list(totals.values())])]
    if row["collectives"]:
        header = ["collective", "number", "GB a device (estimate)", "by the loops around them"]
        rows = [[kind, x["number"], x["gb"], counts(x["by_loops"])] for kind, x in row["collectives"].items()]
        parts += ["\n### Collectives (estimate)\n", record.markdown(header, rows)]
    if row["pallas_kernels"]:
        header = list(row["pallas_kernels"][0])
        parts += ["\n### Pallas kernels\n", record.markdown(header, [list(x.values()) for x in row["pallas_kernels"]])]
    header = ["operations that take longest", "kernels", "GB (estimate)", "TFLOP (estimate)", "ms (estimate)"]
    rows = [list((x | {"source": x["source"][-90:]}).values()) for x in row["dearest"]]
    return "\n".join([*parts, "\n### By operation (estimate)\n", record.markdown(header, rows)])


def rates(target: Target) -> str:
    """Returns a sentence about what the estimates take for granted."""
    return (
        f"Rates: {target.bytes_per_second / 1e12:.2g} TB/s, {target.flops_per_second / 1e12:.0f} TFLOP/s in 16 bits, "
        f"{target.float32_share:.2g} of it in 32, at least {target.launch_seconds * 1e6:.0f} µs a kernel."
    )


def counts(by_loops: dict[str, int]) -> str:
    """Returns numbers by the trips of the loops that they stand in, as '2 (none), 96 (3 x 32)'."""
    return ", ".join(f"{number} ({loops})" for loops, number in by_loops.items()) or "0"


if __name__ == "__main__":
    main()
