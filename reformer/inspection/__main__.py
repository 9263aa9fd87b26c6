"""Looks inside a trained model: python -m reformer.inspection --workdir DIR [--text "..." | --file PATH]."""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int32
from ml_collections import ConfigDict

from reformer.commands import command_line
from reformer.config import ReformerConfig
from reformer.data import documents, load, source, text, text_tokens
from reformer.data.text_tokens import BYTES, TextTokens
from reformer.host import paths
from reformer.inspection import measure, pictures, story
from reformer.layers.kinds import fix_num_buckets
from reformer.training import checkpoint, settings
from reformer.training.workdir import with_own_vocabulary

_SYMBOLS = {"\n": "↵", " ": "␣", "\t": "⇥"}
_MOST_CHARACTERS = 3  # of a subword in a picture


@dataclasses.dataclass(frozen=True)
class Request:
    """A checkpoint and an input, with everything checked that a user can get wrong."""

    config: ReformerConfig
    variables: Any
    workdir: Path
    step: int
    tokens: Int32[np.ndarray, " length"]
    is_text: bool
    hash_seed: int
    out: Path
    ending: str = "png"
    of_text: TextTokens = BYTES


def parse(arguments: Sequence[str]) -> Request:
    """Returns the checked request that the command line describes."""
    known, unknown = _parser().parse(arguments)
    if unknown:
        raise ValueError(f"{' '.join(unknown)}: there is no such flag, and no overrides here. See --help.")
    workdir, stored = known.workdir, settings.read(known.workdir)
    settings.check_language_model(workdir, stored)
    config = fix_num_buckets(settings.model_config(stored), settings.window_length(stored))
    if known.num_hashes is not None:
        config = dataclasses.replace(config, num_hashes=known.num_hashes)
    command_line.check_seed("--hash_seed", known.hash_seed)
    out = known.out or workdir / "inspection"
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out={out} is a file. Name a directory.")
    with checkpoint.Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoint.choose(checkpoints, known.checkpoint)
    of_text = text_tokens.of_run(workdir, stored["data"].get("tokens", "bytes")) if _is_text(stored) else BYTES
    tokens = _tokens(known, stored, config, of_text)
    variables = checkpoint.load(workdir, step)[1]
    is_text, how = _is_text(stored), (known.hash_seed, out, known.format, of_text)
    return Request(config, variables, workdir, step, tokens, is_text, *how)


def _parser() -> command_line.Parser:
    parser = command_line.Parser("Looks inside the attention of a trained model, on one input.", may_be_many=False)
    parser.epilog = None  # there are no overrides
    parser.add_argument("--workdir", required=True, type=paths.argument, help="directory that was given to train.py")
    parser.add_argument("--checkpoint", default="best", help="best, latest or a step")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--text", help="the input; default: the first validation example")
    chosen.add_argument("--file", type=paths.argument, help="the input, as bytes")
    parser.add_argument("--length", type=int, help="tokens of the input, at most; default: as in training")
    parser.add_argument("--out", type=paths.argument, help="directory of the pictures; default: WORKDIR/inspection")
    parser.add_argument("--format", default="png", choices=["png", "svg", "pdf"], help="of the pictures")
    parser.add_argument("--num_hashes", type=int, help="hash rounds; default: as in training")
    parser.add_argument("--hash_seed", type=int, default=0)
    return parser


def _is_text(stored: dict[str, Any]) -> bool:
    return load.kind(stored["data"]["name"]) == "text"


def _tokens(known: Any, stored: dict[str, Any], config: ReformerConfig, of_text: TextTokens) -> np.ndarray:
    """The input, without padding."""
    length = settings.window_length(stored) if known.length is None else known.length
    if not 1 <= length <= config.max_length:
        raise ValueError(f"--length={known.length} must be from 1 to the model's max_length={config.max_length}.")
    if known.text is None and known.file is None:
        return _first_example(known.workdir, stored, length)[:length]
    if not _is_text(stored):
        raise ValueError(f"data.name={stored['data']['name']!r} is not text. Leave out --text and --file.")
    try:
        given = known.file.read_bytes() if known.text is None else text.bytes_of(known.text)
    except OSError as error:
        raise ValueError(f"--file={known.file} cannot be read ({error.strerror}).") from error
    if known.text is None:
        given = given[documents.num_mark_bytes(given[:4], f"--file={known.file}") :]
    if not given:
        raise ValueError("The input is empty. Give at least one byte.")
    return np.concatenate([np.array([of_text.begin_id], np.int32), of_text.encode(given)])[:length]


def _first_example(workdir: Path, stored: dict[str, Any], length: int) -> np.ndarray:
    """Tokens of the first validation example: `length` of a text; others have a length of their own."""
    if not _is_text(stored):
        length = settings.window_length(stored)
    data = load.load(with_own_vocabulary(workdir, ConfigDict(stored)).data, length)
    first = source.evaluation_batches(data, "valid", length=length, batch_size=1, max_examples=1)[0]
    is_shown = first["mask"][0]
    if "documents" in first:  # which do not see each other
        is_shown &= first["documents"][0] == 0
    return first["tokens"][0][is_shown]


def inspect(request: Request) -> dict[str, Any]:
    """Measures, draws and returns a record of both."""
    config, rng = request.config, jax.random.key(request.hash_seed)
    layers = measure.measure(config, request.variables, request.tokens, rng)
    sorted_layers = [layer for layer in layers if layer.sorting is not None]
    figures: dict[str, Callable] = {}
    if sorted_layers:
        figures["story"] = lambda: _story(request, rng)
        figures["buckets"] = lambda: pictures.draw_buckets(sorted_layers)
        figures["occupancy"] = lambda: pictures.draw_occupancy(sorted_layers)
    figures["attention"] = lambda: pictures.draw_attention(layers)
    figures["coverage"] = lambda: pictures.draw_coverage(layers)
    drawn = {name: draw() for name, draw in figures.items()}
    request.out.mkdir(parents=True, exist_ok=True)
    paths = [str(pictures.save(figure, request.out / f"{name}.{request.ending}")) for name, figure in drawn.items()]
    record = {"workdir": str(request.workdir), "step": request.step, "length": len(request.tokens)}
    return record | {"layers": [_record(layer) for layer in layers], "pictures": paths}


def _story(request: Request, rng: jax.Array):
    """The steps of the first LSH layer on the first tokens, with one round and chunks that fit the picture."""
    tokens = request.tokens[: story.MOST_TOKENS]
    config = dataclasses.replace(
        request.config, semantics="reformer", num_hashes=1, num_buckets=None, lsh_chunk_length=story.CHUNK_LENGTH
    )
    layers = measure.measure(config, request.variables, tokens, rng, counts=())
    symbols = [_symbol(token, request.of_text) if request.is_text else "" for token in tokens.tolist()]
    legend = "▸ begin, ␣ space, ↵ new line" if request.is_text else ""
    return story.draw_story(next(layer for layer in layers if layer.sorting is not None), symbols, legend)


def _symbol(token: int, of_text: TextTokens) -> str:
    if token == of_text.begin_id:
        return "▸"
    written = of_text.decode(np.array([token])).decode(errors="replace")
    shown = (_SYMBOLS.get(c) or (c if c.isascii() and c.isprintable() else "·") for c in written[:_MOST_CHARACTERS])
    return "".join(shown) or "·"


def _record(layer: measure.Layer) -> dict[str, Any]:
    record: dict[str, Any] = {"layer": layer.depth, "kind": layer.kind}
    if layer.sorting is not None:
        occupancy = layer.sorting.occupancy
        smallest, median, largest = (int(x) for x in (occupancy.min(), np.median(occupancy), occupancy.max()))
        record["occupancy"] = {"min": smallest, "median": median, "max": largest}
    for name in ("seen", "local", "random", "far_seen", "far_local", "far_random", "near"):
        means = np.mean(getattr(layer.coverage, name), axis=0).tolist()
        record[name] = {str(count): round(mean, 4) for count, mean in zip(layer.counts, means, strict=True)}
    record["far"] = round(float(np.mean(layer.coverage.far)), 4)
    return record | {"effective_keys": round(float(np.mean(layer.coverage.num_effective_keys)), 1)}


def table(records: Sequence[dict[str, Any]]) -> str:
    """Returns a line of text for each layer, below a heading."""
    counts = records[0]["seen"].keys()
    heading = f"{'layer':<12}{'tokens per bucket':<20}{'effective':>9}   share of full attention's weight after rounds"
    lines = [heading, f"{'':<12}{'min/median/max':<20}{'keys':>9}   " + "".join(f"{count:>7}" for count in counts)]
    for record in records:
        occupancy = "/".join(str(number) for number in record.get("occupancy", {}).values()) or "-"
        name, shares = f"{record['layer']} {record['kind']}", record["seen"].values()
        columns = f"{name:<12}{occupancy:<20}{record['effective_keys']:>9.1f}   "
        lines.append(columns + "".join(f"{share:>7.1%}" for share in shares))
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Inspects, and prints a table, the paths of the pictures and one JSON object as the last line."""
    with command_line.user_errors(ValueError, OSError):
        request = parse(arguments)
    print(f"{request.workdir}, step {request.step}: {len(request.tokens):,} tokens", flush=True)
    with command_line.user_errors(OSError):
        record = inspect(request)
    print(table(record["layers"]))
    print("\n".join(record["pictures"]))
    print(json.dumps(record))


def run() -> None:
    """Is the command `reformer-inspect`."""
    main(sys.argv[1:])


if __name__ == "__main__":
    run()
