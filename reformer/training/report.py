"""What is said before the first step, and said and drawn when a run ends.

Before: parameters, where they lie, expected memory and operations. At the end: simpler models on the same data, and the
curves.
"""

import collections
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from reformer import sharding
from reformer.config import ReformerConfig
from reformer.tasks import registry
from reformer.training.metrics import read_records
from reformer.training.settings import model_config, window_length
from reformer.training.step import CompiledStep
from reformer.training.writers import JSON_LINES, Record

WIDTH = 80


class _Kind(NamedTuple):
    """Parameters that differ in nothing but their layer; `group` begins with the part of a model of several parts."""

    group: tuple[str, str]
    name: str
    shape: tuple[int, ...]
    split: str


class Summary(NamedTuple):
    """What is known of a run before its first step.

    Attributes:
      table: Every parameter, for people who ask; like the text at most 80 columns wide.
      text: The rest in at most ten lines.
      record: The most important numbers.
    """

    table: str
    text: str
    record: dict[str, Any]


def summarize(config: ConfigDict, mesh: jax.sharding.Mesh, target: Any, compiled: CompiledStep) -> Summary:
    """Returns the summary of a run.

    Args:
      config: Of the run.
      mesh: Its devices.
      target: Shapes, dtypes and shardings of the training state.
      compiled: Its training step.
    """
    length, model = window_length(config), model_config(config)
    num_tokens = config.training.batch_size * length
    num_flops = registry.flops_per_token(config.task, model, length) * num_tokens
    analysis = compiled.call.memory_analysis()
    lines = [
        _describe_model(model),
        _describe_state(target),
        f"step: {config.training.batch_size:,} examples x {length:,} tokens = {num_tokens:,} tokens",
        f"operations: {_with_prefix(num_flops, 1000)}FLOP per step in matrix products, "
        f"{_with_prefix(num_flops / mesh.size, 1000)}FLOP per device",
        _describe_memory(config, mesh, analysis),
        f"compiled the training step in {compiled.seconds:.1f} s",
    ]
    record = {
        "num_parameters": _size(jax.tree.leaves(target.params)),
        "tokens_per_step": num_tokens,
        "flops_per_step": num_flops,
        "memory_bytes_per_device": None if analysis is None else _kept_bytes(analysis) + analysis.temp_size_in_bytes,
        "compile_seconds": round(compiled.seconds, 1),
    }
    return Summary(_parameter_table(target.params, model.attention_pattern), "\n".join(lines), record)


def _describe_model(model: ReformerConfig) -> str:
    return (
        f"model: {model.num_layers} layers {'-'.join(model.attention_pattern)}, embed {model.embed_dim}, "
        f"{model.num_heads} heads of {model.head_dim},\n  mlp {model.mlp_dim}, vocabulary {model.vocab_size}, "
        f"at most {model.max_length:,} tokens"
    )


def _parameter_table(params: Any, pattern: Sequence[str]) -> str:
    groups: dict[tuple[str, str], dict[_Kind, list[Any]]]
    groups = collections.defaultdict(lambda: collections.defaultdict(list))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [entry.key for entry in path]
        model = names.pop(0) if "stack" in params[names[0]] else ""
        kind = _kind(model, names, leaf, pattern)
        groups[kind.group][kind].append(leaf)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("parameters", "shape", "number", "per device", "split over"):
        table.add_column(title, justify="right" if title in ("number", "per device") else "left", no_wrap=True)
    for group in sorted(groups, key=_place_in_model):
        everything = [leaf for leaves in groups[group].values() for leaf in leaves]
        table.add_row(": ".join(filter(None, group)), _describe_layers(groups[group]), *_amounts(everything), "")
        for kind, leaves in groups[group].items():
            table.add_row(f"  {kind.name}", " x ".join(map(str, kind.shape)), *_amounts(leaves), kind.split)
    output = io.StringIO()
    Console(file=output, width=WIDTH, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines())


def _kind(model: str, names: Sequence[str], leaf: Any, pattern: Sequence[str]) -> _Kind:
    """Of a layer without the axis of the blocks, and with the kind of attention in place of the layer's number."""
    spec = tuple(leaf.sharding.spec) + (None,) * (leaf.ndim - len(leaf.sharding.spec))
    if names[0] != "stack":
        return _Kind((model, names[0]), "/".join(names[1:]), leaf.shape, _describe_split(spec, leaf.sharding.mesh))
    attention = f"{pattern[int(names[1].removeprefix('layer_'))]} " if names[2] == "attention" else ""
    split = _describe_split(spec[1:], leaf.sharding.mesh)
    return _Kind((model, attention + names[2].replace("_", "-")), "/".join(names[3:]), leaf.shape[1:], split)


def _place_in_model(group: tuple[str, str]) -> tuple[str, int]:
    model, part = group
    return model, {"embeddings": 0, "feed-forward": 2, "norm": 3, "head_hidden": 4, "head": 5}.get(part, 1)


def _describe_layers(kinds: Mapping[_Kind, list[Any]]) -> str:
    """Returns how many layers of the stack a group is of, '' outside the stack."""
    kind, leaves = next(iter(kinds.items()))
    if leaves[0].shape == kind.shape:
        return ""
    num_layers = sum(leaf.shape[0] for leaf in leaves)
    return f"{num_layers} layer{'s' if num_layers > 1 else ''}"


def _describe_split(spec: Sequence[Any], mesh: jax.sharding.Mesh) -> str:
    """Returns the mesh axes that each axis of an array is split over, '' where none is."""
    axes = [axis if isinstance(axis, tuple) else (axis,) for axis in spec]
    names = ["+".join(name for name in axis if name and mesh.shape[name] > 1) or "-" for axis in axes]
    return ", ".join(names) if any(name != "-" for name in names) else ""


def _amounts(leaves: Sequence[Any]) -> tuple[str, str]:
    return f"{_size(leaves):,}", _in_bytes(_bytes_per_device(leaves))


def _describe_state(target: Any) -> str:
    params, optimizer = jax.tree.leaves(target.params), jax.tree.leaves(target.optimizer)
    return (
        f"parameters: {_size(params):,}, {_in_bytes(_bytes(params))} "
        f"({_in_bytes(_bytes_per_device(params))} per device)\n"
        f"optimizer state: {_in_bytes(_bytes(optimizer))} ({_in_bytes(_bytes_per_device(optimizer))} per device)"
    )


def _kept_bytes(analysis: Any) -> int:
    """Of state and batch; an output that takes the place of an argument counts once."""
    return analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes


def _describe_memory(config: ConfigDict, mesh: jax.sharding.Mesh, analysis: Any) -> str:
    if analysis is None:
        return "memory: this backend does not tell what a step needs"
    model, training, length = model_config(config), config.training, window_length(config)
    with jax.set_mesh(mesh):
        place = jax.NamedSharding(mesh, sharding.spec("act_batch", "act_length"))
    num_tokens = math.prod(place.shard_shape((training.batch_size // training.accumulation_steps, length)))
    streams = 2 * num_tokens * model.embed_dim * jnp.promote_types(jnp.float32, model.dtype).itemsize
    layers = "whatever the number of layers" if model.reversible else "for every layer"
    kept, scratch = _kept_bytes(analysis), analysis.temp_size_in_bytes
    return (
        f"memory per device: {_in_bytes(kept + scratch)}, of which state and batch {_in_bytes(kept)}, "
        f"scratch {_in_bytes(scratch)};\n  the two residual streams take {_in_bytes(streams)}, {layers}"
    )


def _size(leaves: Sequence[Any]) -> int:
    return sum(leaf.size for leaf in leaves)


def _bytes(leaves: Sequence[Any]) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _bytes_per_device(leaves: Sequence[Any]) -> int:
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _in_bytes(number: int | float) -> str:
    return f"{_with_prefix(number, 1024)}{'iB' if number >= 1024 else 'B'}"


def _with_prefix(number: int | float, base: int) -> str:
    power = min(int(math.log(max(number, 1), base)), 5)
    scaled, prefix = number / base**power, " KMGTP"[power].strip()
    digits = f"{scaled:.3g}" if scaled < 100 else f"{scaled:.0f}"
    return f"{digits} {prefix if base == 1024 else prefix.replace('K', 'k')}"


def table(bits: Mapping[str, float], unit: str, accuracies: Mapping[str, float] | None = None) -> str:
    """Returns one line of text for each model, with its accuracy where that is known."""
    width, shares = max(map(len, bits)), accuracies or {}
    lines = (f"  {name:<{width}}  {bits[name]:.3f} bits/{unit}" for name in bits)
    known = (f"  accuracy {shares[name]:6.2%}" if name in shares else "" for name in bits)
    return "\n".join(map("".join, zip(lines, known, strict=True)))


def draw_curves(workdir: Path, baseline_bits: Mapping[str, float], unit: str, path: Path | None = None) -> Path:
    """Draws the bits per unit over the steps from `metrics.jsonl`, and returns the picture's path.

    Args:
      workdir: Of the run.
      baseline_bits: Of simpler models, by name.
      unit: What a target is, such as 'byte'. With subwords, 'byte' shows evaluations only.
      path: Its ending says what is written: .png, .svg or .pdf; None = curves.png in the workdir.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    records = list(read_records(workdir / JSON_LINES))
    train, valid = (_points(records, split, unit) for split in ("train", "valid"))
    smoothed = _smooth(train[1])
    if len(smoothed):
        axes.plot(*train, color="tab:blue", alpha=0.25, linewidth=1, label="train, as logged")
        axes.plot(train[0], smoothed, color="tab:blue", label=f"train, smoothed: {smoothed[-1]:.3f} at the end")
    if len(valid[0]):
        label = f"validation: {valid[1][-1]:.3f} after step {valid[0][-1]:,.0f}"
        axes.plot(*valid, color="tab:red", marker="o", markersize=4, label=label)
    for (name, bits), style in zip(baseline_bits.items(), (":", "--", "-."), strict=False):
        axes.axhline(bits, linestyle=style, color="gray", label=f"{name}: {bits:.3f}")
    axes.set(xlabel="step", ylabel=f"bits per {unit}", title=f"{workdir.absolute().name}: bits per {unit}")
    _set_range(axes, [*_without_beginning(smoothed), *_without_beginning(valid[1]), *baseline_bits.values()])
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    path = path or workdir / "curves.png"
    figure.savefig(path)
    return path


def _points(records: Sequence[Record], split: str, unit: str) -> tuple[np.ndarray, np.ndarray]:
    name = f"bits_per_{unit}"
    points = [(record["step"], record[name]) for record in records if record["split"] == split and name in record]
    steps, bits = np.array(points, float).reshape(-1, 2).T
    return steps, bits


def _smooth(values: np.ndarray) -> np.ndarray:
    """Returns means over a window around each value: a twentieth of all or five, less where one side ends."""
    if not len(values):
        return values
    window = np.ones(2 * max(len(values) // 40, min(2, len(values) // 5)) + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _without_beginning(values: np.ndarray) -> np.ndarray:
    return values[len(values) // 10 :]


def _set_range(axes: Any, values: Sequence[float]) -> None:
    """Shows these values; the first steps of a run, which are not among them, would press the rest together."""
    if values and max(values) > min(values):
        margin = 0.05 * (max(values) - min(values))
        axes.set_ylim(min(values) - margin, max(values) + margin)
