"""Local+LSH, local and full attention on the same data: the loss at equal steps, and at equal time.

Every kind is trained for the steps of the config; then the slower ones are trained again for as many steps as they can
do in the time of the fastest, with the schedule that belongs to these. Data and sizes are alike; LSH layers have one
projection less.

Command: python benchmarks/attention_kinds.py --config configs/text.py:tiny --config.data.path=FILE
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import record
from reformer import paths
from reformer.training import command_line, loop, metrics, settings

KINDS = {"local+lsh": ("local", "lsh"), "local": ("local",), "full": ("full",)}


def train(arguments: argparse.Namespace, overrides: list[str], kind: str, num_steps: int | None) -> dict:
    """Trains attention of `kind`, or continues, and returns loss and seconds per step."""
    config = command_line.override(command_line.load_config(arguments.config), overrides)
    config.model.attention_pattern = KINDS[kind]
    config.training.num_steps = num_steps or config.training.num_steps
    shorten_warmup(config)
    workdir = arguments.workdir / f"{kind}-{config.training.num_steps}"
    run = loop.prepare(config, str(workdir))
    result = loop.train(run)
    records = metrics.read_records(workdir / "metrics.jsonl")
    rates = [entry["tokens_per_second"] for entry in records if "tokens_per_second" in entry]
    tokens = config.training.batch_size * settings.window_length(config)
    bits = result[f"bits_per_{run.data.unit}"]
    return {"kind": kind, "steps": result["step"], "step_seconds": tokens / float(np.median(rates)), "bits": bits}


def shorten_warmup(config) -> None:
    """Gives the warmup a fifth of the steps at most, and leaves the highest rate as it is."""
    before, after = config.optimizer.warmup_steps, min(config.optimizer.warmup_steps, config.training.num_steps // 5)
    config.optimizer.warmup_steps = after
    if config.optimizer.schedule == "rsqrt":
        config.optimizer.learning_rate *= (after / before) ** 0.5


def describe(row: dict) -> list[str]:
    """Returns the cells of a row."""
    seconds = row["steps"] * row["step_seconds"]
    return [row["kind"], f"{row['steps']:,}", f"{row['step_seconds']:.2f}", f"{seconds:,.0f}", f"{row['bits']:.3f}"]


def main() -> None:
    """Trains, prints a table and keeps its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="config file, with :preset if wanted")
    parser.add_argument("--workdir", type=paths.argument, default=Path("runs/attention_kinds"))
    arguments, overrides = parser.parse_known_args()
    origin = record.provenance()
    rows = [train(arguments, overrides, kind, None) for kind in KINDS]
    seconds = min(row["steps"] * row["step_seconds"] for row in rows)
    rows += [
        train(arguments, overrides, row["kind"], int(seconds / row["step_seconds"]))
        for row in rows
        if row["steps"] * row["step_seconds"] > seconds
    ]
    for row in rows:
        record.append("attention_kinds", row | origin)
    header = ["attention", "steps", "seconds per step", "seconds of training", "validation bits"]
    print(record.markdown(header, [describe(row) for row in rows]))


if __name__ == "__main__":
    main()
