"""Eight simulated devices compute what one computes, and attention never gathers the sequence."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer import ReformerLM, sharding
from tests import models

# float64: a rounding difference in float32 could flip a bucket.
CONFIG = dataclasses.replace(
    models.SMALL, max_length=64, num_layers=2, dropout_rate=0.1, dtype="float64", param_dtype="float64"
)


def loss_and_gradients(mesh, config=CONFIG):
    params, tokens = models.init(config), models.tokens(config, batch=8)
    with jax.set_mesh(mesh):
        params = jax.device_put(params, sharding.parameter_shardings(params, mesh))
        tokens = jax.device_put(tokens, sharding.batch_sharding(mesh))
        return jax.jit(jax.value_and_grad(models.mean_loss(config)))(params, tokens, jax.random.key(0))


@pytest.mark.parametrize("sizes", [(4, 1, 2), (1, 8, 1), (2, 2, 2)])
def test_eight_devices_equal_one(x64, sizes):
    one = loss_and_gradients(sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1]))
    eight = loss_and_gradients(sharding.make_mesh(*sizes))
    for found, expected in zip(jax.tree.leaves(eight), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_parameters_are_really_sharded():
    mesh = sharding.make_mesh(2, 2, 2)
    params = models.init(models.SMALL)
    placed = jax.device_put(params, sharding.parameter_shardings(params, mesh))
    kernel = placed["stack"]["layer_0"]["feed_forward"]["hidden"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 16 // 2, 24 // 2)


def test_attention_moves_nothing_between_devices(optimizations):
    mesh = sharding.make_mesh(4, 1, 2)
    config = dataclasses.replace(models.SMALL, max_length=64, num_layers=2)
    params = jax.eval_shape(ReformerLM(config).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    places = sharding.parameter_shardings(params, mesh)
    params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, places)
    tokens = jax.ShapeDtypeStruct((8, 64), jnp.int32, sharding=sharding.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(models.mean_loss(config)))
        text = step.lower(params, tokens, jax.random.key(0)).compile().as_text()
    gathered = re.findall(r"= (\w+\[[\d,]*\])[^=]* all-gather\(", text)
    moved = re.findall(r"= (\w+\[[\d,]*\])[^=]* all-to-all\(", text)
    has_length = [shape for shape in gathered + moved if "64" in shape]
    assert has_length == []


def test_an_unknown_axis_name_fails():
    with pytest.raises(ValueError, match="Unknown logical axis 'act_lenght'"):
        sharding.constrain(jnp.zeros((2, 2)), "act_batch", "act_lenght")


def test_a_parameter_without_axes_fails():
    with pytest.raises(ValueError, match="params/new/kernel has no logical axes"):
        sharding.parameter_shardings({"params": {"new": {"kernel": jnp.zeros(2)}}}, sharding.make_mesh())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sharding.make_mesh(3, 1, 1), "do not fit 8 devices"),
        (lambda: sharding.make_mesh(-1, -1, 1), "at most one may be -1"),
        (lambda: sharding.validate(models.SMALL, 6, {"data": 4, "fsdp": 1, "tensor": 1}), "batch_size=6 does not"),
        (lambda: sharding.validate(models.SMALL, 8, {"data": 1, "fsdp": 1, "tensor": 4}), "num_heads=2 does not"),
    ],
)
def test_indivisible_sizes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
