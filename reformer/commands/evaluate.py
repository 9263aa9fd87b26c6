"""Evaluates a checkpoint: `reformer-eval --workdir=DIR [--split=test] [--config.group.field=value]`."""

import json

from reformer.commands import command_line
from reformer.configs import base
from reformer.host import paths
from reformer.training import distributed, evaluation, settings


def parse(arguments: list[str]) -> evaluation.Evaluation:
    """Returns the checked evaluation that the command line describes."""
    parser = command_line.Parser("Evaluates a trained model on a whole split.")
    parser.add_argument("--workdir", required=True, type=paths.argument, help="directory that was given to train.py")
    parser.add_argument("--split", default="valid", choices=["train", "valid", "test"])
    parser.add_argument("--checkpoint", default="best", help="best, latest or a step")
    known, overrides = parser.parse(arguments)
    config = command_line.override(settings.update(base.get_config(), settings.read(known.workdir)), overrides)
    return evaluation.prepare(config, known.workdir, known.checkpoint, known.split)


def main(arguments: list[str]) -> None:
    """Evaluates, appends the result to `evaluations.jsonl` and prints it as the last line."""
    with command_line.user_errors(ValueError, OSError):
        wanted = parse(arguments)
    distributed.end_at_sigterm()
    if distributed.is_writer():
        print(f"{wanted.workdir}, step {wanted.step}, {wanted.split} split, {wanted.data.description}", flush=True)
        if wanted.changes:
            print(f"changed for this evaluation: {settings.describe(wanted.changes)}", flush=True)
    with command_line.user_errors(OSError):
        record = json.dumps(evaluation.evaluate(wanted))
        if distributed.is_writer():
            with (wanted.workdir / "evaluations.jsonl").open("a") as file:
                file.write(record + "\n")
            print(record)


def run() -> None:
    """Is the command `reformer-eval`."""
    distributed.run(main)
