"""The paper's Table 2: accuracy on the duplication task, by the attention in training and in evaluation.

Trains full attention, LSH-4, LSH-2 and LSH-1 (LSH-n has n hash rounds), each LSH model with the paper's correction of
duplicate keys (log N_ij) and without, and evaluates each under full attention and LSH-8, 4, 2, 1. A run that was
interrupted continues. Source: arXiv 2001.04451, section 5, Table 2.

Command: python benchmarks/table2.py [--preset small] [--workdir runs/table2]
"""

import argparse
import functools
import sys
import time
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import record
from configs import duplication
from reformer.host import paths
from reformer.training import checkpoint, evaluation, loop

PAPER = {
    "full": (100, 94.8, 92.5, 76.9, 52.5),
    "LSH-4": (0.8, 100, 99.9, 99.4, 91.9),
    "LSH-2": (0.8, 100, 99.9, 98.1, 86.8),
    "LSH-1": (0.8, 99.9, 99.6, 94.8, 77.9),
}
IN_EVALUATION = ("full", "LSH-8", "LSH-4", "LSH-2", "LSH-1")
NUM_HASH_SEEDS = 5  # accuracies are means over these: places that one draw of hashes misses are missed in every word


def make_config(preset: str, attention: str, correct_duplicates: bool):
    """Returns the experiment with `attention`, such as 'full' or 'LSH-4'."""
    config = duplication.get_config(preset)
    kind, _, num_hashes = attention.lower().partition("-")
    config.model.update(attention_pattern=(kind,), num_hashes=int(num_hashes or 1))
    config.model.lsh_correct_duplicates = correct_duplicates
    config.model.look_ahead = False  # the paper's rule, in every preset
    return config


@functools.cache
def train(preset: str, attention: str, correct_duplicates: bool, workdir: Path) -> dict:
    """Trains a model, or what an interrupted run left of it, and returns what it took."""
    config, is_new = make_config(preset, attention, correct_duplicates), not workdir.exists()
    began = time.perf_counter()
    result = loop.train(loop.prepare(config, str(workdir)))
    seconds = round(time.perf_counter() - began) if is_new else None  # of an interrupted run nobody knows
    return {"steps": result["step"], "seconds": seconds}


def accuracy(preset: str, workdir: Path, attention: str, correct_duplicates: bool) -> float:
    """Returns the percentage of right symbols in the second words of the test split."""
    config = make_config(preset, attention, correct_duplicates)
    wanted = evaluation.prepare(config, workdir, "latest", "test")
    with jax.set_mesh(wanted.mesh):
        _, variables = checkpoint.load(workdir, "latest", wanted.mesh)
        evaluator = evaluation.make_evaluator(config, wanted.data, "test", wanted.mesh)
        seeds = range(NUM_HASH_SEEDS if attention != "full" else 1)
        return 100 * float(np.mean([evaluator.measure(variables["params"], seed).accuracy for seed in seeds]))


def measure_row(preset: str, workdir: Path, attention: str, correct_duplicates: bool) -> dict:
    """Trains under `attention` and evaluates under every attention; prints and keeps the row."""
    is_corrected = correct_duplicates and attention != "full"  # full attention sees no key twice
    directory = workdir / (attention + ("-corrected" if is_corrected else ""))
    trained = train(preset, attention, is_corrected, directory)
    row = {other: round(accuracy(preset, directory, other, correct_duplicates), 2) for other in IN_EVALUATION}
    return {
        "preset": preset,
        "trained": attention,
        "correct_duplicates": correct_duplicates,
        **trained,
        "accuracy": row,
    }


def table(rows: list[dict]) -> str:
    """Returns the rows beside the paper's, as Markdown."""
    lines = [
        [row["trained"], f"{row['steps']:,} steps, {row['seconds'] or '?'} s"]
        + [
            f"{row['accuracy'][name]:.1f} ({paper})"
            for name, paper in zip(IN_EVALUATION, PAPER[row["trained"]], strict=True)
        ]
        for row in rows
    ]
    return record.markdown(["trained \\ evaluated", "training", *IN_EVALUATION], lines)


def main() -> None:
    """Trains, evaluates, prints two tables and keeps their rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="small", choices=["paper", "small", "tiny"])
    parser.add_argument("--workdir", type=paths.argument, default=Path("runs/table2"))
    arguments = parser.parse_args()
    origin = record.provenance()
    for correct_duplicates in (False, True):
        rows = []
        for attention in PAPER:
            rows.append(
                measure_row(arguments.preset, arguments.workdir / arguments.preset, attention, correct_duplicates)
            )
            record.append("table2", rows[-1] | origin)
        print(
            f"\n{'With' if correct_duplicates else 'Without'} the correction of duplicates; in brackets the paper's:\n"
        )
        print(table(rows), flush=True)


if __name__ == "__main__":
    main()
