"""Trains a model: reformer-train --config=configs/NAME.py[:preset] --workdir=DIR [--config.group.field=value]."""

import json
from pathlib import Path

import jax

from reformer import configs, decoding
from reformer.commands import command_line
from reformer.data import load, source
from reformer.data.text_tokens import BYTES
from reformer.host import paths
from reformer.layers.kinds import fix_num_buckets
from reformer.training import checkpoint, distributed, loop, manifest, memory, report, settings, stopping

DEFAULT_CONFIG = Path(configs.__file__).parent / "stdlib.py"


def parse(arguments: list[str]) -> tuple[loop.Run, bool]:
    """Returns the checked experiment that the command line describes, and whether it is only a dry run."""
    parser = command_line.Parser("Trains a model: of language, translation, labels, images.")
    parser.add_argument(
        "--config", default=str(DEFAULT_CONFIG), help="file, with :preset if wanted; default: %(default)s"
    )
    parser.add_argument(
        "--workdir", required=True, type=paths.argument, help="directory for checkpoints, metrics and curves"
    )
    parser.add_argument("--profile_steps", default="", help="FIRST:LAST, steps to trace into WORKDIR/profile")
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="check, compile, show every parameter and what a step needs, and stop there",
    )
    known, overrides = parser.parse(arguments)
    config = command_line.override(command_line.load_config(known.config), overrides)
    return loop.prepare(config, known.workdir, known.profile_steps), known.dry_run


def say_how_to_continue(stopped: stopping.Stopped) -> None:
    """Prints where a run that was asked to stop ended; a JSON object is the last line here too."""
    if distributed.is_writer():
        print(f"{stopped}; the same command continues from there")
        print(json.dumps({"stopped": True, "step": stopped.step}))


def say_what_was_learned(run: loop.Run, result: dict) -> None:
    """Prints the model's loss beside simpler models, and a sample of text; draws the curves."""
    # Tokens of a text that stand for several bytes each: simpler models know bytes.
    unit = "byte" if "bits_per_byte" in result else run.data.unit
    length, max_examples = settings.window_length(run.config), run.config.evaluation.max_examples
    simpler = run.data.baselines("valid", length, max_examples)
    examples = source.chosen_examples(run.data, "valid", length, max_examples)
    print(f"validation, {len(examples):,} examples, step {result['step']}:")
    accuracies = source.accuracies(run.data, "valid", length, max_examples)
    if accuracies is not None:
        accuracies = {"this model": result["accuracy"], **accuracies}
    print(report.table({"this model": result[f"bits_per_{unit}"], **simpler}, unit, accuracies))
    if run.config.task.name == "language" and load.kind(run.config.data.name) == "text":
        try:
            print_sample(run)
        except jax.errors.JaxRuntimeError as error:
            if not memory.is_exhausted(error):
                raise
            print("no sample: it does not fit into the memory of one device. Try generate.py --config.sharding.fsdp=-1")
    print(f"checkpoints: {run.workdir / 'checkpoints'}")
    print(f"curves: {report.draw_curves(run.workdir, simpler, unit)}")


def print_sample(run: loop.Run) -> None:
    """Prints some text that the best checkpoint writes."""
    config = fix_num_buckets(run.model_config, settings.window_length(run.config))
    _, variables = checkpoint.load(run.workdir)
    num_tokens = min(200, config.max_length)
    tokens = getattr(run.data, "tokens", BYTES)  # a data set of one's own has bytes
    sampling = decoding.Sampling(num_ids=tokens.num_ids, temperature=0.8)
    drawn = decoding.sample(
        config, variables, [[tokens.begin_id]], num_tokens, sampling=sampling, rng=jax.random.key(0)
    )
    print(f"a sample:\n{tokens.decode(drawn[0]).decode(errors='replace')}")


def show(known: report.Summary) -> None:
    """Prints what a dry run found out."""
    if distributed.is_writer():
        print(f"{known.table}\n{known.text}\n{json.dumps(known.record)}")


def main(arguments: list[str]) -> None:
    """Trains, reports, and prints one JSON object as the last line."""
    with command_line.user_errors(ValueError, OSError):
        run, is_dry = parse(arguments)
    if is_dry:
        distributed.end_at_sigterm()
        with command_line.user_errors():
            show(loop.dry_run(run))
        return
    distributed.meet("checked")  # before one of them changes the workdir that another still checks
    with command_line.user_errors(FloatingPointError, OSError):
        try:
            result = loop.train(run)
        except stopping.Stopped as stopped:
            return say_how_to_continue(stopped)
    if distributed.is_writer():
        with command_line.user_errors(OSError):
            say_what_was_learned(run, result)
        print(json.dumps(result))


def run() -> None:
    """Is the command `reformer-train`."""
    manifest.hide_unfinished_writes()
    distributed.run(main)
