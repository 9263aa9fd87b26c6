"""What LSH attention is worth: kinds of attention on the same data, with equal keys, at equal steps and at equal time.

Each kind is trained with each seed. `paper` kinds have the paper's values and, but for LSH layers, separate projections
of queries and keys; the others look ahead. LSH with R rounds shows a query R times the keys that a local layer shows;
`local_wide` is local attention with as many keys as that in the place of LSH. The LSH models are then
evaluated with other numbers of rounds, and under full attention, without being trained again; and `full` with LSH.

Commands: python benchmarks/long_range.py --config configs/recall.py --seeds 0 1 2
          python benchmarks/long_range.py --config configs/recall.py:bytes_8k --kinds lsh full --in_the_time_of lsh
"""

import argparse
import copy
import sys
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import record
from configs import base
from reformer.commands import command_line
from reformer.host import paths
from reformer.training import evaluation, loop, metrics, settings

ROUNDS = (1, 2, 4, 8, 16)
_TRIAL_STEPS = 20  # that tell how long a step takes
PAPER = {"look_ahead": False}
# What a kind has in the place of the LSH layers of the config's pattern, and further fields of the model.
KINDS: dict[str, tuple[str, dict]] = {
    "lsh": ("lsh", {}),
    "local": ("local", {}),
    "local_wide": ("local", {"is_wide": True}),
    "full": ("full", {}),
    "paper_lsh": ("lsh", PAPER),
    "paper_local_wide": ("local", PAPER | {"is_wide": True}),
    "paper_full": ("full", PAPER),
}


def configure(arguments: argparse.Namespace, overrides: list[str], kind: str, seed: int) -> ConfigDict:
    """Returns the config of a kind."""
    config = command_line.override(command_line.load_config(arguments.config), overrides)
    model, (name, changes) = config.model, KINDS[kind]
    changes = dict(changes)
    if changes.pop("is_wide", False):
        keys = model.num_hashes * (1 + model.lsh_num_chunks_before) * model.lsh_chunk_length
        changes["local_num_chunks_before"] = keys // model.local_chunk_length - 1
    changes["attention_pattern"] = tuple(name if layer == "lsh" else layer for layer in model.attention_pattern)
    model.update(changes)
    config.seed = seed
    return config


def train(arguments: argparse.Namespace, overrides: list[str], kind: str, seed: int, seconds: float | None) -> dict:
    """Trains a kind, or continues, for the steps of the config or, if given, for so many seconds of steps."""
    config = configure(arguments, overrides, kind, seed)
    if seconds is not None:
        trial = copy.deepcopy(config)
        trial.training.update(num_steps=_TRIAL_STEPS, log_every_steps=5)
        trial.optimizer.warmup_steps = 0
        trial_dir = arguments.workdir / f"{kind}-{seed}-trial"
        loop.train(loop.prepare(trial, str(trial_dir)))
        tokens = config.training.batch_size * settings.window_length(config)
        shorten(config, round(seconds / step_seconds(trial_dir, tokens)))
    suffix = "" if seconds is None else f"-{config.training.num_steps}"
    workdir = arguments.workdir / f"{kind}-{seed}{suffix}"
    run = loop.prepare(config, str(workdir))
    result, unit = loop.train(run), run.data.unit
    tokens = config.training.batch_size * settings.window_length(config)
    row = {"kind": kind, "seed": seed, "length": settings.window_length(config), "steps": result["step"]}
    row |= {"step_seconds": step_seconds(workdir, tokens), "bits": result[f"bits_per_{unit}"]}
    row |= {name: result[name] for name in ("repeats", "accuracy") if name in result}
    return row | {"workdir": str(workdir)}


def shorten(config: ConfigDict, num_steps: int) -> None:
    """Sets the number of steps, of which at most a fifth warm up."""
    config.training.num_steps = num_steps = max(num_steps, 1)
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, num_steps // 5)


def step_seconds(workdir: Path, tokens_per_step: int) -> float:
    """Returns the seconds of half of the steps of a run, at most."""
    records = metrics.read_records(workdir / "metrics.jsonl")
    rates = [entry["tokens_per_second"] for entry in records if "tokens_per_second" in entry]
    if not rates:
        sys.exit(f"error: {workdir} is too short to be timed. Lower --config.training.log_every_steps.")
    return tokens_per_step / float(np.median(rates))


def evaluate(workdir: str, changes: dict) -> dict:
    """Returns the scores of a trained model under other attention."""
    overrides = [f"--config.model.{name}={value!r}" for name, value in changes.items()]
    config = command_line.override(settings.update(base.get_config(), settings.read(workdir)), overrides)
    config.evaluation.num_hash_seeds = 1
    found = evaluation.evaluate(evaluation.prepare(config, Path(workdir), "best", "valid"))
    return {name: found[name] for name in found if name.startswith("bits_per") or name in ("repeats", "accuracy")}


def by_rounds(workdir: str, kind: str) -> dict[str, dict]:
    """Returns the scores of a model by number of rounds, 'full' = full attention in the place of LSH.

    One that was trained with full attention and one projection is run with LSH, one with LSH with full attention too.
    """
    pattern = settings.read(workdir)["model"]["attention_pattern"]
    patterns = {
        name: tuple(name if layer in ("lsh", "full") else layer for layer in pattern) for name in ("lsh", "full")
    }
    with_lsh = {} if kind == "paper_lsh" else {"attention_pattern": patterns["lsh"]}
    found = {str(number): evaluate(workdir, with_lsh | {"num_hashes": number}) for number in ROUNDS}
    if kind == "paper_lsh":  # its local layers have projections of their own, so full ones would too
        return found
    return found | {"full": evaluate(workdir, {"attention_pattern": patterns["full"]})}


def describe(row: dict) -> list[str]:
    """Returns the cells of a row."""
    cells = [row["kind"], row["seed"], f"{row['steps']:,}", f"{row['step_seconds']:.2f}"]
    return [*cells, f"{row['bits']:.3f}", f"{row.get('repeats', float('nan')):.3f}", f"{row['accuracy']:.1%}"]


def main() -> None:
    """Trains, evaluates, prints tables and keeps their rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="config file, with :preset if wanted")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--in_the_time_of", choices=KINDS, help="train the others again, for as long as this kind took")
    parser.add_argument("--workdir", type=paths.argument, default=Path("runs/long_range"))
    parser.add_argument("--name", default="long_range", help="of the file of the results")
    arguments, overrides = parser.parse_known_args()
    origin = record.provenance()
    rows = []
    for seed in arguments.seeds:
        seconds, kinds = None, arguments.kinds
        if arguments.in_the_time_of:
            row = train(arguments, overrides, arguments.in_the_time_of, seed, None)
            seconds = row["steps"] * row["step_seconds"]
            rows.append(row)
            record.append(arguments.name, row | origin)
            kinds = [kind for kind in kinds if kind != arguments.in_the_time_of]
        for kind in kinds:
            rows.append(train(arguments, overrides, kind, seed, seconds))
            if kind in ("lsh", "full", "paper_lsh") and seconds is None:
                rows[-1]["rounds"] = by_rounds(rows[-1]["workdir"], kind)
            record.append(arguments.name, rows[-1] | origin)
    report(rows)


def report(rows: list[dict]) -> None:
    """Prints the tables."""
    header = ["attention", "seed", "steps", "seconds per step", "validation bits", "of far repeats", "accuracy"]
    print(record.markdown(header, [describe(row) for row in rows]))
    for row in rows:
        for number, scores in row.get("rounds", {}).items():
            described = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
            print(f"{row['kind']}, seed {row['seed']}, {number} rounds at evaluation: {described}")


if __name__ == "__main__":
    main()
