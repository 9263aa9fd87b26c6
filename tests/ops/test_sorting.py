"""Sorting by (bucket, position), its inverse, and a gather whose gradient is a gather."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer.ops import sorting
from tests import references


def _buckets(num_buckets, length, shape=(2, 3, 2)):
    return jax.random.randint(jax.random.key(length), (*shape, length), 0, num_buckets, jnp.int32)


@pytest.mark.parametrize("length", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("num_buckets", [1, 2, 17, 2**20, 2**31 - 1])
def test_permutation_orders_by_bucket_then_position(num_buckets, length):
    buckets = _buckets(num_buckets, length)
    permutation = sorting.sort_by_bucket(buckets, num_buckets)
    assert permutation.dtype == jnp.int32
    np.testing.assert_array_equal(permutation, references.sort_by_bucket(buckets))


def test_extreme_buckets_at_the_edge_of_32_bits_keep_their_order():
    # num_buckets * length == 2**32 exactly: the largest packed key is 2**32 - 1.
    for length, num_buckets in [(2**12, 2**20), (2**12 + 1, 2**20), (4, 2**30), (3, 2**30)]:
        buckets = jnp.where(jnp.arange(length) % 2 == 0, num_buckets - 1, 0).astype(jnp.int32)
        expected = references.sort_by_bucket(buckets)
        np.testing.assert_array_equal(sorting.sort_by_bucket(buckets, num_buckets), expected)


def test_inverse_undoes_the_permutation():
    permutation = sorting.sort_by_bucket(_buckets(5, 33), 5)
    inverse = sorting.invert(permutation)
    assert inverse.dtype == jnp.int32
    np.testing.assert_array_equal(inverse, np.argsort(permutation, axis=-1))
    np.testing.assert_array_equal(sorting.invert(inverse), permutation)


def test_permute_gathers_rows():
    permutation = sorting.sort_by_bucket(_buckets(5, 9), 5)
    inverse = sorting.invert(permutation)
    rows = jax.random.normal(jax.random.key(1), (2, 3, 2, 9, 4))
    sorted_rows = sorting.permute(rows, permutation, inverse)
    np.testing.assert_array_equal(sorted_rows, np.take_along_axis(rows, np.asarray(permutation)[..., None], axis=-2))
    np.testing.assert_array_equal(sorting.permute(sorted_rows, inverse, permutation), rows)


def test_gradient_of_permute_equals_autodiff_of_a_plain_gather():
    permutation = sorting.sort_by_bucket(_buckets(5, 9), 5)
    inverse = sorting.invert(permutation)
    rows, cotangent = jax.random.normal(jax.random.key(1), (2, 2, 3, 2, 9, 4))
    _, gradient = references.value_and_vjp(lambda x: sorting.permute(x, permutation, inverse), cotangent, rows)
    _, expected = references.value_and_vjp(
        lambda x: jnp.take_along_axis(x, permutation[..., None], axis=-2), cotangent, rows
    )
    np.testing.assert_array_equal(gradient[0], expected[0])


def test_gradient_of_permute_has_no_scatter():
    permutation = sorting.sort_by_bucket(_buckets(5, 9), 5)
    inverse = sorting.invert(permutation)
    rows = jnp.ones((2, 3, 2, 9, 4))
    gradient = jax.grad(lambda x: jnp.sum(sorting.permute(x, permutation, inverse) ** 2))
    assert "scatter" not in jax.jit(gradient).lower(rows).as_text()


def test_sorting_is_the_same_under_jit_and_vmap():
    buckets = _buckets(5, 33)
    expected = references.sort_by_bucket(buckets)
    sort = lambda x: sorting.sort_by_bucket(x, 5)  # noqa: E731
    np.testing.assert_array_equal(jax.jit(sort)(buckets), expected)
    np.testing.assert_array_equal(jax.vmap(jax.vmap(sort))(buckets), expected)
    np.testing.assert_array_equal(jax.vmap(sorting.invert)(jnp.asarray(expected)), np.argsort(expected, axis=-1))
