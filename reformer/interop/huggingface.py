"""Hugging Face Reformer language models: `config.json` and `model.safetensors`, never pickle."""

import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from reformer.config import DTYPES, ReformerConfig
from reformer.interop.huggingface_config import (
    BIDIRECTIONAL_MODEL,
    CAUSAL_MODEL,
    config_from_fields,
    fields_from_config,
)

_CONFIG_FILE, _WEIGHTS_FILE = "config.json", "model.safetensors"
_HEAD_BIAS, _HEAD_BIAS_ALIAS = "lm_head.bias", "lm_head.decoder.bias"  # one parameter under two names
# Old releases stored the constants of their masks.
_CONSTANTS = ("mask_value_float16", "mask_value_float32")


def load(directory: str | os.PathLike, dtype: str = "float32") -> tuple[ReformerConfig, dict[str, Any]]:
    """Reads a Hugging Face Reformer language model.

    Args:
        directory: Holds `config.json` and `model.safetensors`.
        dtype: Compute and parameter type of the result, one of `reformer.config.DTYPES`. To compute
            in float64, JAX needs `jax_enable_x64`.

    Returns:
        The configuration (`semantics='huggingface'`) and `{'params': ...}` with NumPy arrays, as
        `ReformerLM(config).apply` takes them.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if it is not a Reformer language model, or has options or tensors that do not fit.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}.")
    directory = Path(directory)
    config = _read_config(directory / _CONFIG_FILE, dtype)
    weights_path = directory / _WEIGHTS_FILE
    stored = _read_tensors(weights_path)
    layout = _layout(config)
    expected = {tensor.name: tensor.stored_shape for tensor in layout}
    _check_shapes(str(weights_path), expected, {name: array.shape for name, array in stored.items()})
    leaves: dict[tuple[str, ...], list[np.ndarray]] = {}
    for tensor in layout:
        array = tensor.from_stored(stored[tensor.name]).astype(jnp.dtype(dtype))
        leaves.setdefault(tensor.path, []).append(array)
    params = {path: np.stack(arrays) if path[0] == "stack" else arrays[0] for path, arrays in leaves.items()}
    return config, {"params": traverse_util.unflatten_dict(params)}


def save(directory: str | os.PathLike, config: ReformerConfig, variables: Mapping[str, Any]) -> None:
    """Writes a language model for `transformers`, in the types of its arrays.

    `load` gives back the same arrays bit for bit when called with their type, and a configuration
    that is the same function: automatic choices are written as what they resolve to, and the layout
    is that of the shortest `attention_pattern` that repeats. How to compute (`reversible`, `dtype`,
    `param_dtype`) is not part of the format.

    Args:
        directory: Created if it is missing. Must not hold `config.json` or `model.safetensors`.
        config: Must have `semantics='huggingface'` and only options that Hugging Face has.
        variables: `{'params': ...}` of `ReformerLM(config)`.

    Raises:
        FileExistsError: if one of the two files exists.
        ValueError: if the format cannot express the model, or arrays do not fit `config`.
            Nothing is written then.
    """
    fields = json.dumps(fields_from_config(config), indent=2, sort_keys=True) + "\n"
    tensors = _stored_tensors(config, variables)
    directory = Path(directory)
    existing = [path for path in (directory / _CONFIG_FILE, directory / _WEIGHTS_FILE) if path.exists()]
    if existing or directory.is_file():
        raise FileExistsError(
            f"{(existing or [directory])[0]} exists and is not overwritten. Choose another directory."
        )
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".saving-") as staging:
        Path(staging, _WEIGHTS_FILE).write_bytes(safetensors.numpy.save(tensors, metadata={"format": "pt"}))
        Path(staging, _CONFIG_FILE).write_text(fields)
        for name in (_WEIGHTS_FILE, _CONFIG_FILE):  # without config.json it is no checkpoint yet
            Path(staging, name).rename(directory / name)


class _Tensor(NamedTuple):
    """One tensor of their file and where it lives in our parameters.

    `block` is its index on the leading axis of a leaf under `stack`, `shape` is ours without that axis.
    """

    name: str
    stored_shape: tuple[int, ...]
    path: tuple[str, ...]
    shape: tuple[int, ...]
    block: int | None = None
    is_kernel: bool = False

    def from_stored(self, array: np.ndarray) -> np.ndarray:
        """Theirs to ours: `[outputs, inputs]` to `[*inputs, *outputs]`."""
        return (array.T if self.is_kernel else array).reshape(self.shape)

    def to_stored(self, array: np.ndarray) -> np.ndarray:
        """Ours to theirs, contiguous, because safetensors ignores strides."""
        array = array if self.block is None else array[self.block]
        stored = array.reshape(self.stored_shape[::-1]).T if self.is_kernel else array.reshape(self.stored_shape)
        return np.ascontiguousarray(stored)


def _layout(config: ReformerConfig) -> list[_Tensor]:
    vocab, embed = config.vocab_size, config.embed_dim
    layers = (_layer_layout(config, depth) for depth in range(config.num_layers))
    return [
        _Tensor("reformer.embeddings.word_embeddings.weight", (vocab, embed), ("embeddings", "token"), (vocab, embed)),
        *_position_layout(config),
        *(tensor for layer in layers for tensor in layer),
        *_norm_layout("reformer.encoder.layer_norm", ("norm",), 2 * embed),
        _linear("lm_head.decoder", ("head",), (2 * embed,), (vocab,)),
        _Tensor(_HEAD_BIAS, (vocab,), ("head", "bias"), (vocab,)),
    ]


def _position_layout(config: ReformerConfig) -> list[_Tensor]:
    prefix = "reformer.embeddings.position_embeddings"
    if config.position_embedding == "learned":
        shape = (config.max_length, config.embed_dim)
        return [_Tensor(f"{prefix}.embedding.weight", shape, ("embeddings", "position"), shape)]
    sizes, dims = config.resolved_axial_shape, config.resolved_axial_dims
    tensors = []
    for axis, (size, dim) in enumerate(zip(sizes, dims, strict=True)):
        stored = (1,) * axis + (size,) + (1,) * (len(sizes) - axis - 1) + (dim,)
        tensors.append(_Tensor(f"{prefix}.weights.{axis}", stored, ("embeddings", f"axial_{axis}"), (size, dim)))
    return tensors


def _layer_layout(config: ReformerConfig, depth: int) -> list[_Tensor]:
    block, index = divmod(depth, len(config.attention_pattern))
    embed, mlp, heads = (config.embed_dim,), (config.mlp_dim,), (config.num_heads, config.head_dim)
    prefix, path = f"reformer.encoder.layers.{depth}", ("stack", f"layer_{index}")
    projections = ("query_key", "value") if config.attention_pattern[index] == "lsh" else ("query", "key", "value")
    attention, feed_forward = (*path, "attention"), (*path, "feed_forward")
    return [
        *_norm_layout(f"{prefix}.attention.layer_norm", (*attention, "norm"), *embed, block),
        *(
            _linear(f"{prefix}.attention.self_attention.{name}", (*attention, name), embed, heads, block)
            for name in projections
        ),
        _linear(f"{prefix}.attention.output.dense", (*attention, "output"), heads, embed, block),
        *_norm_layout(f"{prefix}.feed_forward.layer_norm", (*feed_forward, "norm"), *embed, block),
        *_dense_layout(f"{prefix}.feed_forward.dense.dense", (*feed_forward, "hidden"), embed, mlp, block),
        *_dense_layout(f"{prefix}.feed_forward.output.dense", (*feed_forward, "output"), mlp, embed, block),
    ]


def _linear(name, path, inputs, outputs, block=None) -> _Tensor:
    stored_shape = (math.prod(outputs), math.prod(inputs))
    return _Tensor(f"{name}.weight", stored_shape, (*path, "kernel"), inputs + outputs, block, is_kernel=True)


def _dense_layout(name, path, inputs, outputs, block) -> list[_Tensor]:
    bias = _Tensor(f"{name}.bias", outputs, (*path, "bias"), outputs, block)
    return [_linear(name, path, inputs, outputs, block), bias]


def _norm_layout(name, path, size, block=None) -> list[_Tensor]:
    leaves = {"weight": "scale", "bias": "bias"}
    return [_Tensor(f"{name}.{theirs}", (size,), (*path, ours), (size,), block) for theirs, ours in leaves.items()]


def _read_config(path: Path, dtype: str) -> ReformerConfig:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. A Hugging Face model is a directory with config.json.")
    try:
        fields = json.loads(path.read_text())
        if not isinstance(fields, dict):
            raise ValueError(f"must be a JSON object, not {type(fields).__name__}.")
        return config_from_fields(fields, dtype)
    except ValueError as error:  # also what json raises
        raise ValueError(f"{path}: {error}") from error


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
    if "lm_head.decoder.weight" not in stored:
        groups = ", ".join(sorted({name.split(".")[0] for name in stored}))
        raise ValueError(
            f"{path} is not a language model: it has no lm_head.decoder.weight, but tensors under {groups}. "
            f"Only {CAUSAL_MODEL} and {BIDIRECTIONAL_MODEL} can be loaded."
        )
    return _without_redundancy(path, stored)


def _without_redundancy(path: Path, stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    stored = {name: array for name, array in stored.items() if not name.endswith(_CONSTANTS)}
    alias = stored.pop(_HEAD_BIAS_ALIAS, None)
    if alias is not None and not np.array_equal(stored.setdefault(_HEAD_BIAS, alias), alias):
        raise ValueError(f"{path}: {_HEAD_BIAS} and {_HEAD_BIAS_ALIAS} differ, but they are one parameter. Remove one.")
    for name, array in stored.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{path}: {name} has type {array.dtype}; only floating-point tensors can be loaded.")
    return stored


def _stored_tensors(config: ReformerConfig, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    if "params" not in variables:
        raise ValueError(f"variables with the keys {list(variables)} must be {{'params': ...}} of ReformerLM(config).")
    leaves = {path: np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(variables["params"]).items()}
    layout = _layout(config)
    expected = {
        tensor.path: tensor.shape if tensor.block is None else (config.num_blocks, *tensor.shape) for tensor in layout
    }
    _check_shapes("variables", _by_name(expected), _by_name({path: leaf.shape for path, leaf in leaves.items()}))
    for path, leaf in leaves.items():
        if str(leaf.dtype) not in DTYPES:
            raise ValueError(f"{'/'.join(path)} has type {leaf.dtype}, which must be one of {', '.join(DTYPES)}.")
    stored = {tensor.name: tensor.to_stored(leaves[tensor.path]) for tensor in layout}
    return stored | {_HEAD_BIAS_ALIAS: stored[_HEAD_BIAS]}


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
