"""The chunked vocabulary loss equals the unchunked one, in value and gradients, without ever holding all logits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer.ops import losses
from tests import references

BATCH, EMBED, VOCAB = 3, 6, 11


def _inputs(length, dtype="float64"):
    """(kernel, bias), hidden, targets, weights."""
    rng = np.random.default_rng(0)
    params = rng.standard_normal((EMBED, VOCAB)).astype(dtype), rng.standard_normal(VOCAB).astype(dtype)
    hidden = rng.standard_normal((BATCH, length, EMBED)).astype(dtype)
    targets = rng.integers(0, VOCAB, (BATCH, length)).astype(np.int32)
    weights = rng.random((BATCH, length)) * (rng.random((BATCH, length)) < 0.8)
    return jax.tree.map(jnp.asarray, (params, hidden, targets, weights))


def _logits(params, hidden, row, fixed):
    del row, fixed
    return hidden @ params[0] + params[1][None, None]


def _chunked(chunk_length, targets, weights, logits_fn=_logits, fixed=None):
    def loss(params, hidden):
        return losses.chunked_cross_entropy(logits_fn, chunk_length, params, hidden, targets, weights, fixed)

    return loss


def _smoothed_reference(targets, weights, smoothing):
    """The cross-entropy of targets that are a distribution."""

    def loss(params, hidden):
        log_probabilities = jax.nn.log_softmax(_logits(params, hidden, None, None))
        smoothed = (1 - smoothing) * jax.nn.one_hot(targets, VOCAB, dtype=hidden.dtype) + smoothing / VOCAB
        return -jnp.sum(weights[..., None] * smoothed * log_probabilities), jnp.sum(weights)

    return loss


def _reference(targets, weights):
    return lambda params, hidden: references.cross_entropy(hidden, *params, targets, weights)


def _mean(loss):
    """Nats per unit of weight, squared: both outputs and a cotangent that is not 1 take part."""

    def mean(*args):
        nats, weight = loss(*args)
        return (nats / weight) ** 2

    return jax.jit(jax.value_and_grad(mean, argnums=(0, 1)))


@pytest.mark.parametrize(("length", "chunk_length"), [(1, 4), (7, None), (7, 1), (7, 7), (16, 4), (16, 7), (16, 100)])
def test_value_and_gradients_equal_the_unchunked_loss(x64, length, chunk_length):
    params, hidden, targets, weights = _inputs(length)
    chunked, reference = _chunked(chunk_length, targets, weights), _reference(targets, weights)
    actual, expected = chunked(params, hidden), reference(params, hidden)
    assert all(x.shape == () for x in actual)
    references.assert_close(actual, expected, references.VALUE_TOLERANCE["float64"])
    references.assert_close(
        _mean(chunked)(params, hidden), _mean(reference)(params, hidden), references.GRADIENT_TOLERANCE["float64"]
    )


@pytest.mark.parametrize("chunk_length", [None, 5])
def test_float32_equals_the_unchunked_loss(chunk_length):
    params, hidden, targets, weights = _inputs(16, "float32")
    actual, expected = (
        _mean(loss)(params, hidden) for loss in (_chunked(chunk_length, targets, weights), _reference(targets, weights))
    )
    references.assert_close(actual[0], expected[0], references.VALUE_TOLERANCE["float32"])
    references.assert_close(actual[1], expected[1], references.GRADIENT_TOLERANCE["float32"])


@pytest.mark.parametrize("chunk_length", [None, 4])
def test_zero_weights_give_zero_and_no_gradient(chunk_length):
    params, hidden, targets, weights = _inputs(7, "float32")
    loss = _chunked(chunk_length, targets, jnp.zeros_like(weights))
    (nats, weight), gradients = references.value_and_vjp(lambda *x: jnp.stack(loss(*x)), jnp.ones(2), params, hidden)
    assert (float(nats), float(weight)) == (0, 0)
    assert all(np.all(np.asarray(gradient) == 0) for gradient in jax.tree.leaves(gradients))


def test_tokens_of_zero_weight_have_no_gradient_even_with_infinite_loss():
    params, hidden, targets, weights = _inputs(7, "float32")
    weights = weights.at[:, 3].set(0)
    params = (params[0], params[1].at[0].set(-1e30))
    targets = jnp.where(weights == 0, 0, jnp.maximum(targets, 1))  # only unweighted tokens have the impossible target
    (nats, gradients) = jax.value_and_grad(lambda h: _chunked(4, targets, weights)(params, h)[0])(hidden)
    assert np.isfinite(nats)
    assert np.all(np.isfinite(gradients))
    assert np.all(np.asarray(gradients)[np.asarray(weights) == 0] == 0)


def test_no_gradient_flows_to_the_weights():
    params, hidden, targets, weights = _inputs(7, "float32")
    gradient = jax.grad(lambda w: _chunked(4, targets, w)(params, hidden)[0])(weights)
    assert np.all(np.asarray(gradient) == 0)


@pytest.mark.parametrize("chunk_length", [None, 3])
def test_rows_number_the_tokens_of_the_whole_array(chunk_length):
    params, hidden, targets, weights = _inputs(7, "float32")
    number = jnp.arange(BATCH * 7).reshape(BATCH, 7)

    def shifted(params, hidden, row, fixed):
        return _logits(params, hidden, row, None) * fixed[row][..., None]

    scale = jnp.linspace(0.1, 2, BATCH * 7)
    actual = _chunked(chunk_length, targets, weights, shifted, scale)(params, hidden)
    nats = losses.cross_entropy(_logits(params, hidden, None, None) * scale[number][..., None], targets)
    references.assert_close(actual, (jnp.sum(nats * weights), jnp.sum(weights)), references.VALUE_TOLERANCE["float32"])


@pytest.mark.parametrize("chunk_length", [None, 3])
def test_smoothed_labels_are_spread_over_all_ids(x64, chunk_length):
    params, hidden, targets, weights = _inputs(7)

    def smoothed(params, hidden):
        return losses.chunked_cross_entropy(_logits, chunk_length, params, hidden, targets, weights, None, 0.3)

    actual, expected = (_mean(loss)(params, hidden) for loss in (smoothed, _smoothed_reference(targets, weights, 0.3)))
    references.assert_close(actual, expected, references.GRADIENT_TOLERANCE["float64"])


def test_bfloat16_logits_are_normalised_in_float32():
    logits = jnp.zeros((1, 1, 259), jnp.bfloat16)
    nats = losses.cross_entropy(logits, jnp.zeros((1, 1), jnp.int32))
    assert nats.dtype == jnp.float32
    np.testing.assert_allclose(nats, math.log(259), rtol=1e-6)


def test_cross_entropy_of_huge_logits_is_finite_and_exact():
    logits = jnp.array([[[1e4, 0.0], [0.0, 1e4], [1e4, 1e4]]])
    nats = losses.cross_entropy(logits, jnp.zeros((1, 3), jnp.int32))
    np.testing.assert_allclose(nats, [[0, 1e4, math.log(2)]], rtol=1e-6)


def test_the_logits_of_all_tokens_never_exist_at_once():
    length, vocab, chunk_length = 4096, 1024, 64
    shapes = [(EMBED, vocab), (vocab,), (1, length, EMBED)]
    kernel, bias, hidden = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    targets, weights = jnp.zeros((1, length), jnp.int32), jnp.ones((1, length))
    gradient = jax.jit(jax.grad(lambda *x: _chunked(chunk_length, targets, weights)(*x)[0], argnums=(0, 1)))
    compiled = gradient.lower((kernel, bias), hidden).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < length * vocab * 4 / 8


@pytest.mark.parametrize("target", [-100, -1, VOCAB])
def test_a_target_that_does_not_exist_is_nan_unless_its_weight_is_zero(target):
    params, hidden, targets, weights = _inputs(7, "float32")
    weights = weights.at[1, 2].set(0)
    wrong = targets.at[1, 2].set(target)
    loss = jax.jit(jax.value_and_grad(lambda h, t, w: _chunked(4, t, w)(params, h)[0]))
    right, left_out = loss(hidden, targets, weights), loss(hidden, wrong, weights)
    jax.tree.map(np.testing.assert_array_equal, left_out, right)
    nats, gradient = loss(hidden, wrong, weights.at[1, 2].set(0.5))
    assert np.isnan(nats)
    assert np.isnan(gradient[1, 2]).all()
    sums = losses.chunked_scores(_logits, 4, params, hidden, wrong, weights.at[1, 2].set(0.5))
    assert np.isnan(sums).all()


def test_targets_and_weights_of_another_shape_are_refused():
    losses.check_targets(jnp.zeros((2, 3)), None, (2, 3))
    with pytest.raises(ValueError, match=r"targets of shape \(4, 1\) must have the shape \(4,\)"):
        losses.check_targets(jnp.zeros((4, 1)), None, (4,))
    with pytest.raises(ValueError, match=r"weights of shape \(1, 8\) must have the shape \(4, 8\)"):
        losses.check_targets(jnp.zeros((4, 8)), jnp.ones((1, 8)), (4, 8))


@pytest.mark.parametrize("chunk_length", [None, 256])
def test_scores_of_bfloat16_weights_count_every_target(chunk_length):
    ones, logits = jnp.ones((1, 1021), jnp.bfloat16), jnp.zeros((1, 1021, VOCAB))
    targets = jnp.zeros((1, 1021), jnp.int32)
    sums = losses.chunked_scores(lambda params, x, row, fixed: x, chunk_length, (), logits, targets, ones)
    references.assert_close(sums, (jnp.float32(1021 * math.log(VOCAB)), jnp.float32(1021), jnp.float32(1021)), 1e-5)
