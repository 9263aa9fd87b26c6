"""The reversible stack has the gradient of the same function under ordinary autodiff."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer import ReformerConfig
from reformer.layers.attention import Fixed
from reformer.layers.attention_residual import attention_residual
from tests import small_models as models

DEEP = ReformerConfig(
    max_length=256,
    num_layers=6,
    embed_dim=64,
    mlp_dim=128,
    num_heads=2,
    head_dim=16,
    num_hashes=3,
    lsh_chunk_length=32,
    local_chunk_length=32,
    mlp_chunk_length=128,
    dropout_rate=0.1,
)


def assert_gradients_equal_ordinary_autodiff(changes):
    config = dataclasses.replace(models.SMALL, dropout_rate=0.1, dtype="float64", param_dtype="float64", **changes)
    assert models.worst_gradient_error(config, num_keys=1, batch=2) < 1e-10


def test_reversible_gradients_equal_ordinary_autodiff_with_dropout(x64):
    rules = {"lsh_within_bucket": True, "lsh_correct_duplicates": True}
    assert_gradients_equal_ordinary_autodiff({"attention_pattern": ("lsh",), "num_hashes": 3} | rules)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"mlp_chunk_length": 20, "loss_chunk_length": 20},  # the last chunk is shorter
        {"attention_pattern": ("full", "lsh"), "share_query_key": True, "position_embedding": "sinusoidal"},
        {"attention_pattern": ("local",), "activation": "silu", "causal": False, "position_embedding": "learned"},
        {"semantics": "huggingface", "causal": False, "num_hashes": 1, "mlp_chunk_length": None},
    ],
)
def test_reversible_gradients_of_other_models_equal_ordinary_autodiff_with_dropout(x64, changes):
    assert_gradients_equal_ordinary_autodiff(changes)


@pytest.mark.slow
def test_float32_gradients_survive_rebuilt_activations():
    # With ReLU it is up to 1e-3: a hidden unit near zero may change sign on a rebuilt input.
    assert models.worst_gradient_error(DEEP, num_keys=2) < 3e-5


@pytest.mark.slow
def test_bfloat16_gradients_survive_rebuilt_activations():
    config = dataclasses.replace(DEEP, num_layers=12, dtype="bfloat16")
    assert models.worst_gradient_error(config, num_keys=2) < 1e-2


@pytest.mark.slow
def test_the_reverse_sweep_keeps_the_sort_of_a_perturbed_input():
    config = dataclasses.replace(models.SMALL, num_buckets=4)
    residual = attention_residual(config, "lsh")
    params = jax.tree.map(lambda x: x[0], models.init(config)["stack"]["layer_1"]["attention"])
    x = jax.random.normal(jax.random.key(0), (1, 64, config.embed_dim))
    rotations = jax.random.normal(jax.random.key(1), (config.num_heads, config.head_dim, config.num_hashes, 2))
    fixed = Fixed(None, rotations, None)
    zeros = jnp.zeros_like(x)
    _, order = residual.apply(params, x, zeros, (), fixed)
    other = jax.random.normal(jax.random.key(2), x.shape)
    value, resorted = residual.apply(params, other, zeros, (), fixed)
    with_its_own = -residual.undo(params, other, zeros, (), fixed, resorted, zeros, zeros)[0]
    with_the_kept = -residual.undo(params, other, zeros, (), fixed, order, zeros, zeros)[0]
    np.testing.assert_allclose(with_its_own, value, rtol=0, atol=1e-5)
    assert np.abs(with_the_kept - value).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "local", "lsh"])
def test_the_value_of_the_reverse_sweep_equals_that_of_the_forward_pass(x64, kind):
    config = dataclasses.replace(models.SMALL, dropout_rate=0.2, dtype="float64", param_dtype="float64", num_buckets=4)
    residual = attention_residual(dataclasses.replace(config, attention_pattern=(kind,)), kind)
    params = models.init(dataclasses.replace(config, attention_pattern=(kind,)))["stack"]["layer_0"]["attention"]
    params = jax.tree.map(lambda x: x[0], params)
    x, cotangent = jax.random.normal(jax.random.key(0), (2, 2, 50, config.embed_dim))
    rotations = jax.random.normal(jax.random.key(1), (config.num_heads, config.head_dim, config.num_hashes, 2))
    fixed = Fixed(None, rotations, jax.numpy.uint32(7))
    added, saved = residual.apply(params, x, cotangent, (), fixed)
    again, *_ = residual.undo(params, x, added, (), fixed, saved, cotangent, cotangent)
    np.testing.assert_allclose(again, cotangent, rtol=0, atol=1e-12)
