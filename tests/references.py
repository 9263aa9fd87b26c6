"""What the ops are compared with, and how closely.

The reference itself is `reformer/reference.py`. Here it gets what tests need beyond: a batch, buckets in float64,
and the dropout masks of the ops.
Letters: b batch, l length, h heads, r rounds, q/k positions of query and key, d head_dim.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from reformer import reference

# Relative and absolute at once: the test inputs have about unit scale. Integers are compared exactly.
VALUE_TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 2e-2}
GRADIENT_TOLERANCE = {"float64": 1e-10, "float32": 1e-4}


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


# Attention: reformer/reference.py over a batch


def _in_float64(function, vectors, mask, rotations):
    """Maps a function of the reference over a batch: buckets in float32 may depend on the order of a sum."""
    with jax.enable_x64(True):
        vectors, rotations = (jnp.asarray(np.asarray(x).astype(np.float64)) for x in (vectors, rotations))
        mask = jnp.ones(vectors.shape[:2], bool) if mask is None else jnp.asarray(mask)
        return np.asarray(jax.vmap(lambda vectors, mask: function(vectors, mask, rotations))(vectors, mask))


def hash_vectors(vectors, rotations, factors, mask=None):
    """Buckets [b, h, r, l]."""
    return _in_float64(lambda x, mask, r: reference.hash_vectors(x, r, factors, mask), vectors, mask, rotations)


def find_window(config, kind, query, mask, rotations):
    """The keys that lie in the windows of the queries, [b, h or 1, r or 1, q, k]."""
    return _in_float64(lambda *arrays: reference.find_window(config, kind, *arrays), query, mask, rotations)


def attention_weights(query, key, window, *, mask=None, causal, looks_ahead=False, correct_duplicates=False):
    """Weights [b, h, r, q, k]; arguments as the reference has them, for a batch."""
    mask = jnp.ones(query.shape[:2], bool) if mask is None else mask
    rules = {"causal": causal, "looks_ahead": looks_ahead, "counts_once": correct_duplicates}
    return jax.vmap(functools.partial(reference.attention_weights, **rules))(query, key, jnp.asarray(window), mask)


def attention(query, key, value, window, *, taps=None, dropout_mask=None, dropout_rate=0.0, **rules):
    """Dense attention [b, l, h, d].

    Args:
      query: as in attention_weights, like all that is not named here.
      key: likewise.
      value: [b, l, h, d].
      window: as in attention_weights.
      taps: [h, 2], what a key gives of the next value and of its own where it looks ahead; None = (1, 0).
      dropout_mask: [b, h, r, q, k], True = keep.
      dropout_rate: of that mask.
      rules: as in attention_weights.
    """
    weights = attention_weights(query, key, window, **rules)
    if dropout_mask is not None:
        weights = weights * dropout_mask / (1 - dropout_rate)
    if rules.get("looks_ahead") and taps is None:
        taps = jnp.broadcast_to(jnp.array([1.0, 0.0], value.dtype), (value.shape[2], 2))
    return jax.vmap(lambda weights, value: reference.attend(weights, value, taps))(weights, value)


# Losses and the reversible stack


def cross_entropy(hidden, kernel, bias, targets, weights):
    """Weighted sum of -log softmax(hidden @ kernel + bias)[target] in nats, and the sum of the weights."""
    return reference.cross_entropy(hidden @ kernel + bias[None, None], targets, weights)


def residual_stack(functions, x1, x2):
    """(x1, x2) -> (x2, x1 + f(x2)) for each f in turn."""
    for function in functions:
        x1, x2 = x2, x1 + function(x2)
    return x1, x2
