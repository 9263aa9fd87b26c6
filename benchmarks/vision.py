"""Image classification with full attention and with local-LSH, on patches of 8, 4 and 2 pixels: accuracy over time.

Every preset of configs/vit.py is first timed, then trained with each seed for the steps that it can do in `--minutes`
(or for `--num_steps`), with the schedule that belongs to these; a run that was interrupted continues. On a GPU set
XLA_PYTHON_CLIENT_PREALLOCATE=false: every run is a process of its own.

Command: python benchmarks/vision.py --minutes 20 --config.data.path=PATH        (an .npz with labels, or a folder)
         python benchmarks/vision.py --tiny                                      (digits, a few steps: does it run?)
"""

import argparse
import functools
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import record
from configs import vit
from reformer.commands import command_line
from reformer.host import paths
from reformer.training import batches, loop, memory, metrics, settings, step

PRESETS = [f"patch{size}{kind}" for size in (8, 4, 2) for kind in ("_full", "")]
TINY = ["tiny_full", "tiny"]
NUM_TIMED = 5  # steps, after one to warm up


def make_config(preset: str, seed: int, num_steps: int, num_evaluations: int, overrides: Sequence[str]):
    """Returns the experiment, evaluated so many times."""
    config = command_line.override(vit.get_config(preset), list(overrides))
    config.seed = seed
    config.training.num_steps = num_steps
    config.training.log_every_steps = max(1, num_steps // 100)
    config.evaluation.every_steps = config.checkpoint.every_steps = max(1, num_steps // num_evaluations)
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, num_steps // 10)
    return config


def time_once(preset: str, overrides: Sequence[str], workdir: Path) -> dict:
    """Measures the training step of a preset, or finds what an interrupted benchmark measured: it sets the steps."""
    kept = workdir / record.of_overrides(overrides) / f"{preset}.json"
    if not kept.exists():
        measured = record.in_fresh_process(measure_step, preset, overrides, workdir)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(measured))
    return json.loads(kept.read_text())


def measure_step(preset: str, overrides: Sequence[str], workdir: Path) -> dict:
    """Measures the training step of a preset in this process, which should be a fresh one."""
    run = loop.prepare(make_config(preset, 0, 100, 1, overrides), str(workdir / "unused"))
    with jax.set_mesh(run.mesh):
        made = step.make_programs(run.config, run.mesh)
        compiled = step.compile_step(made, batches.training_shapes(run.config, run.data, run.mesh))
        batch = batches.to_mesh(next(batches.training_batches(run.config, run.data, run.mesh)), run.mesh)
        seconds = []
        for _ in range(1 + NUM_TIMED):
            state = jax.block_until_ready(made.init())  # a step consumes its state
            seconds.append(record.seconds(functools.partial(compiled.call, state, batch)))
    return {
        "preset": preset,
        "tokens": settings.window_length(run.config),
        "batch_size": run.config.training.batch_size,
        "compile_seconds": round(compiled.seconds, 1),
        "step_seconds": round(statistics.median(seconds[1:]), 4),
        "scratch_gb": round(compiled.call.memory_analysis().temp_size_in_bytes / 1e9, 3),
        "peak_gb": round(memory.peak_bytes() / 1e9, 2),
    }


def train(
    preset: str, seed: int, num_steps: int, num_evaluations: int, overrides: Sequence[str], workdir: Path
) -> dict:
    """Trains, or continues, and returns the course of the validation."""
    config = make_config(preset, seed, num_steps, num_evaluations, overrides)
    directory = workdir / record.of_overrides(overrides) / f"{preset}-{num_steps}-{seed}"
    loop.train(loop.prepare(config, str(directory)))
    tokens = config.training.batch_size * settings.window_length(config)
    entries = list(metrics.read_records(directory / "metrics.jsonl"))
    return {"seed": seed, "num_steps": num_steps, "course": list(course(entries, tokens))}


def course(entries: Iterable[dict], tokens_per_step: int) -> Iterable[dict]:
    """Yields a record for each evaluation: step, seconds of training so far, nats and accuracies.

    Args:
      entries: of `metrics.jsonl`, in order.
      tokens_per_step: of the run.
    """
    for entry, seconds in record.with_training_seconds(entries, tokens_per_step):
        if entry["split"] == "valid":
            yield {
                "step": entry["step"],
                "seconds": round(seconds, 1),
                "nats": entry["bits_per_image"] * float(np.log(2)),
                "accuracy": entry["accuracy"],
                "top_5_accuracy": entry["top_5_accuracy"],
            }


def describe(rows: Sequence[dict]) -> list[str]:
    """Returns the cells of a preset, whose rows differ in their seed: means of the last, and ranges."""
    first, last = rows[0], [row["course"][-1] for row in rows]
    cells = [first["preset"], first["tokens"], f"{first['step_seconds']:.3f}", first["scratch_gb"], first["peak_gb"]]
    cells += [f"{first['num_steps']:,}", f"{np.mean([entry['seconds'] for entry in last]):,.0f}"]
    for name, scale in (("nats", 1), ("accuracy", 100), ("top_5_accuracy", 100)):
        values = [scale * entry[name] for entry in last]
        cells.append(f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})")
    return [str(cell) for cell in cells]


HEADER = ["preset", "patches", "step, s", "scratch, GB", "peak, GB", "steps", "training, s"]
HEADER += ["nats", "accuracy, %", "top 5, %"]


def main() -> None:
    """Times and trains, prints a table and keeps its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=20, help="of training, for each preset and seed")
    parser.add_argument("--num_steps", type=int, help="instead of --minutes")
    parser.add_argument("--num_evaluations", type=int, default=10, help="of every run")
    parser.add_argument("--tiny", action="store_true", help="only see whether it runs")
    parser.add_argument("--workdir", type=paths.argument, default=Path("runs/vision"))
    arguments, overrides = parser.parse_known_args()
    if arguments.tiny:
        arguments.presets, arguments.seeds, arguments.num_steps = TINY, arguments.seeds[:2], arguments.num_steps or 20
    origin, lines = record.provenance(), []
    for preset in arguments.presets:
        timed = time_once(preset, overrides, arguments.workdir)
        num_steps = arguments.num_steps or int(arguments.minutes * 60 / timed["step_seconds"])
        num_steps = max(num_steps, arguments.num_evaluations)
        print(timed, flush=True)
        rows = []
        for seed in arguments.seeds:
            wanted = (preset, seed, num_steps, arguments.num_evaluations, overrides, arguments.workdir)
            trained = record.in_fresh_process(train, *wanted)
            rows.append(timed | trained)
            record.append("vision", rows[-1] | origin)
        lines.append(describe(rows))
    print(record.markdown(HEADER, lines))


if __name__ == "__main__":
    main()
