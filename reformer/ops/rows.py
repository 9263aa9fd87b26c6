"""Attention of one row: one head of one example, worked block by block.

A row is cut into slots: its tokens in natural order (local attention) or in sorted order, once for
every hash round (LSH). A scan goes over the blocks of a round and a scan over the rounds, so that
scratch memory is bounded by the block. All rounds are one softmax over the multiset of their
windows: their results are merged by their log-normalisers, and the backward pass needs nothing of
a single round but its permutation.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from reformer.ops import block as block_ops
from reformer.ops import chunking
from reformer.ops.block import Block
from reformer.ops.chunking import NO_POSITION, Geometry
from reformer.ops.dropout import fold
from reformer.ops.masking import Pairs, Rule, Tokens
from reformer.ops.sorting import invert

_UNIT_EPSILON = 1e-6  # inside the root, as trax and Hugging Face have it


class Arrays(NamedTuple):
    """What attention differentiates. `key` is None under a shared projection."""

    query: Float[Array, "*rows l d"]
    key: Float[Array, "*rows l d"] | None
    value: Float[Array, "*rows l e"]


class Order(NamedTuple):
    """How the tokens of a row are sorted in every round. `buckets` only where masks need them."""

    permutation: Int[Array, "*rows r l"]
    buckets: Int[Array, "*rows r l"] | None = None


class Context(NamedTuple):
    """What attention does not differentiate: mask (True = real token), order and dropout seed."""

    mask: Bool[Array, "*rows l"] | None = None
    order: Order | None = None
    seed: UInt[Array, "*rows"] | None = None


class Plan(NamedTuple):
    """The static part of an attention. Hashable.

    Attributes:
      rule: who attends to whom.
      cut: chunks and blocks; for full attention a chunk is a block of queries that sees every key.
      is_full: full attention.
      correct_duplicates: subtract log N_ij, how many rounds a pair meets in.
      rows_at_once: how many rows are computed together.
    """

    rule: Rule
    cut: Geometry
    is_full: bool = False
    correct_duplicates: bool = False
    rows_at_once: int = 1

    @property
    def wraps(self) -> bool:
        """Whether the windows at the edges wrap around."""
        return self.rule.semantics == "huggingface" and not self.is_full


def unit_keys(x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
    """Scales vectors to length 1, computed in at least float32.

    Source: arXiv 2001.04451, section 2, "Shared-QK attention"; the epsilon is trax's.
    """
    wide = x.astype(block_ops.accumulation_dtype(x.dtype))
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean_square + _UNIT_EPSILON) * x.shape[-1] ** -0.5).astype(x.dtype)


class _Round(NamedTuple):
    """How the blocks of one round reach their tokens."""

    position: Int[Array, " extended"]  # of every slot, the empty ones at the edges included
    inverse: Int[Array, " l"] | None  # slot of every position; None = natural order
    bucket: Int[Array, " l"] | None  # of every position
    seed: UInt[Array, ""] | None


def _rounds(plan: Plan, context: Context, length: int) -> _Round:
    """All rounds, stacked."""
    natural = jnp.arange(length, dtype=jnp.int32)
    if context.order is None and not plan.wraps:
        position, inverse, buckets, num_rounds = chunking.extend(natural, plan.cut, NO_POSITION)[None], None, None, 1
    else:
        permutation, buckets = (natural[None], None) if context.order is None else context.order
        extend = chunking.extend_wrapped if plan.wraps else jax.vmap(chunking.extend, in_axes=(0, None, None))
        position, inverse, num_rounds = extend(permutation, plan.cut, NO_POSITION), invert(permutation), len(permutation)
    seeds = None
    if context.seed is not None:
        seeds = fold(jnp.broadcast_to(context.seed, (num_rounds,)), jnp.arange(num_rounds))
    return _Round(position, inverse, buckets, seeds)


def _tokens(plan: Plan, context: Context, rounds: _Round, this: _Round, length: int) -> Tokens:
    """What the masks of round `this` know of every position."""
    chunks = buckets = None
    if plan.correct_duplicates:
        chunks = rounds.inverse.T // plan.cut.chunk_length
        buckets = None if rounds.bucket is None else rounds.bucket.T
    return Tokens(jnp.arange(length, dtype=jnp.int32), context.mask, this.bucket, chunks, buckets)


class _View(NamedTuple):
    """One round as its blocks see it."""

    plan: Plan
    round: _Round
    tokens: Tokens
    arrays: Arrays

    def slots(self, i) -> tuple[Arrays, Tokens]:
        """Reads the slots of block `i`: its queries' and the chunks around them."""
        cut = self.plan.cut
        start = i * cut.block * cut.chunk_length
        size = (cut.block + cut.before + cut.after) * cut.chunk_length
        position = jax.lax.dynamic_slice_in_dim(self.round.position, start, size)
        tokens = jax.tree.map(lambda x: jnp.take(x, position, axis=0, mode="clip"), self.tokens)
        if self.round.inverse is None:
            read = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size)
            arrays = jax.tree.map(lambda x: read(chunking.extend(x, cut, 0)), self.arrays)
        else:
            arrays = jax.tree.map(lambda x: jnp.take(x, position, axis=0, mode="clip"), self.arrays)
        return arrays, tokens._replace(position=position)

    def pairs(self, tokens: Tokens) -> Pairs:
        """Pairs the queries among the slots of a block with their windows."""
        cut = self.plan.cut
        query = jax.tree.map(lambda x: chunking.queries(x, cut), tokens)
        key = jax.tree.map(lambda x: chunking.windows(x, cut), tokens)
        return Pairs(query, key, self.round.seed)

    def assemble(self, arrays: Arrays) -> tuple:
        """Lays the slots of a block out as queries and windows of keys and values."""
        cut = self.plan.cut
        key = unit_keys(arrays.query) if arrays.key is None else arrays.key
        return chunking.queries(arrays.query, cut), chunking.windows(key, cut), chunking.windows(arrays.value, cut)


def _views(plan: Plan, arrays: Arrays, context: Context):
    """The rounds of a row, and the function that makes a view of one of them."""
    length = arrays.query.shape[0]
    rounds = _rounds(plan, context, length)

    def view(this: _Round) -> _View:
        return _View(plan, this, _tokens(plan, context, rounds, this, length), arrays)

    return rounds, view


def _unsort(slots, view: _View, first: int = 0):
    """Brings an array over slots back to positions; the chunks of the round start at slot `first`."""
    if view.round.inverse is None:
        return jax.lax.slice_in_dim(slots, first, first + view.arrays.query.shape[0])
    return jnp.take(slots, view.round.inverse + first, axis=0, mode="clip")


def _flatten(blocks):
    """Merges the axes [blocks, block, chunk, ...] into one of slots."""
    return blocks.reshape(-1, *blocks.shape[3:])


def chunked_forward(plan: Plan, arrays: Arrays, context: Context):
    """Local or LSH attention of a row.

    Returns:
      Output [l, e] and log-normaliser [l] of the softmax over all rounds, in at least float32.
    """
    rounds, make_view = _views(plan, arrays, context)
    dtype = block_ops.accumulation_dtype(arrays.value.dtype)

    def attend_round(carry, this):
        view = make_view(this)

        def attend_block(i):
            slots, tokens = view.slots(i)
            return block_ops.forward(plan.rule, Block(*view.assemble(slots), view.pairs(tokens)))

        out, log_normalizer = jax.lax.map(attend_block, jnp.arange(plan.cut.num_blocks))
        return _merge(carry, tuple(_unsort(_flatten(x), view) for x in (out, log_normalizer))), None

    length = arrays.query.shape[0]
    nothing = jnp.zeros((length, arrays.value.shape[-1]), dtype), jnp.full(length, -jnp.inf, dtype)
    return jax.lax.scan(attend_round, nothing, rounds)[0]


def _merge(one, other):
    """Merges two parts of a softmax, given as (output, log-normaliser)."""
    log_normalizer = jnp.logaddexp(one[1], other[1])
    parts = [out * jnp.exp(part - log_normalizer)[:, None] for out, part in (one, other)]
    return sum(parts), log_normalizer


def chunked_backward(plan: Plan, arrays: Arrays, context: Context, out, log_normalizer, out_gradient) -> Arrays:
    """Cotangents of a row from those of its output, given its output and log-normaliser."""
    delta = jnp.sum(out.astype(log_normalizer.dtype) * out_gradient, axis=-1)

    def differentiate(view: _View, block: Block, tokens: Tokens):
        at_queries = _at_queries(view, tokens, (out_gradient, delta, log_normalizer))
        return (), block_ops.backward(plan.rule, block, *at_queries)

    return _chunked_gradients(plan, arrays, context, differentiate)[1]


def chunked_forward_and_backward(plan: Plan, arrays: Arrays, context: Context, out_gradient):
    """Output and cotangents of a row in one pass over its blocks, for a single round."""

    def differentiate(view: _View, block: Block, tokens: Tokens):
        (at_queries,) = _at_queries(view, tokens, (out_gradient,))
        return block_ops.forward_and_backward(plan.rule, block, at_queries)

    return _chunked_gradients(plan, arrays, context, differentiate)


def _at_queries(view: _View, tokens: Tokens, arrays):
    """Reads arrays over positions at the queries of a block, zero at empty slots."""
    position = chunking.queries(tokens.position, view.plan.cut)

    def read(x):
        found = jnp.take(x, position, axis=0, mode="clip")
        return jnp.where((position >= 0).reshape(position.shape + (1,) * (x.ndim - 1)), found, 0)

    return jax.tree.map(read, arrays)


def _chunked_gradients(plan: Plan, arrays: Arrays, context: Context, differentiate):
    """Runs `differentiate` over all blocks and rounds and sums the cotangents over positions."""
    rounds, make_view = _views(plan, arrays, context)
    first = plan.cut.before * plan.cut.chunk_length
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, block_ops.accumulation_dtype(x.dtype)), arrays)

    def visit_round(total, this):
        view = make_view(this)
        outs, at_slots = _round_gradients(view, differentiate)
        total = jax.tree.map(lambda sum_, new: sum_ + _unsort(new, view, first), total, at_slots)
        if plan.wraps:
            total = jax.tree.map(partial(_add_edges, plan.cut, this.position), total, at_slots)
        return total, jax.tree.map(lambda x: _unsort(_flatten(x), view), outs)

    total, outs = jax.lax.scan(visit_round, zeros, rounds)
    return jax.tree.map(lambda x: x[0], outs), total


def _round_gradients(view: _View, differentiate):
    """Visits the blocks of a round. Windows overlap: what reaches into the next block is carried there.

    Returns:
      What `differentiate` returns first, stacked over blocks, and the cotangents of all slots.
    """
    cut = view.plan.cut
    overlap = (cut.before + cut.after) * cut.chunk_length
    wide = jax.tree.map(lambda x: block_ops.accumulation_dtype(x.dtype), view.arrays)

    def visit_block(carried, i):
        slots, tokens = view.slots(i)
        laid_out, transpose = jax.vjp(view.assemble, jax.tree.map(lambda x, dtype: x.astype(dtype), slots, wide))
        block = Block(*(x.astype(view.arrays.query.dtype) for x in laid_out), view.pairs(tokens))
        out, gradients = differentiate(view, block, tokens)
        (at_slots,) = transpose(tuple(gradients))
        at_slots = jax.tree.map(_add_to_front, at_slots, carried)
        done = jax.tree.map(lambda x: x[: len(x) - overlap], at_slots)
        return jax.tree.map(lambda x: x[len(x) - overlap :], at_slots), (out, done)

    nothing = jax.tree.map(lambda x, dtype: jnp.zeros((overlap, x.shape[-1]), dtype), view.arrays, wide)
    last, (outs, done) = jax.lax.scan(visit_block, nothing, jnp.arange(cut.num_blocks))
    return outs, jax.tree.map(lambda x, tail: jnp.concatenate([x.reshape(-1, x.shape[-1]), tail]), done, last)


def _add_to_front(x, front):
    return jnp.concatenate([x[: len(front)] + front, x[len(front) :]])


def _add_edges(cut: Geometry, position, total, at_slots):
    """Adds the cotangents of wrapped-around slots; few and only under Hugging Face semantics, so a scatter will do."""
    first, inner = cut.before * cut.chunk_length, cut.num_chunks * cut.chunk_length
    for edge in (slice(0, first), slice(first + inner, first + inner + cut.after * cut.chunk_length)):
        total = total.at[position[edge]].add(at_slots[edge])
    return total


def full_forward(plan: Plan, arrays: Arrays, context: Context):
    """Full attention of a row, a block of queries at a time. Returns as `chunked_forward`."""
    length = arrays.query.shape[0]
    make_block = _full_blocks(plan, arrays, context)

    def attend_block(i):
        return block_ops.forward(plan.rule, make_block(i))

    out, log_normalizer = jax.lax.map(attend_block, jnp.arange(plan.cut.num_chunks))
    return _flatten(out)[:length], _flatten(log_normalizer)[:length]


def full_backward(plan: Plan, arrays: Arrays, context: Context, out, log_normalizer, out_gradient) -> Arrays:
    """Cotangents of a row of full attention, as `chunked_backward`."""
    delta = jnp.sum(out.astype(log_normalizer.dtype) * out_gradient, axis=-1)

    def differentiate(block: Block, i):
        at_queries = (_query_slice(plan, x, i) for x in (out_gradient, delta, log_normalizer))
        return (), block_ops.backward(plan.rule, block, *at_queries)

    return _full_gradients(plan, arrays, context, differentiate)[1]


def full_forward_and_backward(plan: Plan, arrays: Arrays, context: Context, out_gradient):
    """Output and cotangents of a row of full attention in one pass over its blocks."""

    def differentiate(block: Block, i):
        return block_ops.forward_and_backward(plan.rule, block, _query_slice(plan, out_gradient, i))

    return _full_gradients(plan, arrays, context, differentiate)


def _query_slice(plan: Plan, x, i, fill=0):
    """The queries of block `i` of an array over positions, as one chunk [1, q, ...]."""
    padding = plan.cut.num_chunks * plan.cut.chunk_length - len(x)
    padded = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
    return jax.lax.dynamic_slice_in_dim(padded, i * plan.cut.chunk_length, plan.cut.chunk_length)[None]


def _full_blocks(plan: Plan, arrays: Arrays, context: Context):
    """Returns a function that makes block `i`: some queries and all keys."""
    position = jnp.arange(arrays.query.shape[0], dtype=jnp.int32)
    key_tokens = Tokens(position[None], None if context.mask is None else context.mask[None])
    seed = None if context.seed is None else fold(context.seed, 0)
    key = (unit_keys(arrays.query) if arrays.key is None else arrays.key)[None]

    def make_block(i) -> Block:
        query_tokens = Tokens(_query_slice(plan, position, i, NO_POSITION))
        pairs = Pairs(query_tokens, key_tokens, seed)
        return Block(_query_slice(plan, arrays.query, i), key, arrays.value[None], pairs)

    return make_block


def _full_gradients(plan: Plan, arrays: Arrays, context: Context, differentiate):
    make_block = _full_blocks(plan, arrays, context)
    length = arrays.query.shape[0]

    def visit_block(total, i):
        out, gradients = differentiate(make_block(i), i)
        total = jax.tree.map(lambda sum_, new: sum_ + new[0], total, (gradients.key, gradients.value))
        return total, (out, gradients.query)

    dtype = block_ops.accumulation_dtype(arrays.value.dtype)
    zeros = jnp.zeros(arrays.query.shape, dtype), jnp.zeros(arrays.value.shape, dtype)
    (key, value), (out, query) = jax.lax.scan(visit_block, zeros, jnp.arange(plan.cut.num_chunks))
    out, query = jax.tree.map(lambda x: _flatten(x)[:length], (out, query))
    if arrays.key is None:
        (through_key,) = jax.vjp(unit_keys, arrays.query.astype(dtype))[1](key)
        return out, Arrays(query + through_key, None, value)
    return out, Arrays(query, key, value)
