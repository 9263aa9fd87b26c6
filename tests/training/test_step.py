"""The update: accumulation, randomness, metrics, and devices."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer import sharding
from reformer.data import text
from reformer.model import ReformerLM
from reformer.training import batches, settings, step
from reformer.training.programs import make_programs


def batch_of(config):
    config.data.length = 16
    return next(batches.training_batches(config, text.load(config.data)))


def run_steps(config, num_steps=2, devices=None, **mesh_sizes):
    """Returns the parameters and the last metrics."""
    mesh = sharding.make_mesh(**mesh_sizes, devices=devices or jax.devices()[:1])
    with jax.set_mesh(mesh):
        programs = make_programs(config, settings.model_config(config), mesh)
        state, batch = programs.init(), batches.to_mesh(batch_of(config), mesh)
        for _ in range(num_steps):
            state, metrics = programs.train_step(state, batch)
    return jax.device_get(state.params), jax.device_get(metrics)


def assert_trees_close(first, second, rtol):
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=1e-5)


def test_accumulation_equals_one_large_batch(config):
    config.model.dropout_rate = 0.0
    batch, model = batch_of(config), ReformerLM(settings.model_config(config))
    tokens = jnp.asarray(batch["tokens"])
    params = model.init({"params": jax.random.key(0), "hash": jax.random.key(1)}, tokens)["params"]
    batch["weights"] = np.linspace(0, 1, tokens.size, dtype=np.float32).reshape(tokens.shape)
    rngs = step.step_rngs(0, jnp.array(3))
    accumulate = jax.jit(functools.partial(step.accumulate_gradients, model), static_argnums=3)
    large = accumulate(params, batch, rngs, 1)
    small = accumulate(params, batch, rngs, 4)
    assert_trees_close(small, large, rtol=1e-4)


def test_the_first_loss_is_near_that_of_a_uniform_guess(config):
    _, metrics = run_steps(config, num_steps=1)
    assert metrics["weight"] == 8 * 16
    assert abs(metrics["nats"] / metrics["weight"] - math.log(config.model.vocab_size)) < 1.5


def test_metrics_hold_the_learning_rate_and_both_norms(config):
    _, metrics = run_steps(config, num_steps=1)
    np.testing.assert_allclose(metrics["learning_rate"], 0.05 / 2, rtol=1e-5)
    assert metrics["gradient_norm"] > 0 and metrics["update_norm"] > 0


def test_the_same_seed_gives_the_same_parameters_and_another_does_not(config):
    first, again = run_steps(config)[0], run_steps(config)[0]
    jax.tree.map(np.testing.assert_array_equal, first, again)
    config.seed = 1
    other = run_steps(config)[0]
    assert any((one != two).any() for one, two in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True))


def test_keys_differ_by_step_and_by_purpose():
    keys = [
        jax.random.key_data(rng).tolist()
        for number in range(3)
        for rng in step.step_rngs(0, jnp.array(number)).values()
    ]
    assert len({tuple(key) for key in keys}) == 6


@pytest.mark.parametrize("mesh_sizes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_eight_devices_equal_one(config, mesh_sizes):
    config.model.dropout_rate = 0.0
    one_params, one_metrics = run_steps(config)
    params, metrics = run_steps(config, devices=jax.devices(), **mesh_sizes)
    np.testing.assert_allclose(metrics["nats"], one_metrics["nats"], rtol=1e-5)
    assert_trees_close(params, one_params, rtol=1e-4)


def test_a_loss_falls(config):
    config.training.num_steps = 60
    _, first = run_steps(config, num_steps=1)
    _, last = run_steps(config, num_steps=60)
    assert last["nats"] < 0.75 * first["nats"]
