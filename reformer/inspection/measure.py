"""Runs a model and measures what its attention layers do."""

import dataclasses
import math
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from reformer.config import ReformerConfig
from reformer.inspection import attention
from reformer.layers.attention import num_buckets, plan_attention
from reformer.models.language import ReformerLM
from reformer.ops import hashing
from reformer.ops.attention import sort_by_hash
from reformer.ops.plan import Arrays, Context, Order, Plan

COUNTS = (1, 2, 4, 8)  # numbers of hash rounds whose coverage is measured, whatever the model was trained with


@dataclasses.dataclass(frozen=True)
class Sorting:
    """How an LSH layer hashed and sorted the tokens in the rounds that it ran.

    Attributes:
      buckets: of every position; the number `num_buckets` is that of padding.
      permutation: the position that stands in each sorted slot.
      num_buckets: of one round.
    """

    buckets: Int[np.ndarray, "heads rounds length"]
    permutation: Int[np.ndarray, "heads rounds length"]
    num_buckets: int

    @property
    def occupancy(self) -> Int[np.ndarray, "heads rounds buckets"]:
        """How many tokens fell into every bucket; padding is not counted."""
        ids = np.arange(self.num_buckets)
        rounds = self.buckets.reshape(-1, self.buckets.shape[-1])
        counts = np.stack([np.bincount(round, minlength=len(ids) + 1)[: len(ids)] for round in rounds])
        return counts.reshape(*self.buckets.shape[:2], len(ids))


@dataclasses.dataclass(frozen=True)
class Layer:
    """What was measured in one attention layer.

    Attributes:
      depth: from 0.
      kind: 'full', 'local' or 'lsh'.
      num_tokens: of the input.
      plan: its rule and how it cuts the tokens into chunks.
      sorting: None where nothing was sorted.
      picture: `attention.picture` of every head.
      counts: numbers of rounds of `coverage`.
      coverage: `attention.coverage` of every head.
    """

    depth: int
    kind: str
    num_tokens: int
    plan: Plan
    sorting: Sorting | None
    picture: Float[np.ndarray, "heads pixels pixels"]
    counts: tuple[int, ...]
    coverage: attention.Coverage


def measure(
    config: ReformerConfig,
    variables: Any,
    tokens: Int[np.ndarray, " length"],
    rng: PRNGKeyArray,
    *,
    counts: tuple[int, ...] = COUNTS,
    max_pixels: int = 512,
    max_queries: int = 256,
) -> list[Layer]:
    """Runs a model on one sequence and measures every attention layer.

    Memory grows with the length, not with its square. Full attention is computed for a sample of queries.

    Args:
      config: of the model.
      variables: of the model.
      tokens: the input.
      rng: of the LSH rotations.
      counts: numbers of rounds whose coverage is measured; rounds are independent of the parameters, so that a model
        can be asked about more than it runs with. Its own number is added.
      max_pixels: of a side of the picture of the weights; no more than there are tokens.
      max_queries: that coverage is averaged over, evenly spread.

    Returns:
      The layers in the order of their depth.

    Raises:
      ValueError: the sequence is empty or too long.
    """
    if not len(tokens):
        raise ValueError("The input holds 0 tokens. Give at least one.")
    options = _Options(
        num_tokens=len(tokens),
        num_pixels=min(len(tokens), max_pixels),
        num_queries=min(len(tokens), max_queries),
        counts=tuple(sorted({*counts, config.num_hashes})),
        factors=num_buckets(len(tokens), config),
        within_bucket=config.lsh_within_bucket,
        near=attention.Near(config.local_chunk_length, config.local_num_chunks_before, config.local_num_chunks_after),
    )
    rotations = _draw_rotations(config, options, rng)
    seen = _observe(config, variables, tokens, rotations)
    of_lsh = iter(rotations)
    layers = []
    for depth, layer in enumerate(seen):
        kind = config.attention_pattern[depth % len(config.attention_pattern)]
        layers.append(_measure_layer(config, depth, kind, options, layer, next(of_lsh) if kind == "lsh" else None))
    return layers


class _Options(NamedTuple):
    """Static; see `measure`."""

    num_tokens: int
    num_pixels: int
    num_queries: int
    counts: tuple[int, ...]
    factors: tuple[int, ...]
    within_bucket: bool
    near: attention.Near


def _draw_rotations(config: ReformerConfig, options: _Options, rng: PRNGKeyArray) -> list[Array]:
    """As many rounds as are measured; the model gets the first of them."""
    dtype = jnp.promote_types(jnp.float32, config.dtype)
    sizes = (config.num_heads, config.head_dim, max(options.counts), options.factors, dtype)
    return [hashing.draw_rotations(layer_rng, *sizes) for layer_rng in jax.random.split(rng, config.num_lsh_layers)]


def _observe(config: ReformerConfig, variables, tokens, rotations: list[Array]) -> list[tuple[Arrays, Context]]:
    """Runs the model; returns queries, keys and context of every layer in depth order, without the batch."""

    def look(i, arrays: Arrays, plan: Plan, context: Context):
        del i, plan
        if context.order is not None and not config.lsh_within_bucket:
            context = context._replace(order=context.order._replace(buckets=None))  # they would be a rule
        return jax.tree.map(lambda x: x[0], (arrays._replace(value=None, taps=None), context))

    @jax.jit
    def run(variables, tokens, rotations):
        own = [rotation[:, :, : config.num_hashes] for rotation in rotations]
        return ReformerLM(config).apply(variables, tokens, look, rotations=own, method="observe")[1]

    seen = run(variables, jnp.asarray(tokens, jnp.int32)[None], rotations)
    blocks = (jax.tree.map(itemgetter(block), seen) for block in range(config.num_blocks))
    return [layer for block in blocks for layer in block]


def _measure_layer(
    config: ReformerConfig, depth: int, kind: str, options: _Options, seen: tuple[Arrays, Context], rotations
) -> Layer:
    arrays, context = seen
    plan = plan_attention(config, kind, arrays.query.shape[1], False)
    buckets, picture, coverage = jax.device_get(_measure(plan, options, arrays, context, rotations))
    sorting = None
    if context.order is not None:
        permutation = np.asarray(context.order.permutation)
        sorting = Sorting(buckets[:, : config.num_hashes], permutation, math.prod(options.factors))
    return Layer(depth, kind, options.num_tokens, plan, sorting, picture, options.counts, coverage)


@partial(jax.jit, static_argnums=(0, 1))
def _measure(plan: Plan, options: _Options, arrays: Arrays, context: Context, rotations: Array | None):
    """Buckets [heads, rounds, length] or None, and picture and coverage of every head."""
    more_rounds = None
    if context.order is not None:
        more_rounds = _sort(arrays.query, context.mask, rotations, options.factors)
    buckets = None if more_rounds is None else more_rounds.buckets
    if more_rounds is not None and not options.within_bucket:
        more_rounds = more_rounds._replace(buckets=None)  # they would be a rule of who sees whom
    queries = jnp.linspace(0, options.num_tokens - 1, options.num_queries).round().astype(jnp.int32)
    wide = jax.tree.map(lambda x: x.astype(jnp.promote_types(jnp.float32, x.dtype)), arrays)

    def measure_head(head):
        arrays, order, more_rounds = head
        picture = attention.picture(plan, arrays, Context(context.mask, order), options.num_tokens, options.num_pixels)
        seen_in_more = Context(context.mask, more_rounds)
        coverage = attention.coverage(plan, arrays, seen_in_more, options.counts, queries, options.near)
        return picture, coverage

    return buckets, *jax.lax.map(measure_head, (wide, context.order, more_rounds))


def _sort(query_key, mask, rotations, factors: tuple[int, ...]) -> Order:
    """Hashes and sorts the tokens of every head, as the model does, in all rounds that are measured."""
    batch_mask = None if mask is None else mask[None]
    with_batch = sort_by_hash(query_key[None], rotations, factors, batch_mask, keep_buckets=True)
    return jax.tree.map(lambda x: x[0], with_batch)
