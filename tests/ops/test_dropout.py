"""Dropout masks by counter-based hashing: fair, independent, and a function of seed, token and feature only."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer.ops import dropout as dropout_ops

ROWS, COLUMNS = 1024, 512
KEEP_MASK = jax.jit(dropout_ops.keep_mask, static_argnames="rate")
DROPOUT = jax.jit(dropout_ops.dropout, static_argnames="rate")
ROW = np.arange(ROWS, dtype=np.int32)
COLUMN = np.arange(COLUMNS, dtype=np.int32)


def _seed(number):
    return dropout_ops.draw_seed(jax.random.key(number))


def _mask(seed=None, rate=0.3, num_rows=ROWS, num_columns=COLUMNS):
    seed = _seed(0) if seed is None else seed
    mask = KEEP_MASK(seed, ROW[:num_rows, None], COLUMN[None, :num_columns], rate=rate)
    return np.asarray(mask).astype(np.float64)


def _assert_uncorrelated(first, second, rate):
    """The product of two centred masks has mean 0 within 5 standard errors."""
    variance = rate * (1 - rate)
    covariance = np.mean((first - (1 - rate)) * (second - (1 - rate)))
    assert abs(covariance) < 5 * variance / math.sqrt(first.size)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("number", [0, 1])
def test_keep_rate_is_right_overall_and_in_every_row_and_column(rate, number):
    mask = _mask(_seed(number), rate)
    sigma = math.sqrt(rate * (1 - rate))
    assert abs(mask.mean() - (1 - rate)) < 5 * sigma / math.sqrt(mask.size)
    for axis in (0, 1):
        deviations = (mask.mean(axis) - (1 - rate)) * math.sqrt(mask.shape[axis]) / sigma
        assert np.max(np.abs(deviations)) < 6
        # Rows that are merely copies or mirrors of one another would spread too little or too much.
        assert abs(np.var(deviations) - 1) < 5 * math.sqrt(2 / deviations.size)


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("shift", [(0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (0, 64), (64, 0), (256, 256)])
def test_neighbouring_elements_are_independent(rate, shift):
    mask = _mask(rate=rate)
    down, right = shift
    _assert_uncorrelated(mask[down:, right:], mask[: ROWS - down, : COLUMNS - right], rate)


def test_the_mask_is_not_symmetric_in_row_and_column():
    mask = _mask(num_rows=COLUMNS, rate=0.5)
    above = np.triu_indices(COLUMNS, 1)
    _assert_uncorrelated(mask[above], mask.T[above], 0.5)


def _assert_all_uncorrelated(seeds):
    masks = [_mask(seed, 0.5) for seed in seeds]
    for first, second in itertools.combinations(masks, 2):
        _assert_uncorrelated(first, second, 0.5)
        _assert_uncorrelated(first[1:], second[:-1], 0.5)
        _assert_uncorrelated(first[:, 1:], second[:, :-1], 0.5)


def test_different_seeds_give_independent_masks():
    _assert_all_uncorrelated([_seed(number) for number in range(4)])


def test_consecutive_raw_seeds_give_independent_masks():
    _assert_all_uncorrelated([jnp.uint32(number) for number in range(4)])


def test_folded_seeds_differ_and_give_independent_masks():
    seeds = [_seed(0), *(dropout_ops.fold(_seed(0), counter) for counter in range(4))]
    assert len({int(seed) for seed in seeds}) == 5
    _assert_all_uncorrelated(seeds)


def test_folding_twice_depends_on_the_order():
    first, second = (dropout_ops.fold(dropout_ops.fold(_seed(0), a), b) for a, b in ((1, 2), (2, 1)))
    assert int(first) != int(second)


def test_columns_beyond_16_bits_do_not_repeat():
    column = np.arange(2**18, dtype=np.int32)
    mask = np.asarray(KEEP_MASK(_seed(0), np.zeros_like(column), column, rate=0.5)).astype(np.float64)
    for period in (2**8, 2**16, 2**17):
        _assert_uncorrelated(mask[period:], mask[:-period], 0.5)


def test_rows_beyond_16_bits_do_not_repeat():
    row = np.arange(2**18, dtype=np.int32)
    mask = np.asarray(KEEP_MASK(_seed(0), row, np.zeros_like(row), rate=0.5)).astype(np.float64)
    for period in (2**8, 2**16, 2**17):
        _assert_uncorrelated(mask[period:], mask[:-period], 0.5)


def test_the_same_seed_gives_the_same_mask_with_and_without_jit():
    x = np.ones((64, 32), np.float32)
    first = DROPOUT(x, rate=0.3, seed=_seed(0), token_number=ROW[:64])
    np.testing.assert_array_equal(first, DROPOUT(x, rate=0.3, seed=_seed(0), token_number=ROW[:64]))
    np.testing.assert_array_equal(first, dropout_ops.dropout(jnp.asarray(x), 0.3, _seed(0), jnp.asarray(ROW[:64])))
    assert np.any(first != DROPOUT(x, rate=0.3, seed=_seed(1), token_number=ROW[:64]))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_kept_values_are_scaled_and_dropped_ones_are_zero(dtype):
    x = jax.random.normal(jax.random.key(1), (ROWS, 16), dtype)
    dropped = DROPOUT(x, rate=0.25, seed=_seed(0), token_number=ROW)
    assert dropped.dtype == dtype
    expected = _mask(rate=0.25, num_columns=16) * np.asarray(x).astype(np.float64) / 0.75
    tolerance = 1e-6 if dtype == jnp.float32 else 2**-7
    np.testing.assert_allclose(np.asarray(dropped).astype(np.float64), expected, rtol=tolerance)


def test_rate_zero_returns_the_input():
    x = jax.random.normal(jax.random.key(1), (8, 4))
    np.testing.assert_array_equal(DROPOUT(x, rate=0.0, seed=_seed(0), token_number=ROW[:8]), x)


def test_a_chunk_gets_the_mask_of_its_rows_in_the_whole():
    x = np.random.default_rng(1).standard_normal((64, 8)).astype(np.float32)
    row = ROW[:64]
    whole = np.asarray(DROPOUT(x, rate=0.3, seed=_seed(0), token_number=row))
    for chunk in np.split(np.random.default_rng(2).permutation(row), 4):
        np.testing.assert_array_equal(DROPOUT(x[chunk], rate=0.3, seed=_seed(0), token_number=chunk), whole[chunk])


def test_rows_may_have_several_axes():
    x = np.random.default_rng(1).standard_normal((3, 5, 8)).astype(np.float32)
    flat = DROPOUT(x.reshape(15, 8), rate=0.3, seed=_seed(0), token_number=ROW[:15])
    folded = DROPOUT(x, rate=0.3, seed=_seed(0), token_number=ROW[:15].reshape(3, 5))
    np.testing.assert_array_equal(folded, flat.reshape(3, 5, 8))


def test_gradient_passes_through_kept_values_only():
    gradient = jax.grad(lambda x: jnp.sum(DROPOUT(x, rate=0.5, seed=_seed(0), token_number=ROW[:64])))(
        jnp.ones((64, 8))
    )
    np.testing.assert_array_equal(gradient, 2 * _mask(rate=0.5, num_rows=64, num_columns=8))


def test_the_mask_is_the_same_in_float64(x64):
    mask = _mask(num_rows=32)
    with jax.enable_x64(False):
        np.testing.assert_array_equal(mask, _mask(num_rows=32))
