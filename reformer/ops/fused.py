"""Local and LSH attention of many rows at once by the fused kernel, all hash rounds in one launch.

The interface is that of `chunked` with an axis of rows, and `rows_at_once`. What the rounds give is summed once.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reformer import sharding
from reformer.ops.block import accumulation_dtype
from reformer.ops.dropout import fold
from reformer.ops.kernels import chunk_attention
from reformer.ops.kernels.chunk_attention import Gradients, Tokens
from reformer.ops.plan import Arrays, Given, Plan, unit_scales
from reformer.ops.sorting import invert

_BYTES_AT_ONCE = 2**30  # of what the rounds give, before it is summed


def rows_at_once(arrays: Arrays, given: Given) -> int:
    """How many rows are worked at once: groups of one size, as far as that goes."""
    num_rows, num_rounds = len(arrays.query), 1 if given.order is None else given.order.permutation.shape[1]
    num_bytes = num_rounds * sum(x.nbytes // num_rows for x in jax.tree.leaves(arrays))
    num_groups = math.ceil(num_rows / max(1, _BYTES_AT_ONCE // num_bytes))
    return math.ceil(num_rows / num_groups)


def forward(plan: Plan, arrays: Arrays, given: Given) -> tuple[Float[Array, "rows l e"], Float[Array, "rows l"]]:
    """Output, and log-normaliser of the softmax over all rounds in at least float32."""
    out, log_normalizer = _run(plan, given, chunk_attention.forward, arrays, ())
    return _merge(out, log_normalizer)


def backward(plan: Plan, arrays: Arrays, given: Given, out, log_normalizer, out_gradient) -> Arrays:
    """Cotangents of the arrays from those of the output, given the output and its log-normaliser."""
    delta = jnp.sum(out.astype(log_normalizer.dtype) * out_gradient, axis=-1)
    found: Gradients = _run(plan, given, chunk_attention.backward, arrays, (out_gradient, delta, log_normalizer))
    return Arrays(*jax.tree.map(_sum_rounds, found))


def forward_and_backward(plan: Plan, arrays: Arrays, given: Given, out_gradient) -> tuple[Array, Arrays]:
    """Output and cotangents, for any number of rounds."""
    out, log_normalizer = forward(plan, arrays, given)
    return out, backward(plan, arrays, given, out, log_normalizer, out_gradient)


def _merge(out, log_normalizer):
    """Merges the rounds [rows, rounds, l, ...] by their log-normalisers, as `chunked.merge` does two of them."""
    if out.shape[1] == 1:
        return out[:, 0], log_normalizer[:, 0]
    largest = jnp.max(log_normalizer, axis=1, keepdims=True)
    shares = jnp.exp(log_normalizer - largest)
    total = jnp.sum(shares, axis=1, keepdims=True)
    merged = jnp.sum(out * (shares / total)[..., None], axis=1)
    return merged.astype(out.dtype), (largest + jnp.log(total))[:, 0]


def _sum_rounds(x):
    return jnp.sum(x, axis=1, dtype=accumulation_dtype(x.dtype)).astype(x.dtype) if x.shape[1] > 1 else x[:, 0]


def _run(plan: Plan, given: Given, kernel, arrays: Arrays, at_queries: tuple):
    """Runs a kernel on all rounds; the arrays it gives are [rows, rounds, l, ...]."""
    tokens = _tokens(arrays, given)
    run = partial(kernel, plan.rule, plan.cut.chunk_length)
    if given.order is None:
        return run(tokens, *at_queries, is_sorted=True)
    if sharding.target_platform() != "tpu":
        return run(tokens, *at_queries, is_sorted=False)
    permutation = given.order.permutation
    sort = partial(_sort, permutation)
    by_position = (tokens.query, tokens.key, tokens.value, tokens.scale, *at_queries)
    query, key, value, scale, *at_queries = jax.tree.map(sort, by_position)
    bucket = None if tokens.bucket is None else jnp.take_along_axis(tokens.bucket, permutation, axis=2)
    place, bucket, seed = jax.tree.map(lambda x: x.reshape(-1, 1, *x.shape[2:]), (tokens.place, bucket, tokens.seed))
    found = run(Tokens(query, key, value, place, bucket, scale, seed), *at_queries, is_sorted=True)
    return jax.tree.map(partial(_unsort, permutation), found)


def _tokens(arrays: Arrays, given: Given) -> Tokens:
    num_rows, length = arrays.query.shape[:2]
    if given.order is None:
        natural = jnp.arange(length, dtype=jnp.int32)
        place, bucket = jnp.broadcast_to(natural, (num_rows, 1, length)), None
    else:
        place, bucket = given.order
    if given.mask is not None:
        may_attend = given.mask[:, None]
        if given.order is not None:
            may_attend = jax.vmap(partial(jnp.take, axis=0, mode="clip"))(given.mask, place)
        place = jnp.where(may_attend, place, chunk_attention.hide(place))
    scale = unit_scales(arrays.query) if arrays.key is None else None
    seed = None
    if given.seed is not None:
        seed = jax.vmap(fold, (0, None))(given.seed, jnp.arange(place.shape[1]))
    return Tokens(arrays.query, arrays.key, arrays.value, place, bucket, scale, seed)


def _sort(permutation, x):
    """Brings an array over positions [rows, l, ...] into the slots of every round [rows * rounds, l, ...]."""
    taken = jax.vmap(partial(jnp.take, axis=0, mode="clip"))(x, permutation)
    return taken.reshape(-1, *x.shape[1:])


def _unsort(permutation, x):
    """Brings an array over slots [rows * rounds, 1, l, ...] back to positions [rows, rounds, l, ...]."""
    take = jax.vmap(jax.vmap(partial(jnp.take, axis=0, mode="clip")))
    return take(x.reshape(*permutation.shape, *x.shape[3:]), invert(permutation))
