"""Obvious, slow, dense references for the ops, and the tolerances they are compared with.

Everything is written from the definition: masks are whole [length, length] matrices, the rounds of LSH attention are an
explicit axis of one softmax, and sorting is a stable `argsort`.
Letters: b batch, l length, h heads, r rounds, q/k positions of query and key, d head_dim.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

# Relative and absolute at once: the test inputs have about unit scale. Integers are compared exactly.
VALUE_TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 2e-2}
GRADIENT_TOLERANCE = {"float64": 1e-10, "float32": 1e-4}

SELF_SCORE = -1e3


def assert_close(actual, expected, tolerance):
    """Assert that two pytrees of arrays agree, leaf by leaf, and that shapes are equal."""
    actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
    assert len(actual) == len(expected)
    for left, right in zip(actual, expected, strict=True):
        assert left.shape == right.shape
        left, right = (np.asarray(leaf).astype(np.float64) for leaf in (left, right))
        np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance)


def value_and_vjp(function, cotangent, *args):
    """Value of `function` and its gradients with respect to `args`, compiled as one program."""

    def run(cotangent, *args):
        value, vjp = jax.vjp(function, *args)
        return value, vjp(cotangent.astype(value.dtype))

    return jax.jit(run)(cotangent, *args)


# Hashing and sorting


def hash_vectors(vectors, rotations, factors, mask=None):
    """Buckets [b, h, r, l] by float64 projection, a loop per factor."""
    vectors, rotations = np.asarray(vectors).astype(np.float64), np.asarray(rotations).astype(np.float64)
    projected = np.einsum("blhd,hdrn->bhrln", vectors, rotations)
    ends = list(itertools.accumulate(factor // 2 for factor in factors))
    buckets = np.zeros(projected.shape[:-1], np.int64)
    stride = 1
    for factor, end in zip(factors, ends, strict=True):
        columns = projected[..., end - factor // 2 : end]
        buckets += stride * np.argmax(np.concatenate([columns, -columns], axis=-1), axis=-1)
        stride *= factor
    if mask is None:
        return buckets
    return np.where(np.asarray(mask)[:, None, None, :], buckets, stride)


def sort_by_bucket(buckets):
    """Permutation of the positions that orders them by (bucket, position)."""
    return np.argsort(np.asarray(buckets), axis=-1, kind="stable")


# Which keys lie in the window of a query


def full_window(length):
    """Every key: [1, 1, 1, q, k]."""
    return np.ones((1, 1, 1, length, length), bool)


def _same_or_neighbouring_chunk(slots, chunk_length, num_chunks_before, num_chunks_after):
    chunks = slots // chunk_length
    offset = chunks[..., None, :] - chunks[..., :, None]
    return (offset >= -num_chunks_before) & (offset <= num_chunks_after)


def local_window(length, chunk_length, num_chunks_before, num_chunks_after):
    """Keys in the chunk of the query and its neighbours, in natural order: [1, 1, 1, q, k]."""
    slots = np.arange(length)[None, None, None]
    return _same_or_neighbouring_chunk(slots, chunk_length, num_chunks_before, num_chunks_after)


def lsh_window(buckets, chunk_length, num_chunks_before, num_chunks_after, within_bucket):
    """Keys in the chunk of the query and its neighbours, in sorted order, round by round: [b, h, r, q, k]."""
    slots = np.argsort(sort_by_bucket(buckets), axis=-1)
    window = _same_or_neighbouring_chunk(slots, chunk_length, num_chunks_before, num_chunks_after)
    if within_bucket:
        window &= buckets[..., None, :] == buckets[..., :, None]
    return window


# Attention


def unit_key(query):
    """The key of a shared projection: a unit vector (epsilon inside the root), [b, l, h, d]."""
    mean_square = jnp.mean(jnp.square(query), axis=-1, keepdims=True)
    return query * jax.lax.rsqrt(mean_square + 1e-6) / math.sqrt(query.shape[-1])


def attention_weights(query, key, window, *, causal, mask=None, correct_duplicates=False, looks_ahead=False):
    """Weights [b, h, r, q, k] of one softmax over the keys of all rounds.

    Args:
      query: [b, l, h, d].
      key: [b, l, h, d], or None: shared with the query.
      window: bool [b or 1, h or 1, r, q, k], True = the key is in the window of the query in this round.
      causal: whether keys after the query are out of reach.
      mask: bool [b, l], False = never attended.
      correct_duplicates: count a key once, however many rounds see it.
      looks_ahead: keys before the query's own position only, of tokens whose next is real too.
    """
    is_shared, length = key is None, query.shape[1]
    key = unit_key(query) if is_shared else key / math.sqrt(query.shape[-1])
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key)[:, :, None]
    reachable = jnp.asarray(window)
    if causal:
        reachable &= np.tri(length, k=-1 if looks_ahead else 0, dtype=bool)[None, None, None]
    if mask is not None:
        reachable &= mask[:, None, None, None, :]
        if looks_ahead:
            reachable &= jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))[:, None, None, None, :]
    if is_shared and not looks_ahead:
        is_self = np.eye(length, dtype=bool)[None, None, None]
        scores = jnp.where(is_self, SELF_SCORE, scores)
        reachable |= is_self
    if correct_duplicates:
        scores -= jnp.log(jnp.maximum(jnp.sum(window, axis=2, keepdims=True), 1).astype(scores.dtype))
    scores = jnp.where(reachable, scores, -jnp.inf)
    highest = jax.lax.stop_gradient(jnp.max(scores, axis=(2, 4), keepdims=True))
    unnormalized = jnp.exp(scores - jnp.where(jnp.isfinite(highest), highest, 0))
    total = jnp.sum(unnormalized, axis=(2, 4), keepdims=True)
    return unnormalized / jnp.where(total > 0, total, 1)


def attention(query, key, value, window, *, taps=None, dropout_mask=None, dropout_rate=0.0, **options):
    """Dense attention [b, l, h, d].

    Args:
      query: as in attention_weights, like all that is not named here.
      key: likewise.
      value: [b, l, h, d].
      window: as in attention_weights.
      taps: [h, 2], what a key gives of the next value and of its own where it looks ahead; None = (1, 0).
      dropout_mask: [b, h, r, q, k], True = keep.
      dropout_rate: of that mask.
      options: as in attention_weights.
    """
    weights = attention_weights(query, key, window, **options)
    if options.get("looks_ahead"):
        taps = jnp.array([[1.0, 0.0]]) if taps is None else taps
        ahead = jnp.pad(value[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0)))
        value = taps[None, None, :, :1] * ahead + taps[None, None, :, 1:] * value
    if dropout_mask is not None:
        weights = weights * dropout_mask / (1 - dropout_rate)
    return jnp.einsum("bhrqk,bkhd->bqhd", weights, value)


# Losses and the reversible stack


def cross_entropy(hidden, kernel, bias, targets, weights):
    """Weighted sum of -log softmax(hidden @ kernel + bias)[target] in nats, and the sum of the weights."""
    log_probabilities = jax.nn.log_softmax(hidden @ kernel + bias[None, None])
    nats = -jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]
    return jnp.sum(weights * nats), jnp.sum(weights)


def residual_stack(functions, x1, x2):
    """(x1, x2) -> (x2, x1 + f(x2)) for each f in turn."""
    for function in functions:
        x1, x2 = x2, x1 + function(x2)
    return x1, x2
