"""Parameters that a run begins with: those of another run, or of a Hugging Face checkpoint, where they fit.

A stack whose pattern has p kinds keeps its layers in `stack/layer_0` to `stack/layer_{p-1}`, arrays with one row for
each repetition: the layer of depth d is row d // p of `layer_{d % p}`. Models are compared by depth alone.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util
from ml_collections import ConfigDict

from reformer.config import ReformerConfig
from reformer.data.source import Source, assets
from reformer.host import extras, paths
from reformer.interop import hub
from reformer.layers.kinds import KINDS
from reformer.training import checkpoint, distributed, settings
from reformer.training.state import TrainState, param_shapes
from reformer.training.workdir import VOCABULARIES

# What must be the same for the rest to mean anything, but for projections of another kind of attention.
_REQUIRED = ("embeddings/", "stack/")
_OF_A_KIND = re.compile(r".*stack/depth_\d+/attention/(query|key|query_key)/.*")
_LAYER = re.compile(r"(?P<stack>(?:.*/)?stack)/layer_(?P<number>\d+)/(?P<name>.+)")

Shape = tuple[int, ...]
Leaves = dict[str, Any]  # arrays by 'path/to/parameter'


class Piece(NamedTuple):
    """A parameter of one layer, or one that belongs to no layer.

    Attributes:
      path: Of the array that holds it.
      row: In that array; None = it is the whole array.
      shape: Its own.
    """

    path: str
    row: int | None
    shape: Shape


def by_depth(shapes: Mapping[str, Shape]) -> dict[str, Piece]:
    """Returns every parameter by a name that does not depend on the pattern, `stack/depth_5/norm/scale`.

    Args:
      shapes: Of arrays by path.
    """
    matches = {path: _LAYER.fullmatch(path) for path in shapes}
    numbers = defaultdict(set)  # of the layers of each stack
    for match in filter(None, matches.values()):
        numbers[match["stack"]].add(match["number"])
    pieces = {}
    for path, match in matches.items():
        if match is None:
            pieces[path] = Piece(path, None, shapes[path])
            continue
        period = len(numbers[match["stack"]])
        num_rows, *shape = shapes[path]
        for row in range(num_rows):
            depth = row * period + int(match["number"])
            pieces[f"{match['stack']}/depth_{depth}/{match['name']}"] = Piece(path, row, tuple(shape))
    return pieces


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a run begins: what is read and checked before any device work.

    Attributes:
      name: For people.
      pieces: Where the arrays of the model come from, by path: the one piece that is the whole, or a piece for each
        row; None = it is not there, or has another shape, and is drawn at random.
      changes: Fields of the model that differ, and are allowed to: (there, here).
      read: Returns the arrays by path, given a mesh.
    """

    name: str
    pieces: Mapping[str, tuple[Piece | None, ...]]
    changes: Mapping[str, tuple[Any, Any]]
    read: Callable[[jax.sharding.Mesh], Leaves]

    def begin(self, state: TrainState, target: TrainState, mesh: jax.sharding.Mesh) -> TrainState:
        """Returns a state before the first update with the parameters that are taken.

        Args:
          state: A new one.
          target: Its shapes, dtypes and shardings.
          mesh: Of the run.
        """
        places, found = _by_path(target.params), self.read(mesh)
        params = _by_path(state.params)
        for path, pieces in self.pieces.items():
            params[path] = jax.device_put(
                jnp.asarray(_assemble(params[path], pieces, found), places[path].dtype), places[path].sharding
            )
        return dataclasses.replace(state, params=traverse_util.unflatten_dict(params, sep="/"))

    @property
    def copied(self) -> tuple[str, ...]:
        """Paths of the parameters that are taken."""
        return tuple(path for path, pieces in self.pieces.items() if None not in pieces)

    @property
    def new(self) -> tuple[str, ...]:
        """Paths of those that are not, or not wholly."""
        return tuple(path for path, pieces in self.pieces.items() if None in pieces)

    def describe(self) -> str:
        """Returns a line or two for people."""
        partly = set(map(_group, self.copied))
        new = _groups(self.new, lambda path: path if _group(path) in partly else _group(path))
        text = f"begins with {_groups(self.copied)} of {self.name}; new: {new or 'nothing'}"
        return f"{text}\nthe model differs there: {settings.describe(dict(self.changes))}" if self.changes else text


@dataclasses.dataclass(frozen=True)
class _Found:
    """A model on disk."""

    name: str
    config: ReformerConfig
    vocabulary: bytes | None  # its subwords; None = its ids are bytes
    shapes: Mapping[str, Shape]
    read: Callable[[jax.sharding.Mesh], Leaves]

    def part(self, wanted: str) -> "_Found":
        """Returns the model that is a part of this one: the parameters below `wanted`."""
        prefix, read = f"{wanted}/", self.read
        if not any(path.startswith(prefix) for path in self.shapes):
            raise ValueError(
                f"config.training.init_from: {self.name} has no part {wanted!r}, only {_groups(self.shapes)}."
            )
        return dataclasses.replace(
            self,
            name=f"{wanted} of {self.name}",
            shapes=_below(prefix, self.shapes),
            read=lambda mesh: _below(prefix, read(mesh)),
        )


def find(config: ConfigDict, data: Source) -> Origin | None:
    """Finds what `training.init_from` names and compares it with the model of a config; None if it names nothing.

    Raises:
      ValueError: If nothing is there, or the embeddings or the stack do not fit, or the ids of `data` are others.
      OSError: If it is damaged.
    """
    wanted = config.training.init_from
    if not wanted:
        return None
    has_part = ":" in wanted and not paths.local(wanted).exists()
    directory, _, part = wanted.rpartition(":") if has_part else (wanted, "", "")
    found = _find(directory)
    found = found.part(part) if part else found
    shapes = param_shapes(settings.make_model(config))
    there, here = ({"model": _resolved(model)} for model in (found.config, settings.model_config(config)))
    changes = settings.differences(there, here)
    if found.vocabulary != _first(map(assets(data).get, VOCABULARIES)):
        raise ValueError(
            f"config.training.init_from: the ids of {found.name} are other subwords than those of the data "
            f"({data.description}), its embeddings would mean something else. Name a run on the same subwords."
        )
    _require(found, shapes, changes)
    return Origin(found.name, _match(found.shapes, shapes), changes, found.read)


def _find(name: str) -> _Found:
    try:
        directory = hub.folder(name, has_weights=True)
    except (FileNotFoundError, extras.MissingPackageError) as error:
        raise ValueError(f"config.training.init_from: {error}") from error
    if (directory / checkpoint.NAME).is_dir():
        return _find_run(directory)
    file = directory / "config.json"
    if file.is_file() and '"model_type"' in file.read_text(errors="replace"):
        return _find_huggingface(directory, name)
    raise ValueError(
        f"config.training.init_from={name!r} is neither the workdir of a run with checkpoints nor the folder "
        "of a Hugging Face model, with config.json and model.safetensors. Name one of these, a model on the Hugging "
        "Face hub as OWNER/MODEL, or DIR:PART for a part."
    )


def _find_run(workdir: Path) -> _Found:
    stored = settings.read(workdir)
    with checkpoint.Checkpoints(workdir, read_only=True) as checkpoints:
        step = distributed.on_process_0(lambda: checkpoint.choose(checkpoints, "best"))

    def read(mesh: jax.sharding.Mesh) -> Leaves:
        return _by_path(checkpoint.load(workdir, step, mesh)[1]["params"])

    shapes = param_shapes(settings.make_model(stored))
    name, vocabulary = f"{workdir}, step {step}", _first(_read_bytes(workdir / name) for name in VOCABULARIES)
    return _Found(name, settings.model_config(stored), vocabulary, shapes, read)


def _first(contents: Iterable[bytes | None]) -> bytes | None:
    return next((content for content in contents if content is not None), None)


def _find_huggingface(directory: Path, name: str) -> _Found:
    from reformer.interop import huggingface, tokenizers

    try:
        model, variables = huggingface.load_model(directory)
    except FileNotFoundError as error:
        raise ValueError(f"config.training.init_from: {error}") from error
    leaves = _by_path(variables["params"])
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    vocabulary = _read_bytes(directory / tokenizers.PIECES_FILE)
    return _Found(name, model.config, vocabulary, shapes, lambda mesh: leaves)


def _read_bytes(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def _match(there: Mapping[str, Shape], here: Mapping[str, Shape]) -> dict[str, tuple[Piece | None, ...]]:
    """Returns for each array here the pieces there that it is made of; None where there is none of the same shape."""
    sources, pieces = by_depth(there), defaultdict(list)
    for name, piece in by_depth(here).items():
        source = sources.get(name)
        pieces[piece.path].append(source if source and source.shape == piece.shape else None)
    return {path: tuple(found) for path, found in pieces.items()}


def _assemble(new: Any, pieces: tuple[Piece | None, ...], found: Leaves) -> Any:
    """Returns an array of pieces of those that were found, and of rows of the new one for pieces that are not there."""
    if not any(pieces):
        return new
    first = pieces[0]
    if first and first.row is None:
        return found[first.path]
    if first and pieces == tuple(first._replace(row=row) for row in range(len(found[first.path]))):
        return found[first.path]
    rows = [new[row] if piece is None else found[piece.path][piece.row] for row, piece in enumerate(pieces)]
    return jnp.stack(rows)


def _require(found: _Found, shapes: Mapping[str, Shape], changes: Mapping[str, tuple[Any, Any]]) -> None:
    """Raises a ValueError unless the embeddings and the stack have the same parameters, layer by layer."""
    is_whole, may_be = (any(path.startswith(_REQUIRED) for path in paths) for paths in (shapes, found.shapes))
    if is_whole and not may_be:
        raise ValueError(
            f"config.training.init_from: {found.name} consists of {_groups(found.shapes)}. Name a part with embeddings "
            "and stack of its own: DIR:PART."
        )
    if may_be and not is_whole:
        raise ValueError(
            f"config.training.init_from: {found.name} is one model, and this one consists of {_groups(shapes)}. Name a "
            "run of the same task."
        )
    of_found, of_model = by_depth(found.shapes), by_depth(shapes)
    for name in dict.fromkeys([*of_model, *of_found]):
        there, here = (pieces[name].shape if name in pieces else "absent" for pieces in (of_found, of_model))
        is_of_a_kind = "absent" in (there, here) and _OF_A_KIND.fullmatch(name) and "model.attention_pattern" in changes
        if there != here and any(f"/{part}" in f"/{name}" for part in _REQUIRED) and not is_of_a_kind:
            raise ValueError(
                f"config.training.init_from: {name} of {found.name} is {there} and would have to be {here}. Give the "
                f"model the same fields; they differ in {settings.describe(dict(changes)) or 'the embeddings'}."
            )


def _resolved(config: ReformerConfig) -> dict[str, Any]:
    """The fields of a config, with the automatic choices that need no length as what they resolve to."""
    is_axial = config.position_embedding == "axial"
    return dataclasses.asdict(config) | {
        "axial_shape": config.resolved_axial_shape if is_axial else None,
        "axial_dims": config.resolved_axial_dims if is_axial else None,
        "look_ahead": config.looks_ahead,
        "share_query_key": config.shares_query_key,
        "attention_dropout_rate": config.attention_weights_dropout_rate,
        "lsh_attention_dropout_rate": KINDS["lsh"].dropout_rate(config),
    }


def _by_path(params: Any) -> Leaves:
    return traverse_util.flatten_dict(params, sep="/")


def _below(prefix: str, by_path: Mapping[str, Any]) -> dict[str, Any]:
    return {path.removeprefix(prefix): value for path, value in by_path.items() if path.startswith(prefix)}


def _group(path: str) -> str:
    return path.split("/")[0]


def _groups(paths: Iterable[str], name: Callable[[str], str] = _group) -> str:
    """Returns the names of the groups of paths, each once."""
    return ", ".join(dict.fromkeys(map(name, paths)))
