"""Loops over the chunks of the length, where each device has a part of the examples or of the length.

On a mesh every device loops over its own part: weights are gathered before the loop, and what is summed over tokens is
summed over the devices behind it, once each. Left to the compiler, both would happen in every chunk, and a chunk of a
length that is split would be gathered.

All loops over parts of arrays, each written in terms of what it points to:

    chunked_vjp        value and cotangents of a position-wise function, in one pass
         |
         v
    map_length         a function of chunks of the length; every device its own part
         |
         v
    map_chunks         a function of chunks of any axis, on one device; results side by side, terms summed
         |
         v
    the loop in `chunking`  <----  replace_chunks    results in the place of what they are made of (rows of attention)

    over_rounds        in `chunked`: hash rounds, each result merged into those before it
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from reformer import sharding
from reformer.ops.chunking import map_chunks

_NUMBERS_AT_ONCE_CPU = 2**21  # 8 MB of float32 stay in cache
_NUMBERS_AT_ONCE = 2**28  # an accelerator wants large launches
_TOKENS_AT_ONCE = 2**16


class Automatic(NamedTuple):
    """A chunk of the length as large as suits the machine for which the program is compiled.

    Attributes:
      width: numbers that the work on a token needs at once: its hidden units, or its logits.
    """

    width: int

    def tokens(self, batch: int, length: int) -> int:
        """Tokens of a sequence per chunk; the chunks are of about one size.

        Args:
          batch: examples that a device has.
          length: tokens of an example that a device has.
        """
        if sharding.on_cpu():
            most = _NUMBERS_AT_ONCE_CPU // self.width
        else:
            most = min(_TOKENS_AT_ONCE, _NUMBERS_AT_ONCE // self.width)
        most = max(1, most // batch)
        return math.ceil(length / math.ceil(length / most))


ChunkLength = int | Automatic | None  # tokens of a sequence per chunk; None = all at once


def map_length(
    fn: Callable,
    common,
    x,
    chunk_length: ChunkLength,
    *,
    in_axis=1,
    out_axis=1,
    onto=None,
    has_sums=False,
    common_spec=sharding.EVERYWHERE,
    sums_spec=sharding.EVERYWHERE,
):
    """`chunking.map_chunks` along the length.

    Args:
      fn: (common, chunk of the pytree `x`) -> result, or with `has_sums` (result, terms). It sees nothing else that is
        traced.
      common: pytree that every chunk reads in full, such as parameters and seeds.
      x: pytree of arrays, examples on axis 0.
      chunk_length: tokens of a sequence per chunk and call, of the part that a device has; None = all at once.
      in_axis: the axis of the length, for all leaves of `x` or as a pytree prefix of it.
      out_axis: likewise of the result.
      onto: as in `map_chunks`.
      has_sums: as in `map_chunks`.
      common_spec: where `common` lies on a mesh, a pytree prefix of it.
      sums_spec: likewise of the sums.

    Returns:
      The joined results; with `has_sums` also the sums of the terms over all chunks, in at least float32.

    Raises:
      ValueError: the leaves of `x` differ in length.
    """
    options = {"in_axis": in_axis, "out_axis": out_axis, "has_sums": has_sums}

    def run(common, x, onto):
        return map_chunks(partial(fn, common), x, _tokens(chunk_length, x, in_axis), onto=onto, **options)

    if not sharding.splits_tokens():
        return run(common, x, onto)

    def run_own_part(common, x, onto):
        result = run(common, x, onto)
        return (result[0], sharding.sum_over_mesh(result[1], sums_spec)) if has_sums else result

    in_spec, out_spec = (jax.tree.map(sharding.length_spec, axis) for axis in (in_axis, out_axis))
    onto_spec = (
        sharding.EVERYWHERE if onto is None else jax.tree.map(sharding.length_spec, jax.tree.broadcast(out_axis, onto))
    )
    result_spec = (out_spec, sums_spec) if has_sums else out_spec
    run_on_mesh = sharding.shard_map_tokens(run_own_part, (common_spec, in_spec, onto_spec), result_spec)
    return run_on_mesh(common, x, onto)


def _tokens(chunk_length: ChunkLength, x, in_axis) -> int | None:
    """Tokens of a sequence per chunk for arrays as `map_length` has them."""
    if not isinstance(chunk_length, Automatic):
        return chunk_length
    leaf, axis = jax.tree.leaves(x)[0], jax.tree.leaves(jax.tree.broadcast(in_axis, x))[0]
    return chunk_length.tokens(math.ceil(len(leaf) / sharding.num_parts("act_batch")), leaf.shape[axis])


def chunked_vjp(
    fn: Callable,
    params,
    fixed,
    arrays: tuple,
    chunk_length: ChunkLength,
    *,
    in_axis=1,
    out_axis=1,
    onto=None,
    params_spec=sharding.EVERYWHERE,
    fixed_spec=sharding.EVERYWHERE,
):
    """Negated value and cotangents of a position-wise function, chunk by chunk in one pass.

    Args:
      fn: (params, fixed, x, *others) -> value, where x and the others are chunks.
      params: float pytree.
      fixed: pytree that is not differentiated.
      arrays: x, the cotangent of the value, and others that are not differentiated; examples on axis 0.
      chunk_length: tokens of a sequence per chunk; None = all at once.
      in_axis: the axis of the length, for all leaves of `arrays` or as a pytree prefix of it.
      out_axis: likewise of the pair of the value and the cotangent of x.
      onto: a pair, what the negated value and the cotangent of x are added to; None = nothing.
      params_spec: where `params` and their cotangents lie on a mesh, as in `map_length`.
      fixed_spec: likewise `fixed`.

    Returns:
      Minus the value, the cotangents of params, and those of x, in the types of what they are cotangents of.
    """

    def differentiate(common, chunk):
        (params, fixed), (x, d_value, *others) = common, chunk
        value, vjp = jax.vjp(lambda params, x: fn(params, fixed, x, *others), params, x)
        d_params, d_x = vjp(d_value)
        return (jax.tree.map(jnp.negative, value), d_x), d_params

    run = partial(map_length, in_axis=in_axis, out_axis=out_axis, onto=onto, has_sums=True)
    run = partial(run, common_spec=(params_spec, fixed_spec), sums_spec=params_spec)
    (negated, d_x), d_params = run(differentiate, (params, fixed), arrays, chunk_length)
    return negated, jax.tree.map(lambda g, p: g.astype(p.dtype), d_params, params), d_x
