"""Hashing: buckets are the argmax over rotated directions, factor by factor."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer import sharding
from reformer.ops import hashing
from tests import references


def hash_vectors(vectors, rotations, factors, mask=None):
    """The op on [batch, length, heads, head_dim], as the reference takes it."""
    return hashing.hash_vectors(jnp.swapaxes(vectors, 1, 2), rotations, factors, mask)


HASH = jax.jit(hash_vectors, static_argnames="factors")


def _inputs(factors, length=33, num_hashes=3, dtype=jnp.float32):
    vector_rng, rotation_rng = jax.random.split(jax.random.key(0))
    vectors = jax.random.normal(vector_rng, (2, length, 3, 8), dtype)
    return vectors, hashing.draw_rotations(rotation_rng, 3, 8, num_hashes, factors, dtype)


@pytest.mark.parametrize("factors", [(2,), (4,), (8, 6), (2, 2, 4), (64, 64)])
@pytest.mark.parametrize("masked", [False, True])
def test_buckets_equal_the_reference(factors, masked):
    vectors, rotations = _inputs(factors)
    mask = jax.random.bernoulli(jax.random.key(1), 0.7, vectors.shape[:2]) if masked else None
    buckets = HASH(vectors, rotations, factors, mask)
    assert buckets.dtype == jnp.int32
    np.testing.assert_array_equal(buckets, references.hash_vectors(vectors, rotations, factors, mask))


def test_buckets_of_chosen_vectors_are_the_hand_computed_ones():
    # Columns: e0, e1 for the factor 4, e2 for the factor 2. Directions of the factor 4: e0, e1, -e0, -e1.
    rotations = jnp.eye(3)[None, :, None, :]
    vectors = jnp.array([[2, 1, 1], [1, 2, -1], [-2, 1, 1], [1, -2, -1]], jnp.float32)[None, :, None, :]
    mask = jnp.array([[True, True, True, True]])
    np.testing.assert_array_equal(HASH(vectors, rotations, (4, 2), mask), [[[[0, 5, 2, 7]]]])
    mask = jnp.array([[True, False, True, True]])
    np.testing.assert_array_equal(HASH(vectors, rotations, (4, 2), mask), [[[[0, 8, 2, 7]]]])


def test_ties_go_to_the_first_direction():
    vectors = jnp.zeros((1, 5, 1, 4))
    buckets = hash_vectors(vectors, jnp.ones((1, 4, 2, 6)), (8, 4), None)
    np.testing.assert_array_equal(buckets, np.zeros((1, 1, 2, 5)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_pass_on_accelerators_finds_the_buckets_of_the_two_on_a_cpu(dtype, monkeypatch):
    vectors, rotations = _inputs((64, 6), length=512, dtype=dtype)
    vectors = vectors.at[0, 1].set(0).at[0, 2].set(jnp.nan).at[0, 3, 0, 0].set(jnp.nan)
    vectors = vectors.at[0, 4, :, 0].set(jnp.inf)
    rotations = rotations.at[:, :, 1].set(jnp.sign(rotations[:, :, 1]))  # many ties, with both signs
    vectors = vectors.at[1].set(jnp.sign(vectors[1]))
    expected = hash_vectors(vectors, rotations, (64, 6))
    monkeypatch.setattr(sharding, "target_platform", lambda: "gpu")
    np.testing.assert_array_equal(hash_vectors(vectors, rotations, (64, 6)), expected)
    assert np.max(expected) == expected[0, 0, 0, 2] == 64 * 6 - 1


def test_opposite_vectors_never_share_a_bucket_and_scaled_ones_always_do():
    vectors, rotations = _inputs((8, 4))
    buckets = HASH(vectors, rotations, (8, 4), None)
    assert not np.any(buckets == HASH(-vectors, rotations, (8, 4), None))
    np.testing.assert_array_equal(buckets, HASH(4 * vectors, rotations, (8, 4), None))


def test_bfloat16_vectors_are_projected_in_float32():
    vectors, rotations = _inputs((64,), length=512, dtype=jnp.bfloat16)
    buckets = np.asarray(HASH(vectors, rotations, (64,), None))
    expected = references.hash_vectors(vectors, rotations, (64,))
    assert np.mean(buckets != expected) < 1e-3  # a projection rounded to bfloat16 moves about one in a hundred


def test_float64_vectors_are_projected_in_float64(x64):
    # The two columns differ by 1e-12, which float32 cannot see.
    rotations = jnp.array([[[[1.0, 1.0 + 1e-12]]]], jnp.float64)
    buckets = hash_vectors(jnp.ones((1, 1, 1, 1), jnp.float64), rotations, (4,), None)
    np.testing.assert_array_equal(buckets, [[[[1]]]])


def test_no_gradient_flows_through_hashing():
    vectors, rotations = _inputs((4, 2))

    def total(vectors, rotations):
        return jnp.sum(HASH(vectors, rotations, (4, 2), None).astype(jnp.float32) * vectors[0, 0, 0, 0])

    vector_gradient, rotation_gradient = jax.grad(total, argnums=(0, 1))(vectors, rotations)
    assert np.count_nonzero(vector_gradient) == 1
    assert np.count_nonzero(rotation_gradient) == 0


def _expected_product(length, chunk_length):
    return max(2, 2 ** int(math.log2(2 * math.ceil(length / chunk_length))))


@pytest.mark.parametrize("chunk_length", [1, 8, 64])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 100, 1000, 4096, 65536, 524288, 2**20])
def test_automatic_factors_follow_the_rule(length, chunk_length):
    factors = hashing.choose_num_buckets(length, chunk_length)
    assert isinstance(factors, tuple)
    product = math.prod(factors)
    assert product == _expected_product(length, chunk_length)
    exponents = [int(math.log2(factor)) for factor in factors]
    assert [2**exponent for exponent in exponents] == list(factors)
    assert min(exponents) >= 1 and max(exponents) <= 6
    assert len(factors) == max(1, math.ceil(math.log2(product) / 6)), "as few factors as possible"
    assert max(exponents) - min(exponents) <= 1, "as even as possible"
    assert exponents == sorted(exponents)


@pytest.mark.parametrize(
    ("length", "chunk_length", "factors"),
    [(1, 64, (2,)), (64, 64, (2,)), (65, 64, (4,)), (2048, 64, (64,)), (4096, 64, (8, 16)), (65536, 64, (32, 64))],
)
def test_automatic_factors_of_known_lengths(length, chunk_length, factors):
    assert hashing.choose_num_buckets(length, chunk_length) == factors


def test_rotations_are_standard_normal_and_follow_the_key():
    draw = lambda seed: hashing.draw_rotations(jax.random.key(seed), 4, 32, 4, (16, 32), jnp.float32)  # noqa: E731
    rotations = np.asarray(draw(0))
    assert rotations.shape == (4, 32, 4, 24)
    assert abs(rotations.mean()) < 5 / math.sqrt(rotations.size)
    assert abs(rotations.var() - 1) < 5 * math.sqrt(2 / rotations.size)
    np.testing.assert_array_equal(rotations, draw(0))
    assert np.count_nonzero(rotations == np.asarray(draw(1))) == 0


@pytest.mark.parametrize(
    ("limit", "value", "chunk_length"),
    [("_MOST_TOKENS", 10, 8), ("_MOST_PROJECTIONS", 5 * (2 * 3 * 3 * 6), 4), ("_MOST_PROJECTIONS", 1, 1)],
)
def test_hashing_in_chunks_equals_hashing_at_once(limit, value, chunk_length, monkeypatch):
    vectors, rotations = _inputs((8, 4))  # 2 examples, 3 heads, 3 rounds, 6 columns
    expected = hash_vectors(vectors, rotations, (8, 4), None)
    used, original = [], hashing.map_chunks

    def map_chunks(fn, x, chunk_length, **axes):
        used.append(chunk_length)
        return original(fn, x, chunk_length, **axes)

    monkeypatch.setattr(hashing, "map_chunks", map_chunks)
    monkeypatch.setattr(hashing, limit, value)
    np.testing.assert_array_equal(hash_vectors(vectors, rotations, (8, 4), None), expected)
    assert used == [chunk_length]


@pytest.mark.parametrize("shape", [(3, 8, 2, 5), (3, 4, 2, 6), (2, 8, 2, 6), (3, 8, 6)])
def test_rotations_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="rotations"):
        hashing.check_rotations(np.zeros(shape), (3, 8), (8, 4))
    hashing.check_rotations(np.zeros((3, 8, 2, 6)), (3, 8), (8, 4))


def test_rotations_that_are_none_are_refused():
    with pytest.raises(
        ValueError, match=r"rotations=None must be an array \[num_heads, .* reformer.ops.hashing.draw_ro"
    ):
        hashing.check_rotations(None, (3, 8), (8, 4))


def test_one_number_of_buckets_is_its_only_factor():
    one, same = (hashing.draw_rotations(jax.random.key(0), 2, 4, 3, factors) for factors in (8, (8,)))
    np.testing.assert_array_equal(one, same)
    assert hashing.as_factors([4, np.int64(8)]) == (4, 8)


@pytest.mark.parametrize("num_buckets", [7, 0, (), (8, 3), 8.0, None, "8"])
def test_buckets_that_are_not_even_are_refused(num_buckets):
    with pytest.raises(
        ValueError, match=re.escape(f"num_buckets={num_buckets!r} must be an even number of at least 2")
    ):
        hashing.as_factors(num_buckets)


def test_rotations_of_nothing_are_refused():
    with pytest.raises(ValueError, match="num_hashes=0 must be at least 1"):
        hashing.draw_rotations(jax.random.key(0), 2, 4, 0, 8)
