"""Hessian-vector products in float64, in a process of its own: a compiler that aborts would take the tests with it."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import dataclasses

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from tests import small_models as models

SIZES = {"max_length": 64, "num_layers": 1, "num_hashes": 1, "mlp_chunk_length": None, "loss_chunk_length": None}
TYPES = {"dtype": "float64", "param_dtype": "float64"}
config = dataclasses.replace(models.SMALL, attention_pattern=("lsh",), **SIZES, **TYPES)
flat, restore = ravel_pytree(models.init(config))
direction = jax.random.normal(jax.random.key(1), flat.shape, jnp.float64)
loss = models.mean_loss(config)


def gradient(flat):
    return jax.grad(lambda flat: loss(restore(flat), models.tokens(config), jax.random.key(0)))(flat)


@jax.jit
def gradient_and_product(flat):
    along, transpose = jax.vjp(gradient, flat)
    return along, transpose(direction)[0]


step = 1e-6
(after, _), (before, _) = (gradient_and_product(flat + sign * step * direction) for sign in (1, -1))
measured, product = (after - before) / (2 * step), gradient_and_product(flat)[1]
error = jnp.abs(product - measured).max() / jnp.abs(measured).max()
assert error < 1e-6, error
print("right")
"""


@pytest.mark.slow
def test_a_hessian_vector_product_through_lsh_equals_the_difference_of_gradients():
    variables = os.environ | {"JAX_ENABLE_X64": "1", "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    ended = subprocess.run([sys.executable, "-c", PROGRAM], env=variables, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "right\n"), ended.stderr[-3000:]
