"""The latest members of every hash bucket: where a new query of an LSH layer finds its keys.

The whole forward pass sorts all tokens of a round by (bucket, position) and shows a query the sorted slots around it.
While tokens arrive one by one nothing is sorted: a table of fixed size names the latest members of every bucket, and a
query sees those of its own and of the buckets beside it, which are its neighbours in the sorted list.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from reformer.ops import hashing
from reformer.ops.chunking import NO_POSITION
from reformer.ops.sorting import sort_by_bucket


class TablePlan(NamedTuple):
    """The static part of a table. Hashable.

    Attributes:
      factors: of the number of buckets.
      num_members: how many members of a bucket are kept, the latest.
      before: how many buckets before its own a query sees; none beyond the first.
      after: likewise after.
      correct_duplicates: a key that is seen in N rounds counts once instead of N times.
    """

    factors: tuple[int, ...]
    num_members: int
    before: int
    after: int
    correct_duplicates: bool = False

    @property
    def num_buckets(self) -> int:
        """Buckets of a round."""
        return math.prod(self.factors)


def table_plan(
    factors: tuple[int, ...],
    length: int,
    chunk_length: int,
    num_chunks_before: int,
    num_chunks_after: int,
    within_bucket: bool = False,
    correct_duplicates: bool = False,
) -> TablePlan:
    """Chooses the table that shows a query about what the chunks of the whole forward pass do.

    There a query stands on average in the middle of its chunk: it sees (num_chunks_before + 1/2) * chunk_length sorted
    slots before it and (num_chunks_after + 1/2) * chunk_length after it. That many of the latest members of a bucket
    are kept, and it takes the place of so many average buckets, of which half a one is the query's own. A bucket counts
    as half a chunk at least, as with an automatic number of buckets: emptier ones are not made up for by more of them.

    Args:
      factors: of the number of buckets.
      length: of the sequences that the buckets are made for, in tokens.
      chunk_length: tokens per chunk of the sorted list.
      num_chunks_before: how many chunks before its own a query sees.
      num_chunks_after: likewise after.
      within_bucket: whether it sees its own bucket only.
      correct_duplicates: as in `TablePlan`.
    """
    seen_before, seen_after = ((chunks + 0.5) * chunk_length for chunks in (num_chunks_before, num_chunks_after))
    in_bucket = max(length / math.prod(factors), chunk_length / 2)
    before, after = (int(max(0, seen / in_bucket - 0.5)) for seen in (seen_before, seen_after))
    if within_bucket:
        before = after = 0
    return TablePlan(factors, math.ceil(seen_before), before, after, correct_duplicates)


def empty(plan: TablePlan, shape: tuple[int, int, int, int]) -> Int[Array, "blocks batch heads rounds buckets members"]:
    """Tables without a member; `shape` counts blocks, examples, heads and rounds."""
    return jnp.full((*shape, plan.num_buckets, plan.num_members), NO_POSITION, jnp.int32)


def fill(
    plan: TablePlan,
    query_key: Float[Array, "batch heads length head_dim"],
    lengths: Int[Array, " batch"],
    rotations: Float[Array, "heads head_dim rounds columns"],
) -> Int[Array, "batch heads rounds buckets members"]:
    """Makes the table of whole prompts; only the first `lengths` tokens of a row enter.

    Returns:
      Positions in ascending order, NO_POSITION in front of them where a bucket has fewer.
    """
    length = query_key.shape[2]
    mask = jnp.arange(length)[None, :] < lengths[:, None]
    buckets = hashing.hash_vectors(query_key, rotations, plan.factors, mask)
    permutation = sort_by_bucket(buckets, plan.num_buckets + 1)
    back = jnp.arange(plan.num_members, 0, -1)

    def latest(buckets, permutation):
        first = jnp.searchsorted(buckets[permutation], jnp.arange(plan.num_buckets + 1))
        slot = first[1:, None] - back[None, :]
        return jnp.where(slot >= first[:-1, None], jnp.take(permutation, slot, mode="clip"), NO_POSITION)

    members = jax.vmap(latest)(*(x.reshape(-1, length) for x in (buckets, permutation)))
    return members.reshape(*buckets.shape[:3], plan.num_buckets, plan.num_members)


def insert(
    plan: TablePlan,
    members: Int[Array, "blocks batch heads rounds buckets members"],
    block: Int[Array, ""] | int,
    query_key: Float[Array, "batch heads 1 head_dim"],
    position: Int[Array, " batch"],
    rotations: Float[Array, "heads head_dim rounds columns"],
) -> tuple[Int[Array, "blocks batch heads rounds buckets members"], Int[Array, "batch heads rounds candidates"]]:
    """Puts a new token of every row into its buckets, in place of their oldest members.

    Args:
      plan: of the table.
      members: the tables of all blocks.
      block: which of them.
      query_key: the shared projection of the new tokens.
      position: their positions.
      rotations: of the layer.

    Returns:
      The tables, and for every round the positions that the new token sees, its own included;
      NO_POSITION where there is none.
    """
    bucket = hashing.hash_vectors(query_key, rotations, plan.factors)[..., 0]
    axes = jnp.meshgrid(*(jnp.arange(size) for size in bucket.shape), indexing="ij")
    old = members.at[(block, *axes, bucket)].get(mode="promise_in_bounds")
    newest = jnp.broadcast_to(position[:, None, None, None], (*bucket.shape, 1))
    updated = jnp.concatenate([old[..., 1:], newest], axis=-1)
    members = members.at[(block, *axes, bucket)].set(updated, unique_indices=True, mode="promise_in_bounds")

    offset = jnp.arange(-plan.before, plan.after + 1, dtype=jnp.int32)
    wanted = bucket[..., None] + offset[None, None, None, :]
    exists = (wanted >= 0) & (wanted < plan.num_buckets)
    beside = (block, *(x[..., None] for x in axes), jnp.clip(wanted, 0, plan.num_buckets - 1))
    seen = jnp.where(exists[..., None], members.at[beside].get(mode="promise_in_bounds"), NO_POSITION)
    return members, seen.reshape(*bucket.shape, -1)
