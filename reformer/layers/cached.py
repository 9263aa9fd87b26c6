"""The stack of layers for one new token per row, with the caches of its attention layers."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from reformer.config import ReformerConfig
from reformer.layers.attention import SelfAttention, with_taps
from reformer.layers.cross_attention import CrossAttention, KeysValues
from reformer.layers.feed_forward import FeedForward
from reformer.layers.kinds import KINDS
from reformer.ops import cache as ops
from reformer.ops.cache import Cache
from reformer.ops.reversible import run_functions


class SourceCache(NamedTuple):
    """What the cross attention of all layers reads, computed once.

    Attributes:
      keys_values: for every layer of the pattern those of all blocks, stacked.
      mask: True = a real token; None = all are.
    """

    keys_values: tuple[KeysValues, ...]
    mask: Bool[Array, "sources length"] | None


def make_caches(config: ReformerConfig, num_rows: int, capacity: int) -> tuple[Cache, ...]:
    """Makes for every layer of the pattern the empty caches of all blocks, for up to `capacity` tokens per row."""
    shape = (config.num_blocks, num_rows, config.num_heads)
    dtype = jnp.dtype(config.dtype)
    plans = [KINDS[kind].cache(config, capacity) for kind in config.attention_pattern]
    return tuple(ops.empty(plan, shape, config.head_dim, config.num_hashes, dtype) for plan in plans)


def read_source(
    config: ReformerConfig,
    params,
    hidden: Float[Array, "sources length width"],
    mask: Bool[Array, "sources length"] | None,
) -> SourceCache:
    """Computes the keys and values that all layers make of a context; `params` as in `stack.run_stack`."""
    layer = CrossAttention(config, parent=None)

    def project(params) -> KeysValues:
        return layer.apply({"params": params}, hidden, method="project")  # type: ignore[return-value]

    layers = [params[f"layer_{i}"]["cross_attention"] for i in range(len(config.attention_pattern))]
    return SourceCache(tuple(jax.lax.map(project, of_blocks) for of_blocks in layers), mask)


def run_stack_once(
    config: ReformerConfig,
    params,
    x: Float[Array, "batch 1 embed"],
    position: Int[Array, " batch"],
    caches: tuple[Cache, ...],
    rotations: tuple,
    source: SourceCache | None = None,
):
    """Runs all blocks for one token per row.

    Args:
      config: the model's.
      params: as in `stack.run_stack`.
      x: the embedded tokens.
      position: where they stand in their rows.
      caches: for every layer of the pattern those of all blocks, stacked.
      rotations: likewise; None for layers that do not hash.
      source: what cross attention reads; each source is that of equally many rows, which lie side by side.

    Returns:
      Both streams, and the caches with the tokens in them.
    """
    pattern = config.attention_pattern
    plans = [KINDS[kind].cache(config, cache.key.shape[3]) for kind, cache in zip(pattern, caches, strict=True)]

    def run_block(state, block):
        streams, caches = state
        number, params, rotations, keys_values = block
        functions = []
        for i, kind in enumerate(pattern):
            layer = params[f"layer_{i}"]
            attend = partial(ops.attend_next, plans[i], caches[i], number, position=position, rotations=rotations[i])
            functions.append(partial(_attend, config, kind, layer["attention"], attend))
            if source is not None:
                functions.append(partial(_read, config, layer["cross_attention"], keys_values[i], source.mask))
            functions.append(partial(_feed_forward, config, layer["feed_forward"]))
        streams, saved = run_functions(functions, streams, config.num_streams)
        return (streams, saved[:: len(functions) // len(pattern)]), None  # the attention of every layer saves a cache

    keys_values = None if source is None else source.keys_values
    blocks = (jnp.arange(config.num_blocks), params, rotations, keys_values)
    return jax.lax.scan(run_block, ((x, x), caches), blocks)[0]


def _attend(config: ReformerConfig, kind: str, params, attend: Callable, x, onto):
    """Self-attention as a residual function that saves its cache; `attend` is `cache.attend_next` of arrays."""
    layer, variables = SelfAttention(config, kind, parent=None), {"params": params}
    projected: Any = layer.apply(variables, x, method="project")
    attended, cache = attend(arrays=with_taps(params, projected))
    return onto + layer.apply(variables, attended, x.dtype, method="combine"), cache


def _read(config: ReformerConfig, params, keys_values: KeysValues, mask, x: Float[Array, "rows 1 embed"], onto):
    """Cross attention: the rows of a source are its queries, so that keys and values are not copied for each."""
    queries = x.reshape(len(keys_values.key), -1, x.shape[-1])
    layer = CrossAttention(config, parent=None)
    read: Any = layer.apply({"params": params}, queries, keys_values, mask, method="attend")
    return onto + read.reshape(x.shape), ()


def _feed_forward(config: ReformerConfig, params, x, onto):
    return onto + FeedForward(config, parent=None).apply({"params": params}, x), ()
