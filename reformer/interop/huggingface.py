"""Hugging Face's Reformers with any of their heads: `config.json` and `model.safetensors`, never pickle."""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from reformer.config import DTYPES, ReformerConfig
from reformer.host import paths
from reformer.interop import hub
from reformer.interop.huggingface_config import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    config_from_fields,
    declared_architecture,
    fields_from_config,
    labels_from_fields,
    named,
    read_fields,
)
from reformer.interop.huggingface_heads import (
    architecture_of,
    count_labels,
    find_architecture,
    label_fields,
    make_model,
)
from reformer.interop.huggingface_tensors import HEAD_BIAS, HEAD_BIAS_ALIAS, Tensor, layout_of
from reformer.models.language import ReformerLM
from reformer.models.trunk import Trunk

# Old releases stored the constants of their masks.
_CONSTANTS = ("mask_value_float16", "mask_value_float32")


def load(directory: str | os.PathLike, dtype: str = "float32") -> tuple[ReformerConfig, dict[str, Any]]:
    """Reads a language model: `ReformerModelWithLMHead` or `ReformerForMaskedLM`.

    Args:
        directory: As in `load_model`.
        dtype: As in `load_model`.

    Returns:
        The configuration (`semantics='huggingface'`) and `{'params': ...}` with NumPy arrays, as
        `ReformerLM(config).apply` and `reformer.decoding` take them.

    Raises:
        FileNotFoundError: as in `load_model`.
        ValueError: as in `load_model`; or it is another Reformer than a language model.
    """
    model, variables = load_model(directory, dtype)
    if type(model) is not ReformerLM:
        raise ValueError(
            f"{directory} is not a language model but a {architecture_of(model)}. Read it with load_model(directory)."
        )
    return model.config, variables


def load_model(directory: str | os.PathLike, dtype: str = "float32") -> tuple[Trunk, dict[str, Any]]:
    """Reads a Reformer with any head.

    Args:
        directory: Holds `config.json` and `model.safetensors`. Where there is no such folder, a name on the Hugging
            Face hub, such as 'google/reformer-enwik8', is downloaded by `huggingface_hub`.
        dtype: Compute and parameter type of the result, one of `reformer.config.DTYPES`. To compute
            in float64, JAX needs `jax_enable_x64`.

    Returns:
        A `ReformerLM`, `SequenceClassifier`, `QuestionAnswerer`, or for a bare `ReformerModel` a
        `ReformerEncoder`, and its `{'params': ...}` with NumPy arrays.

    Raises:
        FileNotFoundError: if a file is missing, or cannot be downloaded.
        MissingPackageError: if it is a name on the hub and `huggingface_hub` is not installed.
        ValueError: if it is not a Reformer, or has a head, options or tensors that do not fit.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}.")
    directory = hub.folder(directory, has_weights=True)
    fields, path = read_fields(directory), directory / WEIGHTS_FILE
    with named(directory / CONFIG_FILE):
        config, declared = config_from_fields(fields, dtype), declared_architecture(fields)
    stored = _read_tensors(path)
    architecture = find_architecture(path, stored, declared, config)
    with named(directory / CONFIG_FILE):
        num_labels = count_labels(fields, stored, architecture)
    layout = layout_of(config, architecture, num_labels)
    expected = {tensor.name: tensor.stored_shape for tensor in layout}
    _check_shapes(str(path), expected, {name: array.shape for name, array in stored.items()})
    variables = {"params": _parameters(layout, stored, dtype)}
    return make_model(config, architecture, num_labels), variables


def load_labels(directory: str | os.PathLike) -> tuple[str, ...] | None:
    """Reads the names of a classifier's classes, in the order of its logits; None = `config.json` has none.

    Args:
        directory: As in `load_model`.

    Raises:
        FileNotFoundError: if `config.json` is missing.
        ValueError: if it is not that of a Reformer, or does not number its classes from 0.
    """
    directory = hub.folder(directory, has_weights=False)
    fields = read_fields(directory)
    with named(directory / CONFIG_FILE):
        return labels_from_fields(fields)


def save(directory: str | os.PathLike, config: ReformerConfig, variables: Mapping[str, Any]) -> None:
    """Writes a language model; arguments and errors as in `save_model(directory, ReformerLM(config), variables)`."""
    save_model(directory, ReformerLM(config), variables)


def save_model(
    directory: str | os.PathLike, model: Trunk, variables: Mapping[str, Any], labels: Sequence[str] | None = None
) -> None:
    """Writes a model for `transformers`, in the types of its arrays.

    `load_model` gives back the same arrays bit for bit when called with their type, and a configuration
    that is the same function: automatic choices are written as what they resolve to, and the layout
    is that of the shortest `attention_pattern` that repeats. How to compute (`reversible`, `dtype`,
    `param_dtype`, `mlp_chunk_length`, `loss_chunk_length`) is not part of it.

    Args:
        directory: Created if it is missing. Must not hold `config.json` or `model.safetensors`.
        model: One of those that `load_model` returns; its configuration must have
            `semantics='huggingface'` and only options that Hugging Face has.
        variables: Its `{'params': ...}`.
        labels: Names of a classifier's classes, in the order of its logits; None = as theirs, LABEL_0, LABEL_1, ...

    Raises:
        FileExistsError: if one of the two files exists.
        ValueError: if the format cannot express the model, or arrays or labels do not fit it.
            Nothing is written then.
    """
    architecture = architecture_of(model)
    fields = fields_from_config(model.config, architecture) | label_fields(model, labels)
    tensors = _stored_tensors(model, variables)
    directory = paths.local(directory)
    existing = [path for path in (directory / CONFIG_FILE, directory / WEIGHTS_FILE) if path.exists()]
    if existing or directory.is_file():
        raise FileExistsError(
            f"{(existing or [directory])[0]} exists and is not overwritten. Choose another directory."
        )
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".saving-") as staging:
        Path(staging, WEIGHTS_FILE).write_bytes(safetensors.numpy.save(tensors, metadata={"format": "pt"}))
        Path(staging, CONFIG_FILE).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
        for name in (WEIGHTS_FILE, CONFIG_FILE):  # without config.json it is no checkpoint yet
            Path(staging, name).rename(directory / name)


def _parameters(layout: Iterable[Tensor], stored: Mapping[str, np.ndarray], dtype: str) -> dict[str, Any]:
    leaves: dict[tuple[str, ...], list[np.ndarray]] = {}
    for tensor in layout:
        array = tensor.from_stored(stored[tensor.name]).astype(jnp.dtype(dtype))
        leaves.setdefault(tensor.path, []).append(array)
    params = {path: np.stack(arrays) if path[0] == "stack" else arrays[0] for path, arrays in leaves.items()}
    return traverse_util.unflatten_dict(params)


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        others = sorted(
            other.name for pattern in ("*.bin", "*.pt", "*.safetensors*") for other in path.parent.glob(pattern)
        )
        found = f" (found {', '.join(others)})" if others else ""
        raise FileNotFoundError(
            f"{path} does not exist{found}. Pickle and sharded files are not read: convert them in transformers with "
            "save_pretrained(directory, safe_serialization=True)."
        )
    try:
        stored = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}. Fetch it again.") from error
    return _without_redundancy(path, stored)


def _without_redundancy(path: Path, stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    stored = {name: array for name, array in stored.items() if not name.endswith(_CONSTANTS)}
    alias = stored.pop(HEAD_BIAS_ALIAS, None)
    if alias is not None and not np.array_equal(stored.setdefault(HEAD_BIAS, alias), alias):
        raise ValueError(f"{path}: {HEAD_BIAS} and {HEAD_BIAS_ALIAS} differ, but they are one parameter. Remove one.")
    for name, array in stored.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{path}: {name} has type {array.dtype}; only floating-point tensors can be loaded.")
    return stored


def _stored_tensors(model: Trunk, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    if "params" not in variables:
        raise ValueError(f"variables with the keys {list(variables)} must be {{'params': ...}} of the model.")
    leaves = {path: np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(variables["params"]).items()}
    config, num_labels = model.config, getattr(model, "num_labels", 2)
    layout = layout_of(config, architecture_of(model), num_labels)
    expected = {
        tensor.path: tensor.shape if tensor.block is None else (config.num_blocks, *tensor.shape) for tensor in layout
    }
    _check_shapes("variables", _by_name(expected), _by_name({path: leaf.shape for path, leaf in leaves.items()}))
    for path, leaf in leaves.items():
        if str(leaf.dtype) not in DTYPES:
            raise ValueError(f"{'/'.join(path)} has type {leaf.dtype}, which must be one of {', '.join(DTYPES)}.")
    stored = {tensor.name: tensor.to_stored(leaves[tensor.path]) for tensor in layout}
    return stored | ({HEAD_BIAS_ALIAS: stored[HEAD_BIAS]} if HEAD_BIAS in stored else {})


def _by_name(shapes: Mapping[tuple[str, ...], tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {"/".join(path): shape for path, shape in shapes.items()}


def _check_shapes(where: str, expected: Mapping[str, tuple], actual: Mapping[str, tuple]) -> None:
    problems = [
        ("lacks", expected.keys() - actual.keys()),
        ("has the unexpected", actual.keys() - expected.keys()),
        ("has the wrong shape for", _wrong_shapes(expected, actual)),
    ]
    clauses = [f"{verb} {_first_few(names)}" for verb, names in problems if names]
    if clauses:
        raise ValueError(
            f"{where} does not fit the configuration: it {'; it '.join(clauses)}. Use the ones it came with."
        )


def _wrong_shapes(expected: Mapping[str, tuple], actual: Mapping[str, tuple]) -> list[str]:
    return [
        f"{name} {list(actual[name])} (must be {list(shape)})"
        for name, shape in expected.items()
        if name in actual and tuple(actual[name]) != shape
    ]


def _first_few(names: Iterable[str], limit: int = 5) -> str:
    names = sorted(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
