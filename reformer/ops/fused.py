"""Local and LSH attention of many rows at once by the fused kernel, one hash round after another.

The interface is that of `chunked` with an axis of rows. A round is a gather into sorted order, the kernel and a gather
back with the inverse permutation; nothing is scattered. Only one round is in memory at a time: its results are merged
into, and its cotangents added to, what the rounds before it gave.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt

from reformer.ops import chunked
from reformer.ops.block import accumulation_dtype
from reformer.ops.chunking import NO_POSITION, Geometry
from reformer.ops.dropout import fold
from reformer.ops.kernels import chunk_attention
from reformer.ops.kernels.chunk_attention import Chunks
from reformer.ops.plan import Arrays, Given, Plan, unit_keys
from reformer.ops.sorting import invert


class _Round(NamedTuple):
    """How one round reaches its tokens."""

    position: Int[Array, "rows l"]  # of every sorted slot
    inverse: Int[Array, "rows l"] | None  # slot of every position; None = natural order
    bucket: Int[Array, "rows l"] | None  # of every position
    seed: UInt[Array, " rows"] | None


def forward(plan: Plan, arrays: Arrays, given: Given) -> tuple[Float[Array, "rows l e"], Float[Array, "rows l"]]:
    """Output, and log-normaliser of the softmax over all rounds in at least float32."""
    rounds = _rounds(given, arrays)

    def attend(this: _Round):
        parts = chunk_attention.forward(plan.rule, _chunks(plan.cut, arrays, given, this))
        out, log_normalizer = (_unsort(x, this) for x in parts)
        return out.astype(log_normalizer.dtype), log_normalizer

    out, log_normalizer = chunked.over_rounds(attend, jax.vmap(chunked.merge), chunked.no_keys(arrays), rounds)
    return out.astype(arrays.value.dtype), log_normalizer


def backward(plan: Plan, arrays: Arrays, given: Given, out, log_normalizer, out_gradient) -> Arrays:
    """Cotangents of the arrays from those of the output, given the output and its log-normaliser."""
    delta = jnp.sum(out.astype(log_normalizer.dtype) * out_gradient, axis=-1)

    def differentiate(this: _Round) -> Arrays:
        chunks = _chunks(plan.cut, arrays, given, this)
        at_queries = (_sort(plan.cut, x, this) for x in (out_gradient, delta, log_normalizer))
        query, key, value = chunk_attention.backward(plan.rule, chunks, *at_queries)
        query = query.astype(accumulation_dtype(query.dtype))
        key, value = (_sum_over_offsets(plan.cut, x) for x in (key, value))
        if arrays.key is None:
            query, key = query + _through_unit_keys(chunks.query, key), None
        return jax.tree.map(partial(_unsort, this=this), Arrays(query, key, value))

    add, rounds = partial(jax.tree.map, jnp.add), _rounds(given, arrays)
    total = chunked.over_rounds(differentiate, add, chunked.no_gradients(arrays), rounds)
    return jax.tree.map(lambda gradient, x: gradient.astype(x.dtype), total, arrays)


def forward_and_backward(plan: Plan, arrays: Arrays, given: Given, out_gradient) -> tuple[Array, Arrays]:
    """Output and cotangents: the kernels one after the other, for any number of rounds."""
    out, log_normalizer = forward(plan, arrays, given)
    return out, backward(plan, arrays, given, out, log_normalizer, out_gradient)


def _rounds(given: Given, arrays: Arrays) -> _Round:
    """All rounds, stacked."""
    num_rows, length = arrays.query.shape[:2]
    if given.order is None:
        natural = jnp.arange(length, dtype=jnp.int32)
        position, inverse, bucket = jnp.broadcast_to(natural, (1, num_rows, length)), None, None
    else:
        position, bucket = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), given.order)
        inverse = invert(position)
    seed = None
    if given.seed is not None:
        seed = jax.vmap(jax.vmap(fold, (0, None)), (None, 0))(given.seed, jnp.arange(len(position)))
    return _Round(position, inverse, bucket, seed)


def _chunks(cut: Geometry, arrays: Arrays, given: Given, this: _Round) -> Chunks:
    """The sorted chunks of a round."""
    position = _cut(cut, this.position, NO_POSITION)
    key_position = position
    if given.mask is not None:
        key_position = jnp.where(_sort(cut, given.mask, this), position, chunk_attention.hide(position))
    query, key, value, _ = jax.tree.map(lambda x: _sort(cut, x, this), arrays)
    bucket = None if this.bucket is None else _sort(cut, this.bucket, this)
    return Chunks(query, key, value, position, key_position, bucket, this.seed)


def _cut(cut: Geometry, slots, fill=0):
    """Cuts [rows, length, ...] into [rows, chunks, slots, ...], the last chunk filled up."""
    padding = [(0, 0)] * slots.ndim
    padding[1] = (0, cut.num_chunks * cut.chunk_length - slots.shape[1])
    filled = jnp.pad(slots, padding, constant_values=fill)
    return filled.reshape(len(slots), cut.num_chunks, cut.chunk_length, *slots.shape[2:])


def _sort(cut: Geometry, x, this: _Round):
    """Brings an array over positions into the chunks of a round."""
    if this.inverse is not None:
        x = _take(x, this.position)
    return _cut(cut, x)


def _unsort(chunks, this: _Round):
    """Brings an array over chunks back to positions."""
    slots = chunks.reshape(len(chunks), -1, *chunks.shape[3:])
    return slots[:, : this.position.shape[1]] if this.inverse is None else _take(slots, this.inverse)


def _take(x, index):
    return jax.vmap(partial(jnp.take, axis=0, mode="clip"))(x, index)


def _sum_over_offsets(cut: Geometry, parts: tuple[Array, ...]):
    """Sums what the queries of chunk c sent to chunk c + offset, at the chunks that received it."""
    total: Array | float = 0.0
    for offset, part in zip(range(-cut.before, cut.after + 1), parts, strict=True):
        reach = min(abs(offset), cut.num_chunks)
        kept = part[:, reach:] if offset < 0 else part[:, : cut.num_chunks - reach]
        padding = (0, reach) if offset < 0 else (reach, 0)
        total += jnp.pad(kept.astype(accumulation_dtype(part.dtype)), [(0, 0), padding, (0, 0), (0, 0)])
    return total


def _through_unit_keys(query, of_key):
    """The cotangent of the queries from that of their unit vectors."""
    return jax.vjp(unit_keys, query.astype(of_key.dtype))[1](of_key)[0]
