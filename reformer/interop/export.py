"""Trained models for other programs: arrays as safetensors, the forward pass of a language model by `jax.export`."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import safetensors
import safetensors.flax
from flax import traverse_util
from jax import export

from reformer import sharding
from reformer.config import ReformerConfig
from reformer.host import extras, paths
from reformer.models.language import ReformerLM

_CONFIG = "reformer_config"  # in the metadata of the file


def save_safetensors(path: str | Path, config: ReformerConfig, variables: Mapping[str, Any]) -> None:
    """Writes a model into one file that `load_safetensors` and every reader of safetensors understands.

    Args:
      path: Of the file.
      config: Of the model, as `reformer.load` returns it.
      variables: Of the model; the name of an array is its path, such as 'params/embeddings/token'.
    """
    arrays = traverse_util.flatten_dict(dict(variables), sep="/")
    path, metadata = paths.local(path), {_CONFIG: json.dumps(dataclasses.asdict(config))}
    safetensors.flax.save_file({name: jnp.asarray(array) for name, array in arrays.items()}, path, metadata)


def load_safetensors(path: str | Path) -> tuple[ReformerConfig, dict[str, Any]]:
    """Returns the config and the variables that `save_safetensors` wrote.

    Raises:
      ValueError: If the file is not one of those.
    """
    path = paths.local(path)
    try:
        with safetensors.safe_open(path, "flax") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a file of safetensors ({error}). Write it again.") from error
    if _CONFIG not in metadata:
        raise ValueError(
            f"{path} has no config of a Reformer: it was not written by save_safetensors. For a model of Hugging Face "
            "there is reformer.interop.huggingface."
        )
    stored = json.loads(metadata[_CONFIG])
    fields: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in stored.items()}
    if unknown := fields.keys() - ReformerConfig.__dataclass_fields__.keys():
        raise ValueError(
            f"{path} has the fields {', '.join(sorted(unknown))}, which this version lacks. Use a newer one."
        )
    return ReformerConfig(**fields), traverse_util.unflatten_dict(arrays, sep="/")


def export_logits(
    config: ReformerConfig,
    variables: Mapping[str, Any],
    *,
    batch_size: int = 1,
    length: int | None = None,
    hash_seed: int = 0,
    platforms: Sequence[str] | None = None,
) -> bytes:
    """Returns the forward pass of a language model as bytes that JAX runs without this package.

        call = jax.export.deserialize(written).call
        logits = call(variables, tokens)

    Args:
      config: Of the model.
      variables: Of the model, which stay apart: any of the same shapes may be given to the call.
      batch_size: Rows of the tokens.
      length: Of each row; None = `max_length`.
      hash_seed: Of the rotations of LSH layers, which are the same in each call.
      platforms: 'cpu', 'cuda', 'tpu', each with the block sizes that suit it; None = that of the default device.

    Raises:
      ValueError: If the length exceeds `max_length`.
      MissingPackageError: If flatbuffers are not installed.
    """
    with extras.needed_for("exporting a forward pass", "export"):
        import flatbuffers  # noqa: F401  # by JAX
    length = config.max_length if length is None else length
    platforms = tuple(platforms or (export.default_export_platform(),))

    def for_platform(platform):
        def logits(variables, tokens):
            with sharding.compiling_for(platform):
                return ReformerLM(config).apply(variables, tokens, rngs={"hash": jax.random.key(hash_seed)})

        return logits

    def logits(variables, tokens):
        return jax.lax.platform_dependent(variables, tokens, **{name: for_platform(name) for name in platforms})

    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), dict(variables))
    tokens = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
    return bytes(export.export(jax.jit(logits), platforms=platforms)(shapes, tokens).serialize())
