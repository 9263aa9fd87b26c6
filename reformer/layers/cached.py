"""The stack of layers for one new token per row, with the caches of its attention layers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from reformer.config import ReformerConfig
from reformer.layers.attention import SelfAttention, make_rule, num_buckets, with_taps
from reformer.layers.cross_attention import CrossAttention, KeysValues
from reformer.layers.feed_forward import FeedForward
from reformer.ops import cache as ops
from reformer.ops.bucket_table import TablePlan, table_plan
from reformer.ops.cache import Cache, CachePlan
from reformer.ops.reversible import next_streams


class SourceCache(NamedTuple):
    """What the cross attention of all layers reads, computed once.

    Attributes:
      keys_values: for every layer of the pattern those of all blocks, stacked.
      mask: True = a real token; None = all are.
    """

    keys_values: tuple[KeysValues, ...]
    mask: Bool[Array, "sources length"] | None


def plan_cache(config: ReformerConfig, kind: str, capacity: int) -> CachePlan:
    """The static plan of the cache of a layer of `kind` for up to `capacity` tokens.

    Raises:
      ValueError: the model is not causal.
    """
    rule = make_rule(config, kind)
    if kind == "local":
        chunk_length = config.local_chunk_length
        plan = CachePlan(rule, (1 + config.local_num_chunks_before) * chunk_length, chunk_length)
    else:
        plan = CachePlan(rule, capacity, capacity, _plan_table(config, capacity) if kind == "lsh" else None)
    ops.check_plan(plan)
    return plan


def _plan_table(config: ReformerConfig, capacity: int) -> TablePlan | None:
    """None where one chunk of the sorted list holds the whole sequence: a query sees all before it, in every round."""
    is_one_chunk = min(capacity, config.max_length) <= config.lsh_chunk_length
    if is_one_chunk and not config.lsh_within_bucket:
        return None
    factors = num_buckets(config.max_length, config)
    plan = table_plan(
        factors,
        config.max_length,
        config.lsh_chunk_length,
        config.lsh_num_chunks_before,
        config.lsh_num_chunks_after,
        config.lsh_within_bucket,
        config.lsh_correct_duplicates,
    )
    return plan._replace(num_members=max(plan.num_members, capacity)) if is_one_chunk else plan


def make_caches(config: ReformerConfig, num_rows: int, capacity: int) -> tuple[Cache, ...]:
    """Makes for every layer of the pattern the empty caches of all blocks, for up to `capacity` tokens per row."""
    shape = (config.num_blocks, num_rows, config.num_heads)
    dtype = jnp.dtype(config.dtype)
    plans = [plan_cache(config, kind, capacity) for kind in config.attention_pattern]
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
      rotations: likewise; None for layers that are not LSH.
      source: what cross attention reads; each source is that of equally many rows, which lie side by side.

    Returns:
      Both streams, and the caches with the tokens in them.
    """
    pattern = config.attention_pattern
    num_streams = config.num_streams
    plans = [plan_cache(config, kind, cache.key.shape[3]) for kind, cache in zip(pattern, caches, strict=True)]

    def run_block(state, of_block):
        (x1, x2), caches = state
        block, params, rotations, keys_values = of_block
        new_caches = []
        for i, kind in enumerate(pattern):
            layer, variables = SelfAttention(config, kind, parent=None), {"params": params[f"layer_{i}"]["attention"]}
            arrays = with_taps(variables["params"], layer.apply(variables, x2, method="project"))
            attended, cache = ops.attend_next(plans[i], caches[i], block, arrays, position, rotations[i])
            x1, x2 = next_streams(x2, x1 + layer.apply(variables, attended, x2.dtype, method="combine"), num_streams)
            if source is not None:
                read = _read(config, params[f"layer_{i}"]["cross_attention"], x2, keys_values[i], source.mask)
                x1, x2 = next_streams(x2, x1 + read, num_streams)
            feed_forward = FeedForward(config, parent=None)
            added = x1 + feed_forward.apply({"params": params[f"layer_{i}"]["feed_forward"]}, x2)
            x1, x2 = next_streams(x2, added, num_streams)
            new_caches.append(cache)
        return ((x1, x2), tuple(new_caches)), None

    keys_values = None if source is None else source.keys_values
    blocks = (jnp.arange(config.num_blocks), params, rotations, keys_values)
    return jax.lax.scan(run_block, ((x, x), caches), blocks)[0]


def _read(config: ReformerConfig, params, x: Float[Array, "rows 1 embed"], keys_values: KeysValues, mask):
    """Cross attention: the rows of a source are its queries, so that keys and values are not copied for each."""
    queries = x.reshape(len(keys_values.key), -1, x.shape[-1])
    layer = CrossAttention(config, parent=None)
    read: Any = layer.apply({"params": params}, queries, keys_values, mask, method="attend")
    return read.reshape(x.shape)
