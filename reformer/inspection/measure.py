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
from reformer.layers.kinds import KINDS, num_buckets
from reformer.layers.rotations import by_layer
from reformer.models.language import ReformerLM
from reformer.ops import hashing
from reformer.ops.masking import Window
from reformer.ops.plan import Arrays, Given, Plan

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
      kind: its name in `attention_pattern`.
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
        near=Window(config.local_chunk_length, config.local_num_chunks_before, config.local_num_chunks_after),
    )
    seen = _observe(config, variables, tokens, _draw_rotations(config, options, rng))
    kinds = config.attention_pattern * config.num_blocks
    return [_measure_layer(config, depth, kinds[depth], options, *layer) for depth, layer in enumerate(seen)]


class _Options(NamedTuple):
    """Static; see `measure`."""

    num_tokens: int
    num_pixels: int
    num_queries: int
    counts: tuple[int, ...]
    factors: tuple[int, ...]
    near: Window


def _draw_rotations(config: ReformerConfig, options: _Options, rng: PRNGKeyArray) -> list[Array]:
    """As many rounds as are measured; the model gets the first of them."""
    dtype = jnp.promote_types(jnp.float32, config.dtype)
    sizes = (config.num_heads, config.head_dim, max(options.counts), options.factors, dtype)
    return [hashing.draw_rotations(layer_rng, *sizes) for layer_rng in jax.random.split(rng, config.num_lsh_layers)]


def _observe(
    config: ReformerConfig, variables, tokens, rotations: list[Array]
) -> list[tuple[Arrays, Given, Array | None]]:
    """Runs the model; returns of every layer, in depth order and without the batch, queries, keys and what is given.

    The last are the layer's rotations, None where nothing is hashed.
    """

    def look(i, arrays: Arrays, plan: Plan, given: Given):
        del plan
        if given.order is not None and not KINDS[config.attention_pattern[i]].within_bucket(config):
            given = given._replace(order=given.order._replace(buckets=None))  # they would be a rule
        return jax.tree.map(lambda x: x[0], (arrays._replace(value=None, taps=None), given))

    @jax.jit
    def run(variables, tokens, rotations):
        own = [rotation[:, :, : config.num_hashes] for rotation in rotations]
        return ReformerLM(config).apply(variables, tokens, look, rotations=own, method="observe")[1]

    seen = run(variables, jnp.asarray(tokens, jnp.int32)[None], rotations)
    of_pattern = tuple((*layer, of_layer) for layer, of_layer in zip(seen, by_layer(config, rotations), strict=True))
    blocks = (jax.tree.map(itemgetter(block), of_pattern) for block in range(config.num_blocks))
    return [layer for block in blocks for layer in block]


def _measure_layer(
    config: ReformerConfig, depth: int, kind: str, options: _Options, arrays: Arrays, given: Given, rotations
) -> Layer:
    config = dataclasses.replace(config, attention_implementation="plain")  # which works row by row
    plan = KINDS[kind].plan(config, arrays.query.shape[1], False)
    measured = _measure(config, kind, plan, options, arrays, given, rotations)
    buckets, picture, coverage = jax.device_get(measured)
    sorting = None
    if given.order is not None:
        permutation = np.asarray(given.order.permutation)
        sorting = Sorting(buckets[:, : config.num_hashes], permutation, math.prod(options.factors))
    return Layer(depth, kind, options.num_tokens, plan, sorting, picture, options.counts, coverage)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _measure(config: ReformerConfig, kind: str, plan: Plan, options: _Options, arrays: Arrays, given: Given, rotations):
    """Buckets [heads, rounds, length] or None, and picture and coverage of every head."""
    buckets = more_rounds = None
    if given.order is not None:
        batch_mask = None if given.mask is None else given.mask[None]
        with_batch = KINDS[kind].sort(config, arrays.query[None], rotations, batch_mask, keep_buckets=True)
        more_rounds = jax.tree.map(lambda x: x[0], with_batch)
        buckets = more_rounds.buckets
        if not KINDS[kind].within_bucket(config):
            more_rounds = more_rounds._replace(buckets=None)  # they would be a rule of who sees whom
    queries = jnp.linspace(0, options.num_tokens - 1, options.num_queries).round().astype(jnp.int32)
    wide = jax.tree.map(lambda x: x.astype(jnp.promote_types(jnp.float32, x.dtype)), arrays)

    def measure_head(head):
        arrays, order, more_rounds = head
        picture = attention.picture(plan, arrays, Given(given.mask, order), options.num_tokens, options.num_pixels)
        seen_in_more = Given(given.mask, more_rounds)
        coverage = attention.coverage(plan, arrays, seen_in_more, options.counts, queries, options.near)
        return picture, coverage

    return buckets, *jax.lax.map(measure_head, (wide, given.order, more_rounds))
