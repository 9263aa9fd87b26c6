"""How soon LSH attention learns to copy: steps until 99 % of the symbols of duplicated words are right.

With the paper's rule and with look-ahead values, for 1, 2 and 4 rounds.

Command: python benchmarks/copying.py --preset small
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import record
from configs import duplication
from reformer.host import paths
from reformer.training import loop, metrics

WANTED = 0.99  # of the symbols
STEPS_BETWEEN = 25  # evaluations


def train(preset: str, num_hashes: int, look_ahead: bool, seed: int, workdir: Path) -> dict:
    """Trains a model and returns the first evaluated step with so many right, None if there is none, and the last."""
    config = duplication.get_config(preset)
    config.seed = seed
    config.model.update(num_hashes=num_hashes, look_ahead=look_ahead)
    config.evaluation.update(every_steps=STEPS_BETWEEN, max_examples=200, num_hash_seeds=1)
    loop.train(loop.prepare(config, str(workdir)))
    records = metrics.read_records(workdir / "metrics.jsonl")
    scores = {entry["step"]: entry["accuracy"] for entry in records if entry["split"] == "valid"}
    first = next((step for step, accuracy in sorted(scores.items()) if accuracy >= WANTED), None)
    return {"preset": preset, "num_hashes": num_hashes, "look_ahead": look_ahead, "seed": seed, "steps": first} | {
        "accuracy_at_the_end": round(scores[max(scores)], 4)
    }


def main() -> None:
    """Trains all, prints a table and keeps its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="small")
    parser.add_argument("--num_hashes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--workdir", type=paths.argument, default=Path("runs/copying"))
    arguments = parser.parse_args()
    origin = record.provenance()
    rows = []
    for seed in arguments.seeds:
        for num_hashes in arguments.num_hashes:
            for look_ahead in (False, True):
                workdir = arguments.workdir / f"{num_hashes}-{'on' if look_ahead else 'off'}-{seed}"
                rows.append(train(arguments.preset, num_hashes, look_ahead, seed, workdir))
                record.append("copying", rows[-1] | origin)
    print(record.markdown(list(rows[0]), [list(row.values()) for row in rows]))


if __name__ == "__main__":
    main()
