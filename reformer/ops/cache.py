"""Causal attention of one new token per row to cached keys and values: decoding, token by token.

A cache has static shapes, and every row its own number of tokens, so that prompts may be ragged. Full and local
attention keep the latest `num_slots` keys and values in a ring, where position p stands in slot p % num_slots: a local
layer those of its window, a full layer those of the whole sequence. The rule says which of them a query sees. An LSH
layer keeps the whole sequence too, but reads only the few positions that a table of its buckets names (`bucket_table`),
so that a token costs the same whatever came before it; where one chunk holds the whole sequence it is a full layer.

Where values look ahead (`look_ahead`), the value of a new token is added to the slot of the key before it: it is what
that key has waited for, as its own key waits for the next token.

The caches of all blocks of a stack lie in one array with a leading axis, from which a step reads and into which it
writes by index: a loop over blocks can carry it without a copy.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from reformer.ops import block as block_ops
from reformer.ops import bucket_table, look_ahead
from reformer.ops.block import Block
from reformer.ops.bucket_table import TablePlan
from reformer.ops.masking import Pairs, Rule, Tokens
from reformer.ops.plan import Arrays, unit_keys


class CachePlan(NamedTuple):
    """The static part of a cache. Hashable.

    Attributes:
      rule: causal, without dropout.
      num_slots: keys and values that are kept, the latest: at least those that the rule shows.
      table: of an LSH layer of several chunks.
    """

    rule: Rule
    num_slots: int
    table: TablePlan | None = None


class Cache(NamedTuple):
    """What is kept of the tokens so far.

    Attributes:
      key: unit vectors under a shared projection. A slot that was not written yet holds anything.
      value: likewise.
      members: of an LSH layer, from `bucket_table`.
    """

    key: Float[Array, "*blocks batch heads slots d"]
    value: Float[Array, "*blocks batch heads slots e"]
    members: Int[Array, "*blocks batch heads rounds buckets members"] | None = None


def check_plan(plan: CachePlan) -> None:
    """Raises ValueError where there is no such thing as a next token."""
    if not plan.rule.causal:
        raise ValueError("causal=False has no next token. Decode with a model of causal=True.")
    if plan.rule.dropout_rate:
        raise ValueError(f"dropout_rate={plan.rule.dropout_rate} must be 0 where tokens are decoded.")
    if plan.num_slots < 1:
        raise ValueError(f"num_slots={plan.num_slots} must be at least 1.")


def empty(plan: CachePlan, shape: tuple[int, int, int], head_dim: int, num_rounds: int, dtype) -> Cache:
    """Makes the caches of a layer of the pattern before the first token.

    Args:
      plan: of the layer.
      shape: numbers of blocks, rows and heads.
      head_dim: of keys and values.
      num_rounds: of an LSH layer.
      dtype: of keys and values.
    """
    check_plan(plan)
    nothing = jnp.zeros((*shape, plan.num_slots, head_dim), dtype)
    members = None if plan.table is None else bucket_table.empty(plan.table, (*shape, num_rounds))
    return Cache(nothing, nothing, members)


def fill(
    plan: CachePlan,
    arrays: Arrays,
    lengths: Int[Array, " batch"],
    rotations: Float[Array, "heads head_dim rounds columns"] | None = None,
) -> Cache:
    """Makes the cache of one layer from the projections of whole prompts.

    Args:
      plan: of the layer; `num_slots` holds the longest prompt unless the layer is local.
      arrays: [batch, heads, length, head_dim]; padding, if any, on the right.
      lengths: real tokens of every row, at least 1. The others never enter.
      rotations: of an LSH layer.

    Returns:
      The cache, without an axis of blocks.
    """
    check_plan(plan)
    held = jnp.maximum(_held_positions(lengths - 1, plan.num_slots), 0)
    value = arrays.value
    if plan.rule.looks_ahead:
        ahead, own = look_ahead.parts(value, arrays.taps)
        is_real = jnp.arange(value.shape[2])[None] < lengths[:, None]
        value = (look_ahead.shift(jnp.where(is_real[:, None, :, None], ahead, 0)) + own).astype(value.dtype)
    take = jax.vmap(lambda x, position: jnp.take(x, position, axis=1, mode="clip"))
    key = unit_keys(arrays.query) if arrays.key is None else arrays.key
    members = None
    if plan.table is not None:
        members = bucket_table.fill(plan.table, arrays.query, lengths, rotations)
    return Cache(take(key, held), take(value, held), members)


def attend_next(
    plan: CachePlan,
    cache: Cache,
    block: Int[Array, ""] | int,
    arrays: Arrays,
    position: Int[Array, " batch"],
    rotations: Float[Array, "heads head_dim rounds columns"] | None = None,
) -> tuple[Float[Array, "batch heads 1 e"], Cache]:
    """Puts the next token of every row into the cache, then attends from it.

    Args:
      plan: as in `fill`.
      cache: of all blocks, stacked on a leading axis.
      block: which of them.
      arrays: projections of one token per row [batch, heads, 1, head_dim].
      position: of these tokens; all earlier ones are in the cache.
      rotations: as in `fill`.

    Returns:
      The attention output, and the cache.
    """
    check_plan(plan)
    cache = _write(plan, cache, block, arrays, position)
    if plan.table is None:
        seen = _held_positions(position, plan.num_slots)
        seen = jnp.broadcast_to(seen[:, None, None], (*arrays.query.shape[:2], 1, plan.num_slots))
        key, value = (jax.lax.dynamic_index_in_dim(x, block, keepdims=False) for x in (cache.key, cache.value))
    else:
        members, seen = bucket_table.insert(plan.table, cache.members, block, arrays.query, position, rotations)
        cache = cache._replace(members=members)
        key, value = (_gather(x, block, seen) for x in (cache.key, cache.value))
    return _attend(plan, arrays.query, key, value, position, seen), cache


def _held_positions(position, num_slots: int):
    """The latest position up to `position` [batch] that stands in each slot; negative = none yet."""
    slot = jnp.arange(num_slots, dtype=jnp.int32)
    return position[:, None] - (position[:, None] - slot[None, :]) % num_slots


def _write(plan: CachePlan, cache: Cache, block, arrays: Arrays, position) -> Cache:
    key = unit_keys(arrays.query) if arrays.key is None else arrays.key
    options = {"unique_indices": True, "mode": "promise_in_bounds"}

    def at(x, position):
        return x.at[block, jnp.arange(len(position)), :, position % plan.num_slots]

    own, ahead = arrays.value, None
    if plan.rule.looks_ahead:
        ahead, own = (x.astype(own.dtype) for x in look_ahead.parts(own, arrays.taps))
    keys = at(cache.key, position).set(key[:, :, 0], **options)
    values = at(cache.value, position).set(own[:, :, 0], **options)
    if ahead is not None:  # that of the first token goes to the last slot, which is set before anyone looks there
        values = at(values, position - 1).add(ahead[:, :, 0], **options)
    return cache._replace(key=keys, value=values)


def _gather(x, block, seen):
    """Reads [batch, heads, rounds * candidates, d] of one block at the positions `seen`."""
    batch, num_heads = seen.shape[:2]
    row, head = jnp.arange(batch)[:, None, None], jnp.arange(num_heads)[None, :, None]
    position = jnp.maximum(seen, 0).reshape(batch, num_heads, -1)
    return x.at[block, row, head, position].get(mode="promise_in_bounds")


def _attend(plan: CachePlan, query, key, value, position, seen):
    """One softmax over all that is seen [batch, heads, rounds, candidates], every row and head a chunk of one query."""
    batch, num_heads = query.shape[:2]

    def as_chunks(x):
        return x.reshape(batch * num_heads, *x.shape[2:])

    at_query = jnp.broadcast_to(position[:, None], (batch, num_heads)).reshape(-1, 1)
    per_round = as_chunks(seen)
    at_key = per_round.reshape(len(per_round), -1)
    query_tokens, key_tokens = Tokens(at_query), Tokens(at_key)
    if plan.table is not None and plan.table.correct_duplicates:
        # `count_meetings` counts the rounds in which both chunk numbers are 0.
        absent = ~(at_key[:, :, None, None] == per_round[:, None]).any(axis=-1)
        zeros = jnp.zeros((len(at_query), 1, per_round.shape[1]), jnp.int32)
        query_tokens, key_tokens = Tokens(at_query, chunks=zeros), Tokens(at_key, chunks=absent.astype(jnp.int32))
    laid_out = Block(as_chunks(query), as_chunks(key), as_chunks(value), Pairs(query_tokens, key_tokens))
    out, _ = block_ops.forward(plan.rule, laid_out)
    return out.reshape(batch, num_heads, 1, -1).astype(value.dtype)
