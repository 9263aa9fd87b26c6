"""Cross attention equals softmax attention written out, whatever the chunks of the queries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer.ops import cross
from tests import references

BATCH, HEADS, QUERIES, KEYS, DIM = 2, 3, 5, 7, 4
MASK = jnp.arange(KEYS)[None] < jnp.array([[KEYS], [3]])


def _arrays(dtype="float64"):
    rng = np.random.default_rng(0)
    shapes = [(BATCH, HEADS, size, DIM) for size in (QUERIES, KEYS, KEYS)]
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def _rows():
    return jnp.arange(BATCH * QUERIES, dtype=jnp.int32).reshape(BATCH, QUERIES)


def _reference(query, key, value):
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key) / DIM**0.5
    scores = jnp.where(MASK[:, None, None], scores, -jnp.inf)
    return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores), value)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_values_and_gradients_equal_softmax_attention(x64, dtype):
    arrays = _arrays(dtype)
    cotangent = jnp.ones_like(arrays[0])
    actual = references.value_and_vjp(lambda *args: cross.attend(*args, MASK), cotangent, *arrays)
    expected = references.value_and_vjp(_reference, cotangent, *arrays)
    references.assert_close(actual[0], expected[0], references.VALUE_TOLERANCE[dtype])
    references.assert_close(actual[1], expected[1], references.GRADIENT_TOLERANCE[dtype])


def test_a_source_without_a_real_token_gives_zero_and_zero_gradients():
    mask = jnp.zeros((BATCH, KEYS), bool)
    arrays = _arrays("float32")
    value, gradients = references.value_and_vjp(
        lambda *args: cross.attend(*args, mask), jnp.ones_like(arrays[0]), *arrays
    )
    for array in (value, *gradients):
        np.testing.assert_array_equal(array, 0)


@pytest.mark.slow
def test_dropout_does_not_depend_on_the_chunks_of_the_queries(x64):
    query, key, value = _arrays()
    options = {"dropout_rate": 0.4, "seed": jnp.uint32(3)}
    whole = cross.attend(query, key, value, MASK, row=_rows(), **options)
    parts = [
        cross.attend(query[:, :, part], key, value, MASK, row=_rows()[:, part], **options)
        for part in (slice(0, 2), slice(2, None))
    ]
    np.testing.assert_allclose(jnp.concatenate(parts, axis=2), whole, rtol=1e-12)


def test_dropout_keeps_the_mean_and_differs_between_heads():
    query, key = jnp.zeros((1, 2, 200, DIM)), jnp.zeros((1, 2, 100, DIM))
    row = jnp.arange(200, dtype=jnp.int32)[None]
    out = cross.attend(query, key, jnp.ones((1, 2, 100, 1)), dropout_rate=0.3, row=row, seed=jnp.uint32(0))
    np.testing.assert_allclose(jnp.mean(out), 1, atol=0.01)
    assert np.abs(np.corrcoef(out[0, 0, :, 0], out[0, 1, :, 0])[0, 1]) < 0.2
