"""The update: accumulation, randomness, metrics, and devices."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer import sharding
from reformer.data import load
from reformer.models.language import ReformerLM
from reformer.training import batches, settings, step
from reformer.training.step import make_programs


def batch_of(config, mesh):
    config.data.length = 16
    return next(batches.training_batches(config, load.load(config.data, 32), mesh))


def run_steps(config, num_steps, devices, **mesh_sizes):
    """Returns the parameters and the metrics of each step, on one batch."""
    mesh, all_metrics = sharding.make_mesh(**mesh_sizes, devices=devices), []
    with jax.set_mesh(mesh):
        programs = make_programs(config, mesh)
        state, batch = programs.init(), batches.to_mesh(batch_of(config, mesh), mesh)
        for _ in range(num_steps):
            state, metrics = programs.train_step(state, batch)
            all_metrics.append(jax.device_get(metrics))
    return jax.device_get(state.params), all_metrics


@pytest.fixture(scope="module")
def trained(make_config):
    """Parameters and metrics of 30 steps on one batch, without dropout, on one device."""
    config = make_config()
    config.model.dropout_rate = 0.0
    config.training.num_steps = 30
    return config, *run_steps(config, 30, jax.devices()[:1])


def assert_trees_close(first, second, rtol):
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=1e-5)


@pytest.mark.slow
def test_accumulation_equals_one_large_batch(config):
    config.model.update(dropout_rate=0.0, attention_pattern=("lsh",), num_layers=1)
    batch, model = (
        batch_of(config, sharding.make_mesh(devices=jax.devices()[:1])),
        ReformerLM(settings.model_config(config)),
    )
    tokens = jnp.asarray(batch["tokens"])
    params = model.init({"params": jax.random.key(0), "hash": jax.random.key(1)}, tokens)["params"]
    batch["weights"] = np.linspace(0, 1, tokens.size, dtype=np.float32).reshape(tokens.shape)
    rngs = step.step_rngs(0, jnp.array(3))
    accumulate = jax.jit(functools.partial(step.accumulate_gradients, model), static_argnums=3)
    large = accumulate(params, batch, rngs, 1)
    small = accumulate(params, batch, rngs, 4)
    assert_trees_close(small, large, rtol=1e-4)


@pytest.mark.slow
def test_the_first_loss_is_near_that_of_a_uniform_guess(trained):
    first = trained[2][0]
    assert first["weight"] == 8 * 16
    assert abs(first["nats"] / first["weight"] - math.log(259)) < 1.5


def test_metrics_hold_the_learning_rate_and_both_norms(trained):
    first = trained[2][0]
    np.testing.assert_allclose(first["learning_rate"], 0.05 / 2, rtol=1e-5)
    assert first["gradient_norm"] > 0 and first["update_norm"] > 0


def test_the_loss_of_one_batch_falls(trained):
    metrics = trained[2]
    assert metrics[-1]["nats"] < 0.7 * metrics[0]["nats"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_parameters_bit_for_bit(trained):
    config, params, _ = trained
    jax.tree.map(np.testing.assert_array_equal, params, run_steps(config, 30, jax.devices()[:1])[0])


def test_seeds_and_steps_and_purposes_have_different_keys():
    keys = [
        tuple(jax.random.key_data(rng).tolist())
        for seed in range(2)
        for number in range(3)
        for rng in step.step_rngs(seed, jnp.array(number)).values()
    ]
    assert len(set(keys)) == 12


@pytest.mark.slow
def test_eight_devices_equal_one(trained):
    config, _, one = trained
    _, eight = run_steps(config, 2, jax.devices(), data=2, fsdp=2, tensor=2)
    for single, sharded in zip(one[:2], eight, strict=True):
        for name in single:
            np.testing.assert_allclose(sharded[name], single[name], rtol=1e-4)
