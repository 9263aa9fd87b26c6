"""Sorting tokens by bucket, and undoing it without a second sort."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


def sort_by_bucket(buckets: Int[Array, "*rows length"], num_buckets: int) -> Int[Array, "*rows length"]:
    """Sorts the positions of every row by (bucket, position).

    Bucket and position are packed into one unsigned 32-bit key where they fit: a single-operand
    sort is 5 to 7 times faster than a key-value sort on CPU and a radix sort on GPU. Where they do
    not fit, a stable two-operand sort gives the same order; nothing ever overflows.

    Args:
      buckets: bucket ids from 0 to num_buckets - 1.
      num_buckets: how many ids there are, the one of padding included.

    Returns:
      The permutation, int32: entry s is the position that stands in sorted slot s.
    """
    length = buckets.shape[-1]
    position_bits = (length - 1).bit_length()
    position = jax.lax.broadcasted_iota(jnp.int32, buckets.shape, buckets.ndim - 1)
    if num_buckets << position_bits > 2**32:
        return jax.lax.sort((buckets, position), num_keys=1, is_stable=True)[1]
    key = (buckets.astype(jnp.uint32) << position_bits) | position.astype(jnp.uint32)
    ordered = jax.lax.sort(key, is_stable=False)
    return (ordered & jnp.uint32((1 << position_bits) - 1)).astype(jnp.int32)


def invert(permutation: Int[Array, "*rows length"]) -> Int[Array, "*rows length"]:
    """Inverts the permutation of every row: a scatter of iota, some 100 times faster than an argsort."""
    length = permutation.shape[-1]
    slot = jnp.arange(length, dtype=permutation.dtype)

    def invert_row(row):
        return jnp.zeros_like(row).at[row].set(slot, unique_indices=True, mode="promise_in_bounds")

    return jax.vmap(invert_row)(permutation.reshape(-1, length)).reshape(permutation.shape)
