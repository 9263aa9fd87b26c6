"""Schedules against hand-computed values; the optimizers treat stacked layers as separate parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from reformer.training.optimizer import decay_mask, make_optimizer, make_schedule


def settings(**changes):
    group = base.get_config().optimizer
    group.update(changes)
    return group


def constant(rate):
    return make_schedule(settings(schedule="constant", learning_rate=rate, warmup_steps=0), 1)


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("constant", 1, 0.5),  # 2 * 1 / 4
        ("constant", 4, 2.0),
        ("constant", 12, 2.0),
        ("rsqrt", 1, 0.25),  # 2 * (1 / 4) / sqrt(4)
        ("rsqrt", 4, 1.0),  # 2 / sqrt(4)
        ("rsqrt", 16, 0.5),  # 2 / sqrt(16)
        ("cosine", 2, 1.0),
        ("cosine", 4, 2.0),
        ("cosine", 8, 1.0),  # half way from 4 to 12
        ("cosine", 12, 0.0),
        ("cosine", 20, 0.0),
    ],
)
def test_schedules_have_their_documented_values(schedule, step, expected):
    rate = make_schedule(settings(schedule=schedule, learning_rate=2.0, warmup_steps=4), num_steps=12)
    np.testing.assert_allclose(rate(step - 1), expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def params():
    rngs = iter(jax.random.split(jax.random.key(0), 6))
    return {
        "embeddings": {"token": jax.random.normal(next(rngs), (64, 32))},
        "stack": {
            "layer_0": {
                "kernel": jax.random.normal(next(rngs), (3, 40, 48)) * jnp.array([1.0, 10.0, 100.0])[:, None, None],
                "bias": jax.random.normal(next(rngs), (3, 48)),
                "norm": {"scale": jnp.ones((3, 40))},
            }
        },
        "head": {"kernel": jax.random.normal(next(rngs), (40, 64)), "bias": jnp.zeros(64)},
    }


def first_update(optimizer, gradients, params):
    """The first update and the state after it, by one program."""
    return jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p))(gradients, params)


def test_kernels_and_embeddings_decay_and_nothing_else(params):
    layer = {"kernel": True, "bias": False, "norm": {"scale": False}}
    expected = {
        "embeddings": {"token": True},
        "stack": {"layer_0": layer},
        "head": {"kernel": True, "bias": False},
    }
    assert decay_mask(params) == expected


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_weight_decay_is_the_rate_times_the_parameter(params, name):
    optimizer = make_optimizer(settings(name=name, weight_decay=0.25), constant(0.5))
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = first_update(optimizer, zeros, params)
    expected = jax.tree.map(lambda leaf, decays: -0.125 * leaf * decays, params, decay_mask(params))
    for update, wanted in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(update, wanted, rtol=1e-5)


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_stacked_layers_are_updated_as_separate_ones(params, name):
    optimizer = make_optimizer(settings(name=name, weight_decay=0.1), constant(0.1))
    gradients = jax.tree.map(lambda leaf: jnp.sin(7 * leaf), params)
    stacked, _ = first_update(optimizer, gradients, params)
    for layer in range(3):
        single = {**params, "stack": jax.tree.map(lambda leaf: leaf[layer : layer + 1], params["stack"])}  # noqa: B023
        single_gradients = {
            **gradients,
            "stack": jax.tree.map(lambda leaf: leaf[layer : layer + 1], gradients["stack"]),  # noqa: B023
        }
        updates, _ = first_update(optimizer, single_gradients, single)
        pairs = zip(jax.tree.leaves(updates["stack"]), jax.tree.leaves(stacked["stack"]), strict=True)
        for update, whole in pairs:
            np.testing.assert_allclose(update[0], whole[layer], rtol=1e-5, atol=1e-6)


def test_adafactor_equals_that_of_optax_where_nothing_is_stacked(params):
    reference = optax.adafactor(0.1, min_dim_size_to_factor=32)
    optimizer = make_optimizer(settings(), constant(0.1))
    update_reference, update_ours = jax.jit(reference.update), jax.jit(optimizer.update)
    states = reference.init(params), optimizer.init(params)
    for step in range(3):
        gradients = jax.tree.map(lambda leaf: jnp.cos(5 * leaf + step), params)  # noqa: B023
        expected, first = update_reference(gradients, states[0], params)
        updates, second = update_ours(gradients, states[1], params)
        states = first, second
        for name in ("embeddings", "head"):
            for update, wanted in zip(jax.tree.leaves(updates[name]), jax.tree.leaves(expected[name]), strict=True):
                np.testing.assert_allclose(update, wanted, rtol=1e-5, atol=1e-7)


def test_adafactor_stores_rows_and_columns_instead_of_matrices(params):
    state = make_optimizer(settings(), constant(0.1)).init(params)
    assert max(leaf.size for leaf in jax.tree.leaves(state)) == params["stack"]["layer_0"]["bias"].size


def test_gradients_are_clipped_by_their_global_norm(params):
    optimizer = make_optimizer(settings(name="adamw", clip_norm=1.0, b1=0.0, b2=0.0, epsilon=1e6), constant(1.0))
    gradients = jax.tree.map(lambda leaf: 100 * jnp.ones_like(leaf), params)
    updates, _ = first_update(optimizer, gradients, params)
    np.testing.assert_allclose(1e6 * optax.tree.norm(updates), 1.0, rtol=1e-4)
