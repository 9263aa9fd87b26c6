"""What is measured in a whole model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer import reference
from reformer.inspection import measure
from tests import small_models as models

CONFIG = dataclasses.replace(models.SMALL, num_layers=3, attention_pattern=("local", "lsh", "full"))


def run(config, length=60, seed=0):
    tokens = np.asarray(models.tokens(config, 1, length)[0])
    variables = {"params": models.init(config)}
    return measure.measure(config, variables, tokens, jax.random.key(seed), counts=(1, 3), max_pixels=20)


@pytest.fixture(scope="module")
def layers():
    return run(CONFIG)


@pytest.mark.slow
def test_layers_come_in_the_order_of_their_depth():
    config = dataclasses.replace(models.SMALL, attention_pattern=("lsh", "local"))
    measured = run(config, 24)
    assert [(layer.depth, layer.kind) for layer in measured] == [(0, "lsh"), (1, "local"), (2, "lsh"), (3, "local")]
    first, second = measured[0].sorting, measured[2].sorting
    assert not np.array_equal(first.buckets, second.buckets)


@pytest.mark.slow
def test_buckets_are_those_by_which_the_model_sorted(layers):
    sorting = layers[1].sorting
    assert sorting.buckets.shape == (CONFIG.num_heads, CONFIG.num_hashes, 60)
    np.testing.assert_array_equal(sorting.permutation, reference.sort_by_bucket(jnp.asarray(sorting.buckets)))
    assert layers[0].sorting is None and layers[2].sorting is None


@pytest.mark.slow
def test_occupancy_counts_every_token_once_per_head_and_round(layers):
    sorting = layers[1].sorting
    assert sorting.occupancy.shape == (CONFIG.num_heads, CONFIG.num_hashes, sorting.num_buckets)
    assert np.all(sorting.occupancy.sum(-1) == 60)
    assert sorting.occupancy[1, 0, 3] == np.sum(sorting.buckets[1, 0] == 3)


@pytest.mark.slow
def test_pictures_hold_the_weight_of_every_query(layers):
    for layer in layers:
        assert layer.picture.shape == (CONFIG.num_heads, 20, 20)
        weights = layer.picture.sum(-1)
        np.testing.assert_allclose(weights[:, 1:], 3, rtol=1e-5)
        # The first token has no key before it; the second has one, but an LSH layer need not show it.
        expected = (1, 2) if layer.kind == "lsh" else (2,)
        assert all(pytest.approx(weight, rel=1e-5) in expected for weight in weights[:, 0])


@pytest.mark.slow
def test_coverage_is_measured_for_more_rounds_than_the_model_runs(layers):
    local, lsh, full = (layer.coverage.seen for layer in layers)
    assert all(layer.counts == (1, 2, 3) for layer in layers)
    assert np.all(np.diff(local, axis=1) == 0)
    assert np.all(np.diff(lsh, axis=1) > 0) and np.all(lsh < 1)
    np.testing.assert_allclose(full, 1, rtol=1e-6)


@pytest.mark.slow
def test_the_key_decides_about_the_buckets(layers):
    again, other = (run(CONFIG, seed=seed)[1].sorting.buckets for seed in (0, 1))
    np.testing.assert_array_equal(again, layers[1].sorting.buckets)
    assert not np.array_equal(other, layers[1].sorting.buckets)


@pytest.mark.slow
def test_padding_of_wrapping_windows_is_left_out():
    config = dataclasses.replace(models.SMALL, num_layers=2, semantics="huggingface")
    for layer in run(config, 43):
        assert layer.picture.sum() == pytest.approx(43 * config.num_heads, rel=1e-5)
        if layer.kind == "lsh":
            assert np.all(layer.sorting.occupancy.sum(-1) == 43)


def test_layers_that_fall_back_to_full_attention_sort_nothing():
    config = dataclasses.replace(models.SMALL, num_layers=2, semantics="huggingface")
    assert [layer.sorting for layer in run(config, 7)] == [None, None]


@pytest.mark.slow
def test_a_single_token_can_be_measured():
    for layer in run(dataclasses.replace(CONFIG, look_ahead=False), 1):
        np.testing.assert_allclose(layer.picture, 1)


@pytest.mark.slow
def test_a_single_token_that_looks_ahead_has_no_key_to_look_at():
    for layer in run(CONFIG, 1):
        np.testing.assert_array_equal(layer.picture, 0)
        np.testing.assert_array_equal(layer.coverage.seen, 0)


def test_an_empty_input_is_refused():
    with pytest.raises(ValueError, match=r"The input holds 0 tokens. Give at least one."):
        measure.measure(CONFIG, {}, np.zeros(0, np.int32), jax.random.key(0))
