"""What pre-training is worth: a classifier with few labels from scratch, after a masked model, and after ELECTRA.

The task is that of configs/classify.py. ELECTRA trains for `--num_steps`, the masked language model for as many as take
the same operations, both on the same text without labels, with the same model, batch and schedule; then each is fine-
tuned like the classifier that begins at random. Every seed has a pre-training of its own. Accuracies are those of the
test split after the last step: nothing is chosen by them. A run that was interrupted continues.

On a GPU set XLA_PYTHON_CLIENT_PREALLOCATE=false: every run is a process of its own.

Command: python benchmarks/electra.py --num_steps 10000
         python benchmarks/electra.py --tiny                                     (a few steps: does it run?)
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import record
from configs import classify, electra, masked
from reformer.commands import command_line
from reformer.host import paths
from reformer.tasks import registry
from reformer.training import evaluation, loop, settings

EXPERIMENTS = {"masked": masked, "electra": electra, "classify": classify}
ORIGINS = {"scratch": None, "masked": "", "electra": ":discriminator"}  # and the part that a classifier begins with
KEPT = ("accuracy", "unreplaced_share", "generator_accuracy", "detection_recall", "detection_precision")


def make_config(name: str, preset: str, seed: int, num_steps: int, overrides: Sequence[str]):
    """Returns an experiment that is evaluated once, after its last step, which is then the best one too."""
    config = command_line.override(EXPERIMENTS[name].get_config(preset), list(overrides))
    config.seed = seed
    config.training.num_steps = config.evaluation.every_steps = num_steps
    config.checkpoint.every_steps = max(1, num_steps // 10)
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, num_steps // 10)
    return config


def flops_per_step(config) -> float:
    """Returns the operations of a training step."""
    length = settings.window_length(config)
    per_token = registry.flops_per_token(config.task, settings.model_config(config), length)
    return per_token * length * config.training.batch_size


def steps_of_equal_cost(name: str, preset: str, num_steps: int, overrides: Sequence[str]) -> int:
    """Returns the steps of an experiment that take the operations of `num_steps` steps of ELECTRA."""
    costs = [flops_per_step(make_config(each, preset, 0, 1, overrides)) for each in ("electra", name)]
    return round(num_steps * costs[0] / costs[1])


def pre_train(name: str, preset: str, seed: int, num_steps: int, overrides: Sequence[str], workdir: Path) -> dict:
    """Trains without labels, or continues; returns what it took and what was reached."""
    config = make_config(name, preset, seed, num_steps, overrides)
    result = loop.train(loop.prepare(config, str(workdir)))
    reached = {key: result[key] for key in KEPT if key in result}
    return {"steps": num_steps, "teraflop": num_steps * flops_per_step(config) / 1e12, **reached}


def fine_tune(origin: str, preset: str, seed: int, num_steps: int, overrides: Sequence[str], workdir: Path) -> dict:
    """Trains a classifier from the parameters that `origin` names, '' = at random; returns its test accuracy."""
    config = make_config("classify", preset, seed, num_steps, overrides)
    config.training.init_from = origin
    loop.train(loop.prepare(config, str(workdir)))
    found = evaluation.evaluate(evaluation.prepare(config, workdir, "latest", "test"))
    return {"fine_tuning_steps": num_steps, "test_accuracy": found["accuracy"], "num_windows": found["num_windows"]}


def measure(origin: str, seed: int, arguments: argparse.Namespace, overrides: Sequence[str]) -> dict:
    """Pre-trains where `origin` asks for it, fine-tunes, and returns the row; each in a fresh process."""
    preset, begin, pre_trained = arguments.preset, "", None
    where = arguments.workdir / (preset or "default") / record.of_overrides(overrides)
    tuned = where / f"{origin}-{arguments.num_steps}-{seed}-tuned-{arguments.fine_tuning_steps}"
    if ORIGINS[origin] is not None:
        steps = steps_of_equal_cost(origin, preset, arguments.num_steps, overrides)
        workdir = where / f"{origin}-{steps}-{seed}"
        pre_trained = record.in_fresh_process(pre_train, origin, preset, seed, steps, overrides, workdir)
        begin = f"{workdir}{ORIGINS[origin]}"
    found = record.in_fresh_process(fine_tune, begin, preset, seed, arguments.fine_tuning_steps, overrides, tuned)
    return {"origin": origin, "preset": preset, "seed": seed, "pre_training": pre_trained, **found}


def describe(rows: Sequence[dict]) -> list[str]:
    """Returns the cells of rows that differ in their seed: the mean, and each."""
    before, accuracies = rows[0]["pre_training"], [100 * row["test_accuracy"] for row in rows]
    cost = [f"{before['steps']:,}", f"{before['teraflop']:.3g}"] if before else ["-", "-"]
    each = ", ".join(f"{value:.1f}" for value in accuracies)
    return [rows[0]["origin"], *cost, f"{statistics.mean(accuracies):.1f}", each]


def main() -> None:
    """Trains, prints a table and keeps its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="", choices=["", "tiny"])
    parser.add_argument("--num_steps", type=int, default=10_000, help="of ELECTRA's pre-training")
    parser.add_argument("--fine_tuning_steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tiny", action="store_true", help="only see whether it runs")
    parser.add_argument("--workdir", type=paths.argument, default=Path("runs/benchmark_electra"))
    arguments, overrides = parser.parse_known_args()
    if arguments.tiny:
        arguments.preset, arguments.seeds = "tiny", arguments.seeds[:2]
        arguments.num_steps = arguments.fine_tuning_steps = 10
    provenance, lines = record.provenance(), []
    for origin in ORIGINS:
        rows = [measure(origin, seed, arguments, overrides) for seed in arguments.seeds]
        for row in rows:
            record.append("electra", row | provenance)
            if row["pre_training"]:
                print(f"{origin}, seed {row['seed']}, before fine-tuning: {row['pre_training']}", flush=True)
        lines.append(describe(rows))
    print(record.markdown(["begins with", "steps before", "TFLOP before", "test accuracy, %", "by seed"], lines))


if __name__ == "__main__":
    main()
