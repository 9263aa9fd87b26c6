"""A trained model under more and fewer hash rounds than it was trained with: the loss and the time of an evaluation.

Command: python benchmarks/num_hashes.py --workdir runs/stdlib
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import record
from reformer.commands import evaluate
from reformer.host import paths
from reformer.training import evaluation, settings


def measure(workdir: Path, split: str, num_hashes: int) -> dict:
    """Returns the record of an evaluation with `num_hashes` rounds, and its seconds, compilation included."""
    wanted = evaluate.parse([f"--workdir={workdir}", f"--split={split}", f"--config.model.num_hashes={num_hashes}"])
    began = time.perf_counter()
    result = evaluation.evaluate(wanted)
    return {"num_hashes": num_hashes, "seconds": round(time.perf_counter() - began, 1), **result}


def main() -> None:
    """Evaluates, prints a table and keeps its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=paths.argument, required=True)
    parser.add_argument("--split", default="valid")
    parser.add_argument("--num_hashes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    arguments = parser.parse_args()
    origin = record.provenance() | {"trained": settings.read(arguments.workdir)}
    rows = [measure(arguments.workdir, arguments.split, num_hashes) for num_hashes in arguments.num_hashes]
    for row in rows:
        record.append("num_hashes", row | origin)
    bits = next(name for name in rows[0] if name.startswith("bits_per_"))
    lines = []
    for row in rows:
        spread = f"{row['hash_spread']['lowest']:.4f} to {row['hash_spread']['highest']:.4f}"
        lines.append([row["num_hashes"], f"{row[bits]:.4f}", spread, f"{row['accuracy']:.2%}", row["seconds"]])
    print(record.markdown(["num_hashes", bits, "lowest to highest of the hash seeds", "accuracy", "seconds"], lines))


if __name__ == "__main__":
    main()
