"""Training on a mesh of eight devices equals training on one, and each holds its part of the state."""

import jax
import numpy as np
import pytest

from reformer import sharding
from reformer.data import load
from reformer.training import batches
from reformer.training.state import shardings_of
from reformer.training.step import make_programs
from tests.test_sharding import MESHES


def wide_config(config):
    """Local and LSH attention with four heads; float64, in which no bucket flips by rounding."""
    config.model.update(num_layers=2, attention_pattern=("local", "lsh"), num_heads=4, head_dim=4)
    config.model.update(dtype="float64", param_dtype="float64")
    config.training.num_steps = 20
    return config


def losses(config, mesh, start=None):
    """The losses of all steps from a state (None = the initial one), each on its own batch; and the state before."""
    with jax.set_mesh(mesh):
        programs = make_programs(config, mesh)
        start = programs.init() if start is None else start
        state = jax.device_put(jax.tree.map(np.asarray, start), shardings_of(programs.target))
        iterator = batches.training_batches(config, load.load(config.data, 32), mesh)
        found = []
        for _ in range(config.training.num_steps):
            state, metrics = programs.train_step(state, batches.to_mesh(next(iterator), mesh))
            found.append(float(metrics["nats"] / metrics["weight"]))
    return found, start


@pytest.fixture(scope="module")
def of_one_device(make_config):
    with jax.enable_x64(True):
        found, start = losses(wide_config(make_config()), sharding.make_mesh(devices=jax.devices()[:1]))
    assert found[-1] < found[0] - 0.5, "it should learn something"
    return found, start


@pytest.mark.slow
# Of a split length test_sharding.py compares the gradients.
@pytest.mark.parametrize("name", [name for name in MESHES if "length" not in name])
def test_twenty_losses_on_every_mesh_equal_those_on_one_device(x64, of_one_device, config, name):
    expected, start = of_one_device
    of_eight, _ = losses(wide_config(config), sharding.make_mesh(**MESHES[name]), start)
    np.testing.assert_allclose(of_eight, expected, rtol=0, atol=1e-5)


def bytes_of_a_device(tree):
    shards = (leaf.addressable_shards[0].data for leaf in jax.tree.leaves(tree))
    return sum(shard.nbytes for shard in shards)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adafactor", "adamw"])
# Embeddings and head, a third of these parameters, are split over fsdp alone.
@pytest.mark.parametrize(("sizes", "most"), [({"fsdp": 8}, 0.2), ({"fsdp": 2, "tensor": 4}, 0.3), ({}, 1.0)])
def test_a_device_holds_its_part_of_parameters_and_optimizer_state(config, name, sizes, most):
    config.model.update(num_layers=2, num_heads=4, embed_dim=64, mlp_dim=256, head_dim=16)
    config.optimizer.name = name
    mesh = sharding.make_mesh(**sizes)
    with jax.set_mesh(mesh):
        state = make_programs(config, mesh).init()
    of_params, of_optimizer = bytes_of_a_device(state.params), bytes_of_a_device(state.optimizer)
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    print(f"{name} on {sizes}: {of_params:,} and {of_optimizer:,} bytes of a device, {whole:,} bytes of parameters")
    assert of_params <= most * whole
    if name == "adamw":
        assert of_optimizer <= 2 * most * whole + 100
