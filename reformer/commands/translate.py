"""Translates texts: reformer-translate --workdir=DIR --split=test, or --input=FILE."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from reformer.commands import command_line, translation
from reformer.configs import base
from reformer.data import pair_files
from reformer.host import paths
from reformer.training import settings


def parse(arguments: list[str]) -> tuple[translation.Translation, str | None, Path | None]:
    """Returns the checked translation that the command line describes, the split, and the file for the result."""
    parser = command_line.Parser("Translates with a trained encoder-decoder.", may_be_many=False)
    parser.add_argument("--workdir", required=True, type=paths.argument, help="directory that was given to train.py")
    parser.add_argument("--checkpoint", default="best", help="best, latest or a step")
    parser.add_argument("--split", choices=["train", "valid", "test"], help="of the run's data: BLEU is computed too")
    parser.add_argument("--input", type=paths.argument, help="file of texts to translate, one per line")
    parser.add_argument(
        "--output", type=paths.argument, help="file for the translations (default: the terminal, or DIR)"
    )
    parser.add_argument("--beam_size", type=int, default=4, help="1 = always the most likely subword")
    parser.add_argument("--length_penalty", type=float, default=0.6, help="0 = none; larger prefers longer texts")
    parser.add_argument("--batch_size", type=int, default=32, help="texts that are translated at once")
    parser.add_argument("--seed", type=int, default=0, help="of the hashes of LSH layers")
    known, overrides = parser.parse(arguments)
    if (known.split is None) == (known.input is None):
        raise ValueError("name either --split=test or --input=FILE.")
    config = command_line.override(settings.update(base.get_config(), settings.read(known.workdir)), overrides)
    lines = [] if known.input is None else pair_files.read_lines(known.input)
    options = {name: getattr(known, name) for name in ("split", "beam_size", "length_penalty", "batch_size", "seed")}
    made = translation.prepare(config, known.workdir, known.checkpoint, lines=lines, **options)
    output = known.output or (known.workdir / f"translations.{known.split}.txt" if known.split else None)
    command_line.check_output("--output", output)
    return made, known.split, output


def main(arguments: list[str]) -> None:
    """Translates, appends the record to `evaluations.jsonl` if a split was named, and prints it as the last line."""
    with command_line.user_errors(ValueError, OSError):
        job, split, output = parse(arguments)
    started = time.monotonic()
    with command_line.user_errors(OSError), Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("translating", total=len(job.sources))
        found = job.run(lambda done: bar.update(task, completed=done))
    text = "".join("\t".join(parts) + "\n" for parts in found)
    record: dict[str, Any] = {"step": job.step, "texts": len(found), "beam_size": job.how.beam_size}
    record |= {"length_penalty": job.how.length_penalty, "seed": job.seed, "changes": job.changes}
    record |= {"seconds": round(time.monotonic() - started, 1)}
    with command_line.user_errors(OSError):
        print(text, end="") if output is None else output.write_text(text, encoding="utf-8")
        if split is not None:
            record = {"split": split} | record | _compare(job, found)
            with (job.directory / "evaluations.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
    print(json.dumps(record | {"output": str(output or "")}))


def _compare(job: translation.Translation, found: list[list[str]]) -> dict[str, Any]:
    score, signature = job.bleu(found)
    record: dict[str, Any] = {"bleu": round(score, 2), "signature": signature}
    if any(len(texts.source) > 1 for texts in job.texts):
        record["share_with_all_texts"] = round(job.share_with_all_texts(found), 4)
    return record


def run() -> None:
    """Is the command `reformer-translate`."""
    main(sys.argv[1:])
