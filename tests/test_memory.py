"""Memory and compile time of a training step do not grow with the depth."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import pytest

from reformer import ReformerConfig, ReformerLM
from tests import models

CONFIG = ReformerConfig(
    vocab_size=320,
    max_length=4096,
    num_layers=4,
    embed_dim=256,
    mlp_dim=512,
    num_heads=2,
    head_dim=64,
    num_hashes=1,
    mlp_chunk_length=1024,
    loss_chunk_length=1024,
)


def compile_step(config):
    """Returns the scratch bytes of loss and gradient, less the carried permutations, and the seconds to compile."""
    tokens = jax.ShapeDtypeStruct((1, config.max_length), jnp.int32)
    params = jax.eval_shape(ReformerLM(config).init, jax.random.key(0), tokens)["params"]
    step = jax.jit(jax.value_and_grad(models.mean_loss(config)))
    lowered = step.lower(params, tokens, jax.eval_shape(lambda: jax.random.key(0)))
    started = time.perf_counter()
    # Fused attention of XLA:CPU hides its scratch from the count.
    compiled = lowered.compile(compiler_options={"xla_cpu_experimental_ynn_fusion_type": ""})
    seconds = time.perf_counter() - started
    permutations = 4 * config.num_lsh_layers * config.num_hashes * config.num_heads * config.max_length
    return compiled.memory_analysis().temp_size_in_bytes - permutations, seconds


@pytest.mark.slow
def test_scratch_and_compile_time_do_not_grow_with_the_depth(optimizations):
    bytes_4, seconds_4 = compile_step(CONFIG)
    for depth in (12, 48):
        found, seconds = compile_step(dataclasses.replace(CONFIG, num_layers=depth))
        assert found <= 1.02 * bytes_4
        assert seconds <= 1.4 * seconds_4 + 2  # the machine is shared
