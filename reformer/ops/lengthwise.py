"""Loops over the chunks of the length, where each device may hold a part of it.

On a mesh that splits the length, a loop over chunks of the whole would gather the array chunk by chunk. There every
device loops over its own part instead; what is summed over tokens is then summed over the devices.
"""

from collections.abc import Callable
from functools import partial

import jax

from reformer import sharding
from reformer.ops.chunking import scan_chunks


def scan_length(fn: Callable, zeros, whole, x, chunk_length: int | None, *, in_axis=1, out_axis=1, onto=None):
    """`chunking.scan_chunks` along the length.

    Args:
      fn: (whole, sums, chunk of the pytree `x`) -> (sums, result). It sees nothing else that is traced.
      zeros: pytree of zeros that the sums start from.
      whole: pytree that every chunk needs as a whole, such as parameters and seeds.
      x: pytree of arrays, examples on axis 0.
      chunk_length: tokens per chunk and call; None = all at once.
      in_axis: the axis of the length, for all leaves of `x` or as a pytree prefix of it.
      out_axis: likewise of the result.
      onto: as in `scan_chunks`.

    Returns:
      The sums over all chunks and the joined results.
    """

    def scan(whole, zeros, x, onto):
        return scan_chunks(partial(fn, whole), zeros, x, chunk_length, in_axis=in_axis, out_axis=out_axis, onto=onto)

    if not sharding.splits_length():
        return scan(whole, zeros, x, onto)

    def scan_own_part(whole, zeros, x, onto):
        sums, result = scan(whole, zeros, x, onto)
        return sharding.sum_over_mesh(sums), result

    of_x, of_result = (jax.tree.map(sharding.length_spec, axis) for axis in (in_axis, out_axis))
    everywhere = sharding.spec()
    of_onto = everywhere if onto is None else jax.tree.map(sharding.length_spec, jax.tree.broadcast(out_axis, onto))
    run = sharding.shard_map(
        scan_own_part, (everywhere, everywhere, of_x, of_onto), (everywhere, of_result), check_axes=False
    )
    return run(whole, zeros, x, onto)


def map_length(fn: Callable, whole, x, chunk_length: int | None, *, in_axis=1, out_axis=1, onto=None):
    """`scan_length` without sums: `fn` is (whole, chunk of the pytree `x`) -> result."""

    def visit(whole, _, chunk):
        return None, fn(whole, chunk)

    return scan_length(visit, None, whole, x, chunk_length, in_axis=in_axis, out_axis=out_axis, onto=onto)[1]
