"""Cutting a length into chunks: windows of neighbouring chunks, and maps that bound scratch memory."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

NO_POSITION = -1  # the position of an empty slot


class Geometry(NamedTuple):
    """How a row of slots is cut into chunks and blocks of chunks. All static.

    A query in chunk c sees the chunks c - before .. c + after. A block is what is computed at once:
    `block` query chunks with the keys of block + before + after chunks.
    """

    chunk_length: int
    before: int
    after: int
    num_chunks: int
    block: int

    @property
    def num_blocks(self) -> int:
        """Blocks in a row; the last one may reach past the last chunk, into empty slots."""
        return math.ceil(self.num_chunks / self.block)

    @property
    def window(self) -> int:
        """Key slots that a query sees."""
        return (1 + self.before + self.after) * self.chunk_length


def geometry(length: int, chunk_length: int, before: int, after: int, max_scores: int) -> Geometry:
    """Cuts `length` slots into chunks, and into blocks of at most about `max_scores` attention scores."""
    num_chunks = math.ceil(length / chunk_length)
    scores_per_chunk = chunk_length * (1 + before + after) * chunk_length
    most = max(1, max_scores // scores_per_chunk)
    even = math.ceil(num_chunks / math.ceil(num_chunks / most))  # blocks of equal size, little left over
    return Geometry(chunk_length, before, after, num_chunks, even)


def extend(x: jax.Array, cut: Geometry, fill) -> jax.Array:
    """Pads axis 0 of `x` with the empty chunks that the first and last blocks look at."""
    front = cut.before * cut.chunk_length
    total = (cut.num_blocks * cut.block + cut.before + cut.after) * cut.chunk_length
    return jnp.pad(x, [(front, total - front - x.shape[0])] + [(0, 0)] * (x.ndim - 1), constant_values=fill)


def read_in_order(x: jax.Array, cut: Geometry, i) -> jax.Array:
    """Reads the slots of block `i` of an array over positions in natural order, those that the block looks at included.

    A slot beyond the ends, masked by its position, holds whatever stands elsewhere: `x` is not copied to pad it.
    """
    size = cut.block * cut.chunk_length
    if missing := cut.num_blocks * size - len(x):
        x = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
    # A slice of one neighbour is wholly inside or wholly outside; a longer one that reached past an end would be moved.
    before = [(i * size - n * cut.chunk_length, cut.chunk_length) for n in range(cut.before, 0, -1)]
    after = [((i + 1) * size + n * cut.chunk_length, cut.chunk_length) for n in range(cut.after)]
    parts = [*before, (i * size, size), *after]
    return jnp.concatenate([jax.lax.dynamic_slice_in_dim(x, start, length) for start, length in parts])


def extend_wrapped(permutation: jax.Array, cut: Geometry, fill) -> jax.Array:
    """`extend` for all rounds [rounds, length] of sorted positions with windows that wrap around.

    The chunk before a round's first is the last of the round before it, and the very first looks at
    the very last (trax and Hugging Face). The length must be a multiple of the chunk length.
    """
    num_rounds = permutation.shape[0]
    chunks = permutation.reshape(num_rounds * cut.num_chunks, cut.chunk_length)
    offset = jnp.arange(-cut.before, cut.num_chunks + cut.after)
    wanted = jnp.arange(num_rounds)[:, None] * cut.num_chunks + offset[None, :]
    rows = chunks[wanted % len(chunks)].reshape(num_rounds, -1)
    missing = (cut.num_blocks * cut.block - cut.num_chunks) * cut.chunk_length
    return jnp.pad(rows, ((0, 0), (0, missing)), constant_values=fill)


def windows(x: jax.Array, cut: Geometry) -> jax.Array:
    """Turns the slots of one block [(block + before + after) * chunk, ...] into [block, window, ...]."""
    chunks = x.reshape(-1, cut.chunk_length, *x.shape[1:])
    shifted = [jax.lax.slice_in_dim(chunks, i, i + cut.block) for i in range(1 + cut.before + cut.after)]
    return jnp.concatenate(shifted, axis=1)


def queries(x: jax.Array, cut: Geometry) -> jax.Array:
    """The slots of one block that are queries, as [block, chunk_length, ...]."""
    first, size = cut.before * cut.chunk_length, cut.block * cut.chunk_length
    return jax.lax.slice_in_dim(x, first, first + size).reshape(cut.block, cut.chunk_length, *x.shape[1:])


def constant(shape: tuple[int, ...], value: int | float, dtype, like: jax.Array) -> jax.Array:
    """A constant array to start a scan from, which counts as made from `like`.

    Inside `jax.shard_map` a scan must start from what varies over the same mesh axes as its result.
    The compiler drops the selection between two equal arrays.
    """
    array = jnp.full(shape, value, dtype)
    element = like[(0,) * like.ndim]
    return jnp.where(element == element, array, array)


def wide_zeros_like(tree):
    """Where many small terms are summed up: zeros in at least float32, whatever the types of the tree."""
    return jax.tree.map(lambda x: jnp.zeros_like(x, jnp.promote_types(jnp.float32, x.dtype)), tree)


def flatten(blocks: jax.Array) -> jax.Array:
    """Merges the axes [blocks, block, chunk, ...] into one of slots."""
    return blocks.reshape(-1, *blocks.shape[3:])


def scan_chunks(fn: Callable, carry, x, chunk_length: int | None, *, in_axis, out_axis, onto=None):
    """Applies `fn` to chunks of `x` along an axis, one after another, and writes the results side by side.

    Args:
      fn: (carry, chunk of the pytree `x`) -> (carry, result); the result has the chunk's size along
        `out_axis`.
      carry: pytree handed from chunk to chunk.
      x: pytree of arrays.
      chunk_length: size of a chunk; None or at least the whole size = one call. What is left over
        when it does not divide the size is a call of its own.
      in_axis: the axis, for all leaves of `x` or as a pytree prefix of it.
      out_axis: likewise of the result.
      onto: what the result is added to, as a pytree prefix of it; None = nothing, for all or for a part. An array
        that is not used afterwards becomes the result in place.

    Returns:
      The last carry and the joined results.

    Raises:
      ValueError: the leaves of `x` differ in size.
    """
    first_leaf, in_axes = jax.tree.leaves(x)[0], jax.tree.broadcast(in_axis, x)
    sizes = jax.tree.leaves(jax.tree.map(lambda leaf, axis: leaf.shape[axis], x, in_axes))
    if len(set(sizes)) > 1:
        raise ValueError(
            f"arrays of {sorted(set(sizes))} elements along the axis of chunks: they must have one length."
        )
    size = sizes[0]
    if chunk_length is None or chunk_length >= size:
        carry, result = fn(carry, x)
        return carry, _map_parts(lambda to, new: new if to is None else to + new, onto, result)

    fn = jax.jit(fn, inline=True)  # Python runs it once for the shapes of the result and the loop

    def slice_chunk(start, length):
        return jax.tree.map(lambda leaf, axis: jax.lax.dynamic_slice_in_dim(leaf, start, length, axis), x, in_axes)

    def visit(state, start, length):
        carry, out = state
        carry, new = fn(carry, slice_chunk(start, length))

        def write(to, whole, part, axis):
            if to is not None:
                part += jax.lax.dynamic_slice_in_dim(whole, start, length, axis)
            return jax.lax.dynamic_update_slice_in_dim(whole, part, start, axis)

        return carry, _map_parts(write, onto, out, new, out_axes)

    result = jax.eval_shape(lambda: fn(carry, slice_chunk(0, chunk_length))[1])
    out_axes = jax.tree.broadcast(out_axis, result)
    # Made from `x`, so that the compiler cannot allocate it long before `x` exists; every element is overwritten.
    nothing = 0 * first_leaf[(0,) * first_leaf.ndim]

    def start_with(to, like, axis):
        shape = (*like.shape[:axis], size, *like.shape[axis + 1 :])
        return jnp.broadcast_to(nothing.astype(like.dtype), shape) if to is None else to

    num_chunks, rest = divmod(size, chunk_length)
    state = (carry, _map_parts(start_with, onto, result, out_axes))
    starts = jnp.arange(num_chunks) * chunk_length
    state = jax.lax.scan(lambda state, start: (visit(state, start, chunk_length), None), state, starts)[0]
    return visit(state, num_chunks * chunk_length, rest) if rest else state


def _map_parts(fn: Callable, onto, *trees):
    """Maps fn(leaf of `onto` or None, *leaves) over trees of which `onto` is a prefix with None for absent parts."""

    def on_part(to, *parts):
        return jax.tree.map(lambda *leaves: fn(to, *leaves), *parts)

    return jax.tree.map(on_part, onto, *trees, is_leaf=lambda part: part is None)


def map_chunks(fn: Callable, x, chunk_length: int | None, *, in_axis, out_axis, onto=None):
    """`scan_chunks` without a carry."""

    def visit(_, chunk):
        return None, fn(chunk)

    return scan_chunks(visit, None, x, chunk_length, in_axis=in_axis, out_axis=out_axis, onto=onto)[1]


def replace_chunks(fn: Callable, x, fixed, chunk_length: int):
    """Applies `fn` to chunks along axis 0 of `x`, one after another, and puts the results in their place.

    Args:
      fn: (chunk of the pytree `x`, chunk of the pytree `fixed`) -> arrays like the first.
      x: pytree of arrays; where they are not used afterwards, no second copy of them exists.
      fixed: pytree of arrays.
      chunk_length: size of a chunk.

    Returns:
      The results, like `x`.
    """

    def visit(x, start, length):
        part = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=length)
        new = fn(jax.tree.map(part, x), jax.tree.map(part, fixed))
        return jax.tree.map(lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, start, 0), x, new)

    size = len(jax.tree.leaves(x)[0])
    chunk_length = min(chunk_length, size)
    num_chunks, rest = divmod(size, chunk_length)
    starts = jnp.arange(num_chunks) * chunk_length
    x = jax.lax.scan(lambda x, start: (visit(x, start, chunk_length), None), x, starts)[0]
    return visit(x, num_chunks * chunk_length, rest) if rest else x
