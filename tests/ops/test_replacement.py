"""Draws by hashed Gumbel noise: from the right distribution, whatever the chunks, and the same for equal rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer.ops import replacement
from reformer.ops.dropout import draw_seed

SEED = draw_seed(jax.random.key(0))


def _ids(batch, length, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 50, (batch, length)), jnp.int32)


def _logits(params, inputs, row, fixed):
    del row, fixed
    return inputs @ params


def _draw(params, inputs, places, chunk_length=None, temperature=1.0):
    return replacement.draw_in_chunks(_logits, chunk_length, params, inputs, SEED, places, temperature)


def _sample(probabilities, temperature=1.0):
    logits = jnp.log(jnp.asarray(probabilities))[None]
    places = replacement.number_places(SEED, _ids(64, 512))
    return np.asarray(_draw(logits, jnp.ones((64, 512, 1)), places, 100, temperature))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_ids_are_drawn_from_the_softmax_of_the_logits_over_the_temperature(temperature):
    probabilities = np.array([0.5, 0.25, 0.15, 0.099, 0.001])
    expected = probabilities ** (1 / temperature)
    expected /= expected.sum()
    drawn = _sample(probabilities, temperature)
    found = np.bincount(drawn.ravel(), minlength=5) / drawn.size
    assert np.all(np.abs(found - expected) < 5 * np.sqrt(expected / drawn.size))


@pytest.mark.parametrize("shift", [(0, 1), (1, 0), (1, 1), (0, 64)])
def test_neighbouring_draws_are_independent(shift):
    drawn = _sample([0.5, 0.5]) - 0.5
    down, right = shift
    one, other = drawn[down:, right:], drawn[: len(drawn) - down, : drawn.shape[1] - right]
    assert abs(np.mean(one * other)) < 5 * 0.25 / np.sqrt(one.size)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_length", [1, 5, 7, 100])
def test_chunks_draw_what_the_whole_draws(chunk_length):
    rng = np.random.default_rng(0)
    params, inputs = jnp.asarray(rng.standard_normal((4, 9))), jnp.asarray(rng.standard_normal((3, 17, 4)))
    places = replacement.number_places(SEED, _ids(3, 17))
    np.testing.assert_array_equal(_draw(params, inputs, places, chunk_length), _draw(params, inputs, places))


def test_a_row_has_the_same_places_in_any_batch_and_another_row_or_seed_others():
    ids = _ids(8, 20)
    places = np.asarray(replacement.number_places(SEED, ids))
    np.testing.assert_array_equal(replacement.number_places(SEED, ids[::-1])[::-1], places)
    np.testing.assert_array_equal(replacement.number_places(SEED, ids[2:5]), places[2:5])
    assert len(np.unique(places)) == places.size
    changed = replacement.number_places(SEED, ids.at[:, 7].add(1))
    swapped = replacement.number_places(SEED, ids.at[0, 0].set(ids[0, 1]).at[0, 1].set(ids[0, 0]))
    of_other_seed = replacement.number_places(SEED + 1, ids)
    for other in (changed, of_other_seed, swapped[:1]):
        assert not np.isin(np.asarray(other), places).any()


def test_what_is_masked_does_not_count_in_what_a_row_holds():
    ids = _ids(2, 20)
    longer = jnp.pad(ids, ((0, 0), (0, 5)))
    mask = jnp.broadcast_to(jnp.arange(25)[None] < 20, longer.shape)
    found = replacement.number_places(SEED, longer, mask)[:, :20]
    np.testing.assert_array_equal(found, replacement.number_places(SEED, ids))


def test_noise_is_standard_gumbel_and_finite():
    noise = np.asarray(replacement.gumbel(SEED, replacement.number_places(SEED, _ids(32, 64)), 100), np.float64)
    assert np.isfinite(noise).all()
    assert abs(noise.mean() - np.euler_gamma) < 0.02 and abs(noise.var() - np.pi**2 / 6) < 0.03
    smallest = -np.log(-np.log(0.5 * 2.0**-23))
    largest = -np.log(-np.log(1 - 0.5 * 2.0**-23))
    assert smallest == pytest.approx(-2.8, abs=0.02) and largest == pytest.approx(16.6, abs=0.05)


def test_no_gradient_passes_through_a_draw():
    params, inputs = jnp.ones((4, 9)), jnp.ones((2, 6, 4))
    places = replacement.number_places(SEED, _ids(2, 6))

    def total(params, inputs):
        return jnp.sum(_draw(params, inputs, places, 4).astype(jnp.float32))

    gradients = jax.grad(total, argnums=(0, 1))(params, inputs)
    assert not any(np.any(x) for x in gradients)


def test_draws_are_the_same_in_float64(x64):
    ids = _ids(4, 8)
    places = np.asarray(replacement.number_places(SEED, ids))
    with jax.enable_x64(False):
        np.testing.assert_array_equal(replacement.number_places(SEED, ids), places)
