"""The stack of layers for one new token per row, with the caches of its attention layers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from reformer.config import ReformerConfig
from reformer.layers.attention import SelfAttention, is_shared, num_buckets
from reformer.layers.feed_forward import FeedForward
from reformer.ops import cache as ops
from reformer.ops.bucket_table import TablePlan, table_plan
from reformer.ops.cache import Cache, CachePlan
from reformer.ops.masking import Rule


def plan_cache(config: ReformerConfig, kind: str, capacity: int) -> CachePlan:
    """The static plan of the cache of a layer of `kind` for up to `capacity` tokens.

    Raises:
      ValueError: the model is not causal.
    """
    rule = Rule(config.causal, is_shared(config, kind), semantics=config.semantics)
    if kind == "local":
        chunk_length = config.local_chunk_length
        plan = CachePlan(rule, (1 + config.local_num_chunks_before) * chunk_length, chunk_length)
    else:
        plan = CachePlan(rule, capacity, capacity, _plan_table(config) if kind == "lsh" else None)
    ops.check_plan(plan)
    return plan


def _plan_table(config: ReformerConfig) -> TablePlan:
    factors = num_buckets(config.max_length, config)
    return table_plan(
        factors,
        config.max_length,
        config.lsh_chunk_length,
        config.lsh_num_chunks_before,
        config.lsh_num_chunks_after,
        config.lsh_within_bucket,
        config.lsh_correct_duplicates,
    )


def run_stack_once(
    config: ReformerConfig,
    params,
    x: Float[Array, "batch 1 embed"],
    position: Int[Array, " batch"],
    caches: tuple[Cache, ...],
    rotations: tuple,
):
    """Runs all blocks for one token per row.

    Args:
      config: the model's.
      params: as in `stack.run_stack`.
      x: the embedded tokens.
      position: where they stand in their rows.
      caches: for every layer of the pattern those of all blocks, stacked.
      rotations: likewise; None for layers that are not LSH.

    Returns:
      Both streams, and the caches with the tokens in them.
    """
    pattern = config.attention_pattern
    plans = [plan_cache(config, kind, cache.key.shape[3]) for kind, cache in zip(pattern, caches, strict=True)]

    def run_block(state, of_block):
        (x1, x2), caches = state
        block, params, rotations = of_block
        new_caches = []
        for i, kind in enumerate(pattern):
            layer, variables = SelfAttention(config, kind, parent=None), {"params": params[f"layer_{i}"]["attention"]}
            arrays = layer.apply(variables, x2, method="project")
            attended, cache = ops.attend_next(plans[i], caches[i], block, arrays, position, rotations[i])
            x1, x2 = x2, x1 + layer.apply(variables, attended, x2.dtype, method="combine")
            feed_forward = FeedForward(config, parent=None)
            x1, x2 = x2, x1 + feed_forward.apply({"params": params[f"layer_{i}"]["feed_forward"]}, x2)
            new_caches.append(cache)
        return ((x1, x2), tuple(new_caches)), None

    blocks = (jnp.arange(config.num_blocks), params, rotations)
    return jax.lax.scan(run_block, ((x, x), caches), blocks)[0]
