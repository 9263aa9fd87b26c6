"""Writes text or paints pictures: reformer-generate --workdir=DIR --prompt="text" --num_tokens=500."""

import argparse
import dataclasses
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import Progress

from reformer.commands import command_line, generation, painting
from reformer.configs import base
from reformer.data import load, packing, text_tokens
from reformer.data.text_tokens import BYTES, TextTokens
from reformer.decoding.sampling import Sampling
from reformer.host import paths
from reformer.training import settings

_LARGEST_SCALE = 64


def parser() -> command_line.Parser:
    """Returns the parser of the command line."""
    result = command_line.Parser("Writes text or paints pictures with a trained Reformer.", may_be_many=False)
    result.add_argument("--workdir", required=True, type=paths.argument, help="directory that was given to train.py")
    result.add_argument("--checkpoint", default="best", help="best, latest or a step")
    result.add_argument("--prompt", action="append", default=[], help="text to continue; may be given several times")
    result.add_argument("--prompt_file", type=paths.argument, help="file whose text to continue")
    result.add_argument(
        "--image", type=paths.argument, action="append", default=[], help="picture whose lower half to paint"
    )
    result.add_argument("--complete", type=int, default=0, help="paint the lower half of so many validation images")
    result.add_argument(
        "--num_tokens",
        type=int,
        help="default: 500, as far as the model reaches, or what an image needs",
    )
    result.add_argument(
        "--keep_last",
        type=int,
        metavar="N",
        help="write on beyond the model's max_length, and take longer prompts: where it is full, start anew with the "
        "latest N bytes",
    )
    result.add_argument("--temperature", type=float, default=1.0, help="0 = always the most likely token")
    result.add_argument("--top_k", type=int, help="draw from the so many most likely tokens")
    result.add_argument("--top_p", type=float, help="draw from the most likely tokens that sum to this probability")
    result.add_argument("--stop", help="a character that ends a text")
    result.add_argument("--batch", type=int, default=1, help="continuations of each prompt")
    result.add_argument("--seed", type=int, default=0, help="the same seed gives the same output")
    result.add_argument("--scale", type=int, help="pixels of a side of what a pixel becomes; default: can be seen")
    result.add_argument(
        "--out", type=paths.argument, help="file for the text, or for the pictures (default: DIR/samples.png)"
    )
    return result


@dataclasses.dataclass(frozen=True)
class Job:
    """What the command line asks for, checked."""

    kind: str  # 'text' or 'images'
    generation: generation.Generation
    given: np.ndarray  # images to complete, as tokens [count, length]
    length: int  # tokens of an example in training
    out: Path | None
    scale: int | None = None  # of the pictures; None = such that they can be seen


def parse(arguments: list[str]) -> Job:
    """Returns the job that the command line describes."""
    known, overrides = parser().parse(arguments)
    if known.scale is not None and not 1 <= known.scale <= _LARGEST_SCALE:
        raise ValueError(f"--scale={known.scale} must be from 1 to {_LARGEST_SCALE}.")
    if known.batch < 1 or known.complete < 0:
        raise ValueError(f"--batch={known.batch} must be at least 1 and --complete={known.complete} at least 0.")
    stored = settings.update(base.get_config(), settings.read(known.workdir))
    settings.check_language_model(known.workdir, stored)
    stored.sharding = base.get_group("sharding")
    stored.sharding.data = 1  # one device unless asked, however many the training had
    config = command_line.override(stored, overrides)
    of_text, ends = _of_text(known.workdir, config)
    kind, length, given = load.kind(config.data.name), settings.window_length(config), np.zeros((0, 0), np.int32)
    if kind == "images":
        prompts, num_tokens, given = _image_prompts(known, config, length)
    elif kind == "text":
        prompts = _text_prompts(known, of_text)
        room = config.model.max_length + 1 - max(map(len, prompts))
        num_tokens = 500 if known.keep_last else max(1, min(500, room))
    else:
        raise ValueError(f"data.name={config.data.name!r} is neither text nor images. Use a run on one of these.")
    stop = ends if known.stop is None else generation.stop_id(known.stop, of_text)
    sampling = Sampling(None, known.temperature, known.top_k, known.top_p, stop)
    num_tokens = num_tokens if known.num_tokens is None else known.num_tokens
    how = (num_tokens, sampling, known.seed, known.keep_last, of_text)
    made = generation.prepare(config, known.workdir, known.checkpoint, prompts, *how)
    out = known.out or (known.workdir / "samples.png" if kind == "images" else None)
    command_line.check_output("--out", out)
    if kind == "images":
        painting.check_ending(out)
    return Job(kind, made, given, length, out, known.scale)


def _of_text(workdir: Path, config) -> tuple[TextTokens, int | None]:
    """What the text of a run is made of, and the id that ends one; bytes, and None, of a run on images."""
    if load.kind(config.data.name) != "text":
        return BYTES, None
    of_text = text_tokens.of_run(workdir, config.data.tokens)
    return of_text, packing.separator_of(of_text, config.data.pack_documents, config.data.separate_documents)


def _text_prompts(known: argparse.Namespace, of_text: TextTokens) -> list[np.ndarray]:
    if known.complete or known.image or known.scale:
        raise ValueError("--complete, --image and --scale are for runs on images. Continue a text with --prompt.")
    return generation.text_prompts(known.prompt, known.prompt_file, known.batch, of_text)


def _image_prompts(known: argparse.Namespace, config, length: int) -> tuple[list[np.ndarray], int, np.ndarray]:
    if known.prompt or known.prompt_file or known.stop or known.keep_last is not None:
        raise ValueError(
            "--prompt, --prompt_file, --stop and --keep_last are for runs on text. Give pictures with --image=FILE."
        )
    given = painting.read_given(known.image, config.data, known.complete, length)
    prompts = painting.make_prompts(given, known.batch)
    missing = length - len(prompts[0]) + 1
    if known.num_tokens is not None and known.num_tokens > missing:
        raise ValueError(f"--num_tokens={known.num_tokens} exceeds the {missing} that an image lacks. Lower it.")
    return prompts, missing, given


def write(job: Job) -> None:
    """Writes text to the terminal and, if asked, to the file."""
    rows = generation.write_text(job.generation)
    if job.out is not None:
        job.out.write_bytes(b"\n".join(rows) + b"\n")


def paint(job: Job) -> None:
    """Paints pictures into the file."""
    with Progress() as bar:
        task = bar.add_task("painting", total=job.generation.num_tokens)
        pictures = painting.paint(job.generation, job.length, lambda done: bar.update(task, completed=done))
    num_columns = math.ceil(math.sqrt(len(pictures)))
    labels = [str(i + 1) for i in range(len(pictures))]
    if len(job.given):
        labels = painting.name_completions(len(job.given), len(pictures) // len(job.given))
        pictures, num_columns = painting.beside_given(pictures, job.given)
    scale = job.scale or painting.default_scale(pictures.shape[1])
    Image.fromarray(painting.grid(pictures, num_columns, labels, scale)).save(job.out)


def main(arguments: list[str]) -> None:
    """Generates, and prints one JSON object as the last line."""
    with command_line.user_errors(ValueError, OSError):
        job = parse(arguments)
    started = time.monotonic()
    with command_line.user_errors(OSError):
        (paint if job.kind == "images" else write)(job)
    made = job.generation
    record = {
        "step": made.step,
        "samples": len(made.prompts),
        "num_tokens": made.num_tokens,
        "seed": made.seed,
        "seconds": round(time.monotonic() - started, 1),
        "out": str(job.out or ""),
    }
    print(json.dumps(record))


def run() -> None:
    """Is the command `reformer-generate`."""
    main(sys.argv[1:])
