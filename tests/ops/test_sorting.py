"""Sorting by (bucket, position), exactly at any size, and its inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer import reference, sharding
from reformer.ops import sorting

SORT = jax.jit(sorting.sort_by_bucket, static_argnames="num_buckets")


def _buckets(num_buckets, length, shape=(2, 3, 2)):
    return jnp.asarray(np.random.default_rng(length).integers(0, num_buckets, (*shape, length)), jnp.int32)


@pytest.mark.parametrize("length", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("num_buckets", [1, 2, 17, 2**20, 2**31 - 1])
def test_permutation_orders_by_bucket_then_position(num_buckets, length):
    buckets = _buckets(num_buckets, length)
    permutation = SORT(buckets, num_buckets=num_buckets)
    assert permutation.dtype == jnp.int32
    np.testing.assert_array_equal(permutation, reference.sort_by_bucket(buckets))


def test_extreme_buckets_at_the_edge_of_32_bits_keep_their_order():
    # num_buckets * length == 2**32 exactly: the largest packed key is 2**32 - 1.
    for length, num_buckets in [(2**12, 2**20), (2**12 + 1, 2**20), (4, 2**30), (3, 2**30)]:
        buckets = jnp.where(jnp.arange(length) % 2 == 0, num_buckets - 1, 0).astype(jnp.int32)
        expected = reference.sort_by_bucket(buckets)
        np.testing.assert_array_equal(SORT(buckets, num_buckets=num_buckets), expected)


def test_inverse_undoes_the_permutation():
    permutation = SORT(_buckets(5, 33), num_buckets=5)
    inverse = sorting.invert(permutation)
    assert inverse.dtype == jnp.int32
    np.testing.assert_array_equal(inverse, np.argsort(permutation, axis=-1))
    np.testing.assert_array_equal(sorting.invert(inverse), permutation)


def test_sorting_is_the_same_under_jit_and_vmap():
    buckets = _buckets(5, 33)
    expected = reference.sort_by_bucket(buckets)
    sort = lambda x: sorting.sort_by_bucket(x, 5)  # noqa: E731
    np.testing.assert_array_equal(jax.jit(sort)(buckets), expected)
    np.testing.assert_array_equal(jax.vmap(jax.vmap(sort))(buckets), expected)
    np.testing.assert_array_equal(jax.vmap(sorting.invert)(jnp.asarray(expected)), np.argsort(expected, axis=-1))


@pytest.mark.parametrize("num_buckets", [1, 17, 2**12, 2**27, 2**31 - 1])
def test_one_flat_sort_of_all_rows_equals_a_sort_of_every_row(num_buckets):
    # 12 rows of 64: the position is packed in up to 2**22 buckets, a second operand up to 2**28, then rows are apart.
    buckets = _buckets(num_buckets, 64)
    flat = jax.jit(sorting.sort_flat, static_argnames="num_buckets")(buckets, num_buckets=num_buckets)
    assert flat.dtype == jnp.int32
    np.testing.assert_array_equal(flat, reference.sort_by_bucket(buckets))
    np.testing.assert_array_equal(flat, sorting.sort_rows(buckets, num_buckets))


def test_a_flat_sort_at_the_edges_of_32_bits_keeps_its_order():
    # Rows x buckets x length, and rows x buckets, equal 2**32 exactly, and exceed it by little.
    for rows, length, num_buckets in [(4, 2**10, 2**20), (4, 2**10 + 1, 2**20), (4, 8, 2**30), (8, 8, 2**30)]:
        row = np.where(np.arange(length) % 2 == 0, num_buckets - 1, 0).astype(np.int32)
        buckets = jnp.broadcast_to(row, (rows, length))
        np.testing.assert_array_equal(sorting.sort_flat(buckets, num_buckets), reference.sort_by_bucket(buckets))


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_rows_are_read_side_by_side_as_one_by_one(platform):
    random = np.random.default_rng(0)
    shapes = {"query": (9, 4), "value": (9, 6), "normalizer": (9,), "batched": (9, 2, 3)}
    arrays = {name: jnp.asarray(random.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    places = jnp.asarray([3, 0, 8, 3, 5, -1, 12])  # beyond the ends: the nearest row
    expected = jax.tree.map(lambda x: x[np.clip(places, 0, 8)], arrays)

    def read(arrays):
        return sorting.row_reader(arrays)(places)

    with sharding.compiling_for(platform):
        num_gathers = str(jax.make_jaxpr(read)(arrays)).count("gather[")
    assert num_gathers == {"cpu": 3, "cuda": 4}[platform]
    jax.tree.map(np.testing.assert_array_equal, read(arrays), expected)
    mixed = arrays | {"value": arrays["value"].astype(jnp.bfloat16)}
    assert read(mixed)["value"].dtype == jnp.bfloat16
    assert jax.tree.leaves(sorting.row_reader(())(places)) == []
