"""Local and LSH attention of one row: one head of one example, worked block by block.

A row is cut into slots: its tokens in natural order (local attention) or in sorted order, once for
every hash round (LSH). A scan goes over the blocks of a round and a scan over the rounds, so that
scratch memory is bounded by the block. All rounds are one softmax over the multiset of their
windows: their results are merged by their log-normalisers, and the backward pass needs nothing of
a single round but its permutation. What a round gives has the type of the arrays, and rounds are summed in at least
float32, as the fused kernel does.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt

from reformer.ops import block as block_ops
from reformer.ops import chunking
from reformer.ops.block import Block
from reformer.ops.chunking import NO_POSITION, Geometry
from reformer.ops.dropout import fold
from reformer.ops.masking import Pairs, Tokens
from reformer.ops.plan import Arrays, Given, Plan, unit_keys
from reformer.ops.sorting import invert, row_reader


class _Round(NamedTuple):
    """How the blocks of one round reach their tokens."""

    position: Int[Array, " extended"]  # of every slot, the empty ones at the edges included
    inverse: Int[Array, " l"] | None  # slot of every position; None = natural order
    bucket: Int[Array, " l"] | None  # of every position
    seed: UInt[Array, ""] | None


def _wraps(plan: Plan) -> bool:
    """Whether the windows at the edges wrap around."""
    return plan.rule.semantics == "huggingface"


def _rounds(plan: Plan, given: Given, length: int) -> _Round:
    """All rounds, stacked."""
    natural = jnp.arange(length, dtype=jnp.int32)
    if given.order is None and not _wraps(plan):
        position, inverse, buckets, num_rounds = chunking.extend(natural, plan.cut, NO_POSITION)[None], None, None, 1
    else:
        permutation, buckets = (natural[None], None) if given.order is None else given.order
        extend = chunking.extend_wrapped if _wraps(plan) else jax.vmap(chunking.extend, in_axes=(0, None, None))
        position, inverse, num_rounds = (
            extend(permutation, plan.cut, NO_POSITION),
            invert(permutation),
            len(permutation),
        )
    seeds = None
    if given.seed is not None:
        seeds = fold(given.seed, jnp.arange(num_rounds))
    return _Round(position, inverse, buckets, seeds)


def _tokens(plan: Plan, given: Given, rounds: _Round, this: _Round, length: int) -> Tokens:
    """What the masks of round `this` know of every position."""
    chunks = buckets = None
    if plan.correct_duplicates:
        chunks = rounds.inverse.T // plan.cut.chunk_length
        buckets = None if rounds.bucket is None else rounds.bucket.T
    position = jnp.arange(length, dtype=jnp.int32)
    return Tokens(position, given.mask, this.bucket, chunks, buckets, given.documents)


class _View(NamedTuple):
    """One round as its blocks see it."""

    plan: Plan
    round: _Round
    tokens: Tokens
    arrays: Arrays
    of_queries: Any  # pytree of arrays [l, ...] that are read at the queries of a block
    rows_at: Callable | None  # from positions to the rows of both; None = natural order

    def slots(self, i) -> tuple[Arrays, Tokens, Any]:
        """Reads the slots of block `i`, its queries' and the chunks around them: arrays, tokens, and `of_queries`."""
        cut = self.plan.cut
        start = i * cut.block * cut.chunk_length
        size = (cut.block + cut.before + cut.after) * cut.chunk_length
        position = jax.lax.dynamic_slice_in_dim(self.round.position, start, size)
        tokens = jax.tree.map(lambda x: jnp.take(x, position, axis=0, mode="clip"), self.tokens)
        if self.rows_at is None:
            read = jax.tree.map(lambda x: chunking.read_in_order(x, cut, i), (self.arrays, self.of_queries))
        else:
            read = self.rows_at(position)
        return read[0], tokens._replace(position=position), read[1]

    def pairs(self, tokens: Tokens, i) -> Pairs:
        """Pairs the queries among the slots of block `i` with their windows."""
        cut = self.plan.cut
        query = jax.tree.map(lambda x: chunking.queries(x, cut), tokens)
        # Behind the last chunk stand those that wrap around.
        if _wraps(self.plan) and cut.num_blocks * cut.block > cut.num_chunks:
            is_chunk = i * cut.block + jnp.arange(cut.block) < cut.num_chunks
            query = query._replace(position=jnp.where(is_chunk[:, None], query.position, NO_POSITION))
        key = jax.tree.map(lambda x: chunking.windows(x, cut), tokens)
        return Pairs(query, key, self.round.seed)

    def at_queries(self, pairs: Pairs, of_queries):
        """Lays what was read for the queries of a block out by chunk, zero at empty slots."""
        is_token = pairs.query.position >= 0

        def lay_out(x):
            found = chunking.queries(x, self.plan.cut)
            return jnp.where(is_token.reshape(is_token.shape + (1,) * (x.ndim - 1)), found, 0)

        return jax.tree.map(lay_out, of_queries)

    def assemble(self, arrays: Arrays) -> tuple:
        """Lays the slots of a block out as queries and windows of keys and values."""
        cut = self.plan.cut
        key = unit_keys(arrays.query) if arrays.key is None else arrays.key
        return chunking.queries(arrays.query, cut), chunking.windows(key, cut), chunking.windows(arrays.value, cut)


def _views(plan: Plan, arrays: Arrays, given: Given, of_queries=()):
    """The rounds of a row, and the function that makes a view of one of them."""
    length = arrays.query.shape[0]
    rounds = _rounds(plan, given, length)
    rows_at = None if rounds.inverse is None else row_reader((arrays, of_queries))

    def view(this: _Round) -> _View:
        return _View(plan, this, _tokens(plan, given, rounds, this, length), arrays, of_queries, rows_at)

    return rounds, view


def _unsort(slots, view: _View, first: int = 0):
    """Brings arrays over slots back to positions; the chunks of the round start at slot `first`."""
    if view.round.inverse is None:
        length = len(view.arrays.query)
        return jax.tree.map(lambda x: jax.lax.slice_in_dim(x, first, first + length), slots)
    return row_reader(slots)(view.round.inverse + first)


def forward(plan: Plan, arrays: Arrays, given: Given):
    """Local or LSH attention of a row.

    Returns:
      Output [l, e], and log-normaliser [l] of the softmax over all rounds in at least float32.
    """
    rounds, make_view = _views(plan, arrays, given)

    def attend_round(this):
        view = make_view(this)

        def attend_block(_, i):
            slots, tokens, _ = view.slots(i)
            out, log_normalizer = block_ops.forward(plan.rule, Block(*view.assemble(slots), view.pairs(tokens, i)))
            return (), (out.astype(arrays.value.dtype), log_normalizer)

        blocks = jnp.arange(plan.cut.num_blocks)
        out, log_normalizer = jax.lax.scan(attend_block, (), blocks, unroll=plan.blocks_in_flight)[1]
        return _unsort((chunking.flatten(out), chunking.flatten(log_normalizer)), view)

    out, log_normalizer = over_rounds(attend_round, merge, no_keys(arrays), rounds, arrays.value.dtype)
    return out.astype(arrays.value.dtype), log_normalizer


def over_rounds(run, combine, nothing, rounds, dtype):
    """Combines the results of all rounds, beginning with `nothing`; a single one is the result.

    One after another, or all at once where together they take no more memory than what they are combined into.

    Args:
      run: from a round to its result.
      combine: (result so far, result of a round) -> result.
      nothing: what changes no result that it is combined with.
      rounds: a tuple of arrays over rounds, among them `position`.
      dtype: of the arrays of a result.
    """
    num_rounds = len(rounds.position)
    if num_rounds == 1:
        return run(jax.tree.map(lambda x: x[0], rounds))
    if num_rounds * dtype.itemsize > jax.tree.leaves(nothing)[0].dtype.itemsize:
        return jax.lax.scan(lambda total, this: (combine(total, run(this)), None), nothing, rounds)[0]
    every = jax.lax.map(run, rounds)
    return reduce(combine, [jax.tree.map(lambda x, i=i: x[i], every) for i in range(num_rounds)], nothing)


def no_keys(arrays: Arrays):
    """The part of a softmax that has seen no keys: zeros and -inf as `merge` takes them, of one row or of many."""
    like = arrays.value
    dtype = block_ops.accumulation_dtype(like.dtype)
    return chunking.constant(like.shape, 0, dtype, like), chunking.constant(like.shape[:-1], -jnp.inf, dtype, like)


def no_gradients(arrays: Arrays) -> Arrays:
    """Zeros to add the cotangents of the arrays to."""
    return jax.tree.map(lambda x: chunking.constant(x.shape, 0, block_ops.accumulation_dtype(x.dtype), x), arrays)


def merge(one, other):
    """Merges two parts of a softmax, given as (output, log-normaliser).

    The shares are normalised by their own sum: the logarithm of a sum, near -1000 for tokens that
    have only themselves, would be too coarse in float32.
    """
    largest = jnp.maximum(one[1], other[1])
    shares = [jnp.exp(log_normalizer - largest) for _, log_normalizer in (one, other)]
    total = sum(shares)
    out = sum(out * (share / total)[:, None] for (out, _), share in zip((one, other), shares, strict=True))
    return out, largest + jnp.log(total)


def backward(plan: Plan, arrays: Arrays, given: Given, out, log_normalizer, out_gradient) -> Arrays:
    """Cotangents of a row from those of its output, given its output and log-normaliser."""
    delta = jnp.sum(out.astype(log_normalizer.dtype) * out_gradient, axis=-1)

    def differentiate(block: Block, of_queries):
        return (), block_ops.backward(plan.rule, block, *of_queries)

    return _gradients(plan, arrays, given, (out_gradient, delta, log_normalizer), differentiate)[1]


def forward_and_backward(plan: Plan, arrays: Arrays, given: Given, out_gradient):
    """Output and cotangents of a row, in one pass over its blocks if there is a single round.

    The cotangents of several need the log-normaliser of all.
    """
    if given.order is not None and len(given.order.permutation) > 1:
        out, log_normalizer = forward(plan, arrays, given)
        return out, backward(plan, arrays, given, out, log_normalizer, out_gradient)

    def differentiate(block: Block, d_out):
        out, gradients = block_ops.forward_and_backward(plan.rule, block, d_out)
        return out.astype(arrays.value.dtype), gradients

    return _gradients(plan, arrays, given, out_gradient, differentiate)


def _gradients(plan: Plan, arrays: Arrays, given: Given, of_queries, differentiate):
    """Runs `differentiate` over all blocks and rounds and sums the cotangents over positions.

    Args:
      plan: as in `forward`.
      arrays: as in `forward`.
      given: as in `forward`.
      of_queries: pytree of arrays [l, ...] that are read at the queries of a block.
      differentiate: (block, these) -> output or nothing, and the block's `Gradients`.
    """
    rounds, make_view = _views(plan, arrays, given, of_queries)
    first = plan.cut.before * plan.cut.chunk_length

    def visit_round(this):
        view = make_view(this)
        outs, at_slots = _round_gradients(view, differentiate)
        gradients = _unsort(at_slots, view, first)
        if _wraps(plan):
            gradients = jax.tree.map(partial(_add_edges, plan.cut, this.position), gradients, at_slots)
        return _unsort(jax.tree.map(chunking.flatten, outs), view), gradients

    # The output is known before, or it is that of the only round: there is none to sum.
    add, nothing = partial(jax.tree.map, jnp.add), ((), no_gradients(arrays))
    outs, gradients = over_rounds(visit_round, add, nothing, rounds, arrays.value.dtype)
    return outs, jax.tree.map(lambda g, x: g.astype(x.dtype), gradients, arrays)


def _round_gradients(view: _View, differentiate):
    """Visits the blocks of a round. Windows overlap: what reaches into the next blocks is carried there.

    Returns:
      What `differentiate` returns first, stacked over blocks, and the cotangents of all slots.
    """
    cut = view.plan.cut
    overlap = (cut.before + cut.after) * cut.chunk_length
    wide = jax.tree.map(lambda x: block_ops.accumulation_dtype(x.dtype), view.arrays)

    def visit_block(carried, i):
        slots, tokens, of_queries = view.slots(i)
        laid_out, transpose = jax.vjp(view.assemble, jax.tree.map(lambda x, dtype: x.astype(dtype), slots, wide))
        pairs = view.pairs(tokens, i)
        block = Block(*(x.astype(view.arrays.query.dtype) for x in laid_out), pairs)
        out, gradients = differentiate(block, view.at_queries(pairs, of_queries))
        (at_slots,) = transpose(tuple(gradients))
        at_slots = jax.tree.map(_add_to_front, at_slots, carried)
        done = jax.tree.map(lambda x, like: x[: len(x) - overlap].astype(like.dtype), at_slots, view.arrays)
        return jax.tree.map(lambda x: x[len(x) - overlap :], at_slots), (out, done)

    nothing = jax.tree.map(lambda x, dtype: chunking.constant((overlap, x.shape[-1]), 0, dtype, x), view.arrays, wide)
    last, (outs, done) = jax.lax.scan(
        visit_block, nothing, jnp.arange(cut.num_blocks), unroll=view.plan.blocks_in_flight
    )
    return outs, jax.tree.map(
        lambda x, tail: jnp.concatenate([x.reshape(-1, x.shape[-1]), tail.astype(x.dtype)]), done, last
    )


def _add_to_front(x, front):
    return jnp.concatenate([x[: len(front)] + front, x[len(front) :]])


def _add_edges(cut: Geometry, position, total, at_slots):
    """Adds the cotangents of wrapped-around slots; few and only under Hugging Face semantics, so a scatter will do."""
    total = total.astype(block_ops.accumulation_dtype(total.dtype))
    first, inner = cut.before * cut.chunk_length, cut.num_chunks * cut.chunk_length
    for edge in (slice(0, first), slice(first + inner, first + inner + cut.after * cut.chunk_length)):
        total = total.at[position[edge]].add(at_slots[edge])
    return total
