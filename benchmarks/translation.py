"""Translation: BLEU and time of presets of configs/translate.py, trained alike, each in a process of its own.

`captions` is the Reformer and `transformer` a plain Transformer of the same size; `documents` and `documents_full` are
32 captions joined, with local and LSH attention and with full attention. A run that was interrupted continues.

Command: python benchmarks/translation.py --config.data.path=PREFIX
         python benchmarks/translation.py --config.data.path=PREFIX --presets documents documents_full
         python benchmarks/translation.py --config.data.path=PREFIX --presets tiny --config.training.num_steps=20
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import record
from configs import translate
from reformer.commands import command_line, translation
from reformer.host import paths
from reformer.training import loop, memory, metrics, settings


def measure(preset: str, seed: int, beam_size: int, overrides: Sequence[str], workdir: Path) -> dict:
    """Trains, or continues, translates the test split and returns what came out."""
    config = command_line.override(translate.get_config(preset), list(overrides))
    config.seed = seed
    directory = workdir / f"{preset}-{seed}"
    began, is_new = time.perf_counter(), not directory.exists()
    result = loop.train(loop.prepare(config, str(directory)))
    wall_seconds = round(time.perf_counter() - began) if is_new else None  # of an interrupted run nobody knows
    tokens = config.training.batch_size * settings.window_length(config)
    entries = record.with_training_seconds(metrics.read_records(directory / "metrics.jsonl"), tokens)
    *_, (_, trained) = entries
    job = translation.prepare(config, directory, "best", split="test", beam_size=beam_size)
    began = time.perf_counter()
    found = job.run()
    seconds = round(time.perf_counter() - began, 1)
    score, signature = job.bleu(found)
    return {
        "preset": preset,
        "seed": seed,
        "num_steps": result["step"],
        "best_step": job.step,
        "wall_seconds": wall_seconds,
        "training_seconds": round(trained),
        "step_seconds": round(trained / result["step"], 3),
        "bits_per_subword": round(result["bits_per_subword"], 4),
        "accuracy": round(result["accuracy"], 4),
        "bleu": round(score, 2),
        "share_with_all_texts": round(job.share_with_all_texts(found), 4),
        "beam_size": beam_size,
        "translation_seconds": seconds,
        "signature": signature,
        "peak_gb": round(memory.peak_bytes() / 1e9, 2),
    }


COLUMNS = ("preset", "seed", "num_steps", "training_seconds", "step_seconds", "bits_per_subword", "bleu")
COLUMNS += ("share_with_all_texts", "translation_seconds", "peak_gb")


def main() -> None:
    """Measures every preset with every seed, prints a table and keeps its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["captions", "transformer"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--beam_size", type=int, default=4)
    parser.add_argument("--workdir", type=paths.argument, default=Path("runs/translation"))
    arguments, overrides = parser.parse_known_args()
    origin, rows = record.provenance(), []
    for preset in arguments.presets:
        for seed in arguments.seeds:
            measured = (preset, seed, arguments.beam_size, overrides, arguments.workdir)
            rows.append(record.in_fresh_process(measure, *measured))
            record.append("translation", rows[-1] | origin)
    print(record.markdown(COLUMNS, [[row[name] for name in COLUMNS] for row in rows]))
    print(rows[-1]["signature"])


if __name__ == "__main__":
    main()
