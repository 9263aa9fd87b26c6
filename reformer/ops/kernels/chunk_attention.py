"""Attention of sorted chunks in one kernel: what a chunk needs is read once, and no score leaves the chip.

A program is a chunk of queries of one row. The chunks around it reach it through block index maps that are shifted by
-before .. after, so there is no concatenation, gather or loop inside. The backward kernel gives the cotangents of keys
and values per neighbour, laid out by the chunk of queries that made them: every block is written by one program,
without atomics, and their shifted sum is left to XLA.

On a GPU (Pallas' Triton, which JAX 0.11 deprecates without a date) the sizes of tiles must be powers of two, of at
least 16 for its matrix units: other chunk lengths and feature sizes are padded here with empty slots and zeros, at the
cost of a copy. Triton 3.6 compiles it for Hopper: in bfloat16 with chunks and features of 64 nothing spills out of
registers, with 128 of each and two neighbours the backward kernel does. TPU lowering takes the same blocks, because
each spans its array's last two axes; there the kernel has been lowered but never run. On a CPU it is interpreted, which
is slow and meant for tests.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int, UInt

from reformer.ops.block import accumulation_dtype
from reformer.ops.chunking import NO_POSITION
from reformer.ops.dropout import keep_mask
from reformer.ops.masking import NO_KEY_BELOW, SCORE_FILLS, Rule
from reformer.ops.plan import unit_keys

_SMALLEST_TILE = 16
_SCORES_PER_WARP = 2048  # 64 float32 registers per thread


class Chunks(NamedTuple):
    """Sorted tokens, cut into chunks of s slots.

    Attributes:
      query: of every slot.
      key: None = unit vectors of the queries.
      value: of every slot.
      position: of the tokens; -1 = an empty slot.
      key_position: the same for tokens that may be attended, `hide(position)` for the others.
      bucket: pairs of different buckets are forbidden; None = no such rule.
      seed: of the dropout masks; None = no dropout.
    """

    query: Float[Array, "rows chunks s d"]
    key: Float[Array, "rows chunks s d"] | None
    value: Float[Array, "rows chunks s e"]
    position: Int[Array, "rows chunks s"]
    key_position: Int[Array, "rows chunks s"]
    bucket: Int[Array, "rows chunks s"] | None = None
    seed: UInt[Array, " rows"] | None = None


class _Queries(NamedTuple):
    """What a program reads at its own chunk; everything but the vectors as columns."""

    vector: Array
    position: Array
    bucket: Array | None
    seed: Array | None
    out_gradient: Array | None = None
    delta: Array | None = None
    log_normalizer: Array | None = None


class _Keys(NamedTuple):
    """What a program reads at its own and every neighbouring chunk; everything but the vectors as rows."""

    vector: Array
    value: Array
    position: Array
    bucket: Array | None


class _Static(NamedTuple):
    """What the kernels know at compile time; `head_dim` is that before padding."""

    rule: Rule
    head_dim: int

    @property
    def offsets(self) -> range:
        return range(-self.rule.before, self.rule.after + 1)


def hide(position):
    """Encodes the position of a key that may not be attended; its own inverse. An empty slot stays one."""
    return -2 - position


def forward(rule: Rule, chunks: Chunks) -> tuple[Float[Array, "rows chunks s e"], Float[Array, "rows chunks s"]]:
    """Returns the attention output, in the type of the values, and the log-normaliser of every slot."""
    static, size, value_dim = _Static(rule, chunks.query.shape[-1]), chunks.query.shape[2], chunks.value.shape[-1]
    queries, keys = _operands(chunks)
    wide = accumulation_dtype(chunks.value.dtype)
    out_shapes = (
        _like(queries.vector, keys.value.shape, chunks.value.dtype),
        _like(queries.vector, queries.position.shape, wide),
    )
    out, log_normalizer = _call(_forward_kernel, static, queries, keys, out_shapes)
    return out[:, :, :size, :value_dim], log_normalizer[:, :, :size, 0]


def backward(
    rule: Rule,
    chunks: Chunks,
    out_gradient: Float[Array, "rows chunks s e"],
    delta: Float[Array, "rows chunks s"],
    log_normalizer: Float[Array, "rows chunks s"],
) -> tuple[Array, tuple[Array, ...], tuple[Array, ...]]:
    """Cotangents from those of the output, in the types of the arrays.

    Args:
      rule: as in `forward`.
      chunks: as in `forward`.
      out_gradient: cotangent of the output.
      delta: rowsum(out_gradient * out), with the output of the whole softmax.
      log_normalizer: of the whole softmax, over all rounds.

    Returns:
      The cotangent of the queries, and those of keys (unit vectors under a shared projection) and of values, one array
      for each chunk from `before` before to `after` after: entry c holds what queries of chunk c send to that one.
    """
    static, size, value_dim = _Static(rule, chunks.query.shape[-1]), chunks.query.shape[2], chunks.value.shape[-1]
    queries, keys = _operands(chunks)
    queries = queries._replace(
        out_gradient=_pad(out_gradient.astype(chunks.value.dtype)),
        delta=_pad_slots(delta, 0)[..., None],
        log_normalizer=_pad_slots(log_normalizer, 0)[..., None],
    )
    query_shape = _like(queries.vector, queries.vector.shape, chunks.query.dtype)
    value_shape = _like(queries.vector, keys.value.shape, chunks.value.dtype)
    num_keys = len(static.offsets)
    out_shapes = (query_shape, (query_shape,) * num_keys, (value_shape,) * num_keys)
    query, key, value = _call(_backward_kernel, static, queries, keys, out_shapes)
    crop = partial(jax.tree.map, lambda x: x[:, :, :size, : static.head_dim])
    return crop(query), crop(key), tuple(x[:, :, :size, :value_dim] for x in value)


# Kernels


def _forward_kernel(static: _Static, queries: _Queries, window: tuple[_Keys, ...], out, log_normalizer) -> None:
    scores = [_scores(static, queries, keys, offset)[0] for offset, keys in zip(static.offsets, window, strict=True)]
    largest = _fold(jnp.maximum, [jnp.max(s, axis=1, keepdims=True) for s in scores])
    weights = [jnp.exp(s - largest) for s in scores]
    total = _fold(jnp.add, [jnp.sum(w, axis=1, keepdims=True) for w in weights])
    log_normalizer[...] = largest + jnp.log(total)
    scale = jnp.where(largest > NO_KEY_BELOW, 1 / total, 0)
    parts = [
        _dot(_drop(static.rule, queries, keys, w).astype(keys.value.dtype), keys.value[...])
        for w, keys in zip(weights, window, strict=True)
    ]
    out[...] = (scale * _fold(jnp.add, parts)).astype(out.dtype)


def _backward_kernel(static: _Static, queries: _Queries, window: tuple[_Keys, ...], of_query, of_key, of_value) -> None:
    out_gradient, log_normalizer = queries.out_gradient[...], queries.log_normalizer[...]
    has_key = (log_normalizer > NO_KEY_BELOW) & (queries.position[...] >= 0)
    log_normalizer = jnp.where(has_key, log_normalizer, -NO_KEY_BELOW)
    scale = 1 if static.rule.shared else static.head_dim**-0.5
    query, query_gradient = queries.vector[...], None
    for i, (offset, keys) in enumerate(zip(static.offsets, window, strict=True)):
        scores, key, may_attend = _scores(static, queries, keys, offset)
        weights = jnp.exp(scores - log_normalizer)
        dropped = _drop(static.rule, queries, keys, weights).astype(out_gradient.dtype)
        of_value[i][...] = _dot(dropped.T, out_gradient).astype(of_value[i].dtype)
        of_weights = _drop(static.rule, queries, keys, _dot(out_gradient, keys.value[...].T))
        of_scores = jnp.where(may_attend, weights * (of_weights - queries.delta[...]) * scale, 0).astype(query.dtype)
        of_key[i][...] = _dot(of_scores.T, query).astype(of_key[i].dtype)
        part = _dot(of_scores, key)
        query_gradient = part if query_gradient is None else query_gradient + part
    of_query[...] = query_gradient.astype(of_query.dtype)


def _scores(static: _Static, queries: _Queries, keys: _Keys, offset: int):
    """Scores with one chunk of keys, as `masking.mask_scores` has them; these keys; which scores have a gradient."""
    rule, key = static.rule, keys.vector[...]
    if rule.shared:
        key = unit_keys(key, static.head_dim)
    scores = _dot(queries.vector[...], key.T)
    if not rule.shared:
        scores *= static.head_dim**-0.5
    query_position, key_position = queries.position[...], keys.position[...]
    allowed = (key_position >= 0) & _exists(offset)
    if rule.looks_ahead:
        allowed &= query_position > key_position
    else:
        allowed &= query_position >= (key_position if rule.causal else NO_POSITION)
    if queries.bucket is not None:
        allowed &= queries.bucket[...] == keys.bucket[...]
    forbidden_fill, self_fill = SCORE_FILLS["reformer"]
    scores = jnp.where(allowed, scores, forbidden_fill)
    if rule.replaces_self and offset == 0:  # nowhere else does a query meet itself
        is_self = query_position == _show(key_position)
        scores, allowed = jnp.where(is_self, self_fill, scores), allowed & ~is_self
    return scores, key, allowed


def _exists(offset: int):
    """Whether the row has a chunk at `offset` from the program's own."""
    chunk = pl.program_id(0) + offset
    return (chunk >= 0) & (chunk < pl.num_programs(0))


def _show(key_position):
    return jnp.where(key_position < NO_POSITION, hide(key_position), key_position)


def _drop(rule: Rule, queries: _Queries, keys: _Keys, x):
    """Attention dropout with the mask of the plain path; a linear map of `x`, so also its own transpose."""
    if rule.dropout_rate == 0:
        return x
    keep = keep_mask(queries.seed[0, 0], queries.position[...], _show(keys.position[...]), rule.dropout_rate)
    return jnp.where(keep, x / (1 - rule.dropout_rate), 0)


def _dot(a, b):
    return jnp.dot(a, b, preferred_element_type=accumulation_dtype(a.dtype))


def _fold(function: Callable, parts: list):
    result = parts[0]
    for part in parts[1:]:
        result = function(result, part)
    return result


# Calling them


def _operands(chunks: Chunks) -> tuple[_Queries, _Keys]:
    """Pads the arrays to tiles and lays positions and buckets out as columns of queries and rows of keys."""
    query, value = _pad(chunks.query), _pad(chunks.value)
    key = query if chunks.key is None else _pad(chunks.key)
    position, key_position = (_pad_slots(x, NO_POSITION) for x in (chunks.position, chunks.key_position))
    bucket = None if chunks.bucket is None else _pad_slots(chunks.bucket, 0)
    position, of_query = jax.tree.map(lambda x: x[..., None], (position, bucket))
    key_position, of_key = jax.tree.map(lambda x: x[:, :, None], (key_position, bucket))
    seed = None if chunks.seed is None else chunks.seed[:, None, None]
    return _Queries(query, position, of_query, seed), _Keys(key, value, key_position, of_key)


def _tile(size: int) -> int:
    return max(_SMALLEST_TILE, pl.next_power_of_2(size))


def _pad_slots(x, fill):
    padding = [(0, 0)] * x.ndim
    padding[2] = (0, _tile(x.shape[2]) - x.shape[2])
    return jnp.pad(x, padding, constant_values=fill)


def _pad(x):
    """Pads slots and features."""
    return jnp.pad(_pad_slots(x, 0), [(0, 0)] * 3 + [(0, _tile(x.shape[3]) - x.shape[3])])


def _like(array, shape, dtype) -> jax.ShapeDtypeStruct:
    """A result that varies over the same mesh axes as `array`."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(array).manual_axis_type)


def _call(kernel: Callable, static: _Static, queries: _Queries, keys: _Keys, out_shapes):
    """Runs a kernel for every chunk of every row, compiled for the platform that the program is lowered for."""
    num_rows, num_chunks, size, _ = queries.vector.shape
    num_scores = size * size * len(static.offsets)
    num_warps = 4 if num_scores <= 4 * _SCORES_PER_WARP else 8

    def at_own(x):
        if x.ndim == 3:  # the seed of a row
            return pl.BlockSpec((None, 1, 1), lambda chunk, row: (row, 0, 0))
        return pl.BlockSpec((None, None, *x.shape[2:]), lambda chunk, row: (row, chunk, 0, 0))

    def at_neighbour(offset, x):
        def index(chunk, row):
            return row, jnp.clip(chunk + offset, 0, num_chunks - 1), 0, 0

        return pl.BlockSpec((None, None, *x.shape[2:]), index)

    window = (keys,) * len(static.offsets)
    specs = tuple(jax.tree.map(partial(at_neighbour, offset), keys) for offset in static.offsets)
    run = partial(
        pl.pallas_call,
        partial(kernel, static),
        grid=(num_chunks, num_rows),
        in_specs=(jax.tree.map(at_own, queries), specs),
        out_specs=jax.tree.map(at_own, out_shapes),
        out_shape=out_shapes,
        name=kernel.__name__.strip("_").replace("_kernel", "_chunks"),
    )
    return jax.lax.platform_dependent(
        queries,
        window,
        cpu=run(interpret=True),
        tpu=run(),
        default=run(compiler_params=triton.CompilerParams(num_warps=num_warps, num_stages=1)),
    )
