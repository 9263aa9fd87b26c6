"""Locality-sensitive hashing by random rotations (angular LSH).

Source: Kitaev et al. 2020 (arXiv 2001.04451), section 2, "Locality sensitive hashing"; the scheme
is that of Andoni et al. 2015 (arXiv 1509.02897).
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from reformer import sharding
from reformer.ops.chunking import map_chunks

_MAX_FACTOR_BITS = 6  # factors of at most 64: a hash costs at most 32 projections per factor
# At once, so that scratch grows neither with the length nor with examples, heads and rounds.
_MOST_TOKENS, _MOST_PROJECTIONS = 16_384, 2**25


def choose_num_buckets(length: int, chunk_length: int) -> tuple[int, ...]:
    """Chooses the number of buckets of one hash round, as factors.

    The paper's m = 2 l / B gives B = 2 l / m buckets for chunks of m tokens: two chunks hold four
    average buckets, so that a bucket rarely outgrows the window. A plain hash needs B/2 projections
    per token, which is quadratic in length over all tokens; factors of at most 64 need at most 32
    each.

    Args:
      length: tokens in the sequence.
      chunk_length: tokens per chunk.

    Returns:
      Powers of two, ascending, as few and as even as possible, whose product is the largest power
      of two of at most 2 * ceil(length / chunk_length).

    Source: arXiv 2001.04451, section 2, below Eq. 5.
    """
    bits = (2 * math.ceil(length / chunk_length)).bit_length() - 1
    num_factors = math.ceil(bits / _MAX_FACTOR_BITS)
    return tuple(2 ** ((bits + i) // num_factors) for i in range(num_factors))


def as_factors(num_buckets) -> tuple[int, ...]:
    """The factors of a number of buckets.

    Args:
      num_buckets: of a round; an integer or a sequence of its factors.

    Raises:
      ValueError: one of them is not even.
    """
    factors = tuple(num_buckets) if isinstance(num_buckets, Sequence) else (num_buckets,)
    if not factors or not all(isinstance(f, int | np.integer) and f >= 2 and f % 2 == 0 for f in factors):
        raise ValueError(
            f"num_buckets={num_buckets!r} must be an even number of at least 2, or a tuple of such factors. "
            "choose_num_buckets(length, chunk_length) gives one that fits."
        )
    return tuple(map(int, factors))


def draw_rotations(
    rng: PRNGKeyArray,
    num_heads: int,
    head_dim: int,
    num_hashes: int,
    factors: int | tuple[int, ...],
    dtype=jnp.float32,
) -> Float[Array, "heads head_dim rounds columns"]:
    """Draws the Gaussian rotations of one layer, one set per head and round, shared by the batch.

    Args:
      rng: of the draw.
      num_heads: as the vectors have.
      head_dim: likewise.
      num_hashes: rounds.
      factors: the number of buckets of a round, or its factors; even.
      dtype: of the rotations, a float type.

    Returns:
      The rotations; the columns of the factors lie side by side, half as many as the factor for each.

    Raises:
      ValueError: a number that makes no sense.
    """
    for name, size in {"num_heads": num_heads, "head_dim": head_dim, "num_hashes": num_hashes}.items():
        if size < 1:
            raise ValueError(f"{name}={size} must be at least 1.")
    return jax.random.normal(rng, (num_heads, head_dim, num_hashes, sum(as_factors(factors)) // 2), dtype)


def hash_vectors(
    vectors: Float[Array, "batch heads length head_dim"],
    rotations: Float[Array, "heads head_dim rounds columns"],
    factors: tuple[int, ...],
    mask: Bool[Array, "batch length"] | None = None,
) -> Int[Array, "batch heads rounds length"]:
    """Assigns every vector to a bucket in every round, h(x) = argmax([xR; -xR]).

    Args:
      vectors: the vectors to hash; their length does not matter. No gradient flows through a hash.
      rotations: from `draw_rotations`; the columns of the factors lie side by side.
      factors: even factors of the number of buckets. Each gets its own hash; they are combined low
        order first: bucket = a_0 + f_0 a_1 + f_0 f_1 a_2 + ...
      mask: True = real token. Masked tokens go to a bucket of their own, number prod(factors).

    Returns:
      Bucket ids, int32, from 0 to prod(factors) (inclusive only with a mask).

    Source: arXiv 2001.04451, section 2, "Locality sensitive hashing".
    """
    check_rotations(rotations, (vectors.shape[1], vectors.shape[3]), factors)
    dtype = jnp.promote_types(jnp.float32, vectors.dtype)
    rotations = jax.lax.stop_gradient(rotations).astype(vectors.dtype)

    def hash_chunk(chunk):
        # Columns before length: reductions over a leading axis vectorise along the length.
        projected = jnp.einsum("bhld,hdrs->bhrsl", chunk, rotations, preferred_element_type=dtype)
        return _combine(projected, factors)

    projections_per_token = vectors.shape[0] * vectors.shape[1] * rotations.shape[2] * rotations.shape[3]
    most = max(1, min(_MOST_TOKENS, _MOST_PROJECTIONS // max(1, projections_per_token)))
    chunk_length = 2 ** (most.bit_length() - 1)  # which divides the usual lengths
    buckets = map_chunks(hash_chunk, jax.lax.stop_gradient(vectors), chunk_length, in_axis=2, out_axis=3)
    if mask is not None:
        buckets = jnp.where(mask[:, None, None, :], buckets, math.prod(factors))
    return buckets


def count_buckets(buckets: Int[Array, "*rows length"], num_buckets: int) -> Int[Array, "*rows buckets"]:
    """Counts the tokens that fell into each bucket.

    Args:
      buckets: from `hash_vectors`, of any number of rows (heads of examples, rounds).
      num_buckets: how many are counted; larger ids, as padding has, are left out.

    Returns:
      Numbers of tokens, int32.
    """
    rows = buckets.reshape(-1, buckets.shape[-1])
    counts = jax.vmap(lambda row: jnp.zeros(num_buckets, jnp.int32).at[row].add(1, mode="drop"))(rows)
    return counts.reshape(*buckets.shape[:-1], num_buckets)


def _combine(projected, factors: tuple[int, ...]):
    """Turns projections [batch, heads, rounds, columns, length] into buckets without the columns axis."""
    bucket, stride, column = 0, 1, 0
    for factor in factors:
        half = projected[:, :, :, column : column + factor // 2]
        bucket += stride * _first_argmax_of_both_signs(half)
        stride, column = stride * factor, column + factor // 2
    return bucket


def _first_argmax_of_both_signs(half):
    """Argmax of concat([half, -half]) along axis 3; of NaNs the last, never out of range.

    In one pass on accelerators. On a CPU by a max and a min, which vectorise where argmax does not.
    """
    size = half.shape[3]
    column = jax.lax.broadcasted_iota(jnp.int32, half.shape, 3)
    if sharding.on_cpu():
        largest = jnp.max(jnp.abs(half), axis=3, keepdims=True)
        index = jnp.where(half == largest, column, jnp.where(-half == largest, column + size, 0x7FFFFFFF))
        return jnp.minimum(jnp.min(index, axis=3), 2 * size - 1)
    index = jnp.where(jnp.isnan(half), 2 * size - 1, jnp.where(half < 0, column + size, column))
    magnitude = jnp.where(jnp.isnan(half), jnp.inf, jnp.abs(half))
    nothing = np.array(-1, half.dtype), np.int32(2 * size - 1)
    return jax.lax.reduce((magnitude, index), nothing, _larger, dimensions=(3,))[1]


def _larger(one, other):
    """Of two (magnitude, index) the one with the larger magnitude, of equal ones the one with the smaller index."""
    is_first = (one[0] > other[0]) | ((one[0] == other[0]) & (one[1] < other[1]))
    return jax.tree.map(partial(jnp.where, is_first), one, other)


def check_rotations(rotations, heads_and_dim: tuple[int, ...], factors: tuple[int, ...]) -> None:
    """Checks that rotations fit the vectors and the factors.

    Args:
      rotations: [heads, head_dim, rounds, columns], if they are right.
      heads_and_dim: numbers of heads and of features of a head.
      factors: of the number of buckets of a round.

    Raises:
      ValueError: they do not, or are no array.
    """
    factors = as_factors(factors)
    if not hasattr(rotations, "shape"):
        raise ValueError(
            f"rotations={rotations!r} must be an array [num_heads, head_dim, num_hashes, sum(factors) // 2]. Draw them "
            "by reformer.ops.hashing.draw_rotations."
        )
    shape = rotations.shape
    expected = (*heads_and_dim, shape[2] if len(shape) == 4 else "num_hashes", sum(factors) // 2)
    if tuple(shape) != expected:
        raise ValueError(
            f"rotations of shape {tuple(shape)} do not fit; expected [num_heads, head_dim, num_hashes, "
            f"sum(factors) // 2] = {expected} for num_buckets={factors}."
        )
