"""Memory and program size of a training step do not grow with the depth."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from reformer import ReformerConfig, ReformerLM
from tests import small_models as models

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

ACTIVATION_BYTES = 4 * CONFIG.max_length * CONFIG.embed_dim


def compile_step(config):
    """Returns the scratch bytes of loss and gradient, less the carried permutations, and the program's lines."""
    tokens = jax.ShapeDtypeStruct((1, config.max_length), jnp.int32)
    params = jax.eval_shape(ReformerLM(config).init, jax.random.key(0), tokens)["params"]
    step = jax.jit(jax.value_and_grad(models.mean_loss(config)))
    lowered = step.lower(params, tokens, jax.eval_shape(lambda: jax.random.key(0)))
    # Fused attention of XLA:CPU hides its scratch from the count.
    compiled = lowered.compile(compiler_options={"xla_cpu_experimental_ynn_fusion_type": ""})
    permutations = 4 * config.num_lsh_layers * config.num_hashes * config.num_heads * config.max_length
    return compiled.memory_analysis().temp_size_in_bytes - permutations, len(compiled.as_text().splitlines())


@pytest.mark.slow
def test_scratch_and_compiled_program_do_not_grow_with_the_depth():
    bytes_4, lines_4 = compile_step(CONFIG)
    bytes_48, lines_48 = compile_step(dataclasses.replace(CONFIG, num_layers=48))
    assert bytes_48 - bytes_4 < 0.5 * ACTIVATION_BYTES
    assert lines_48 <= 1.02 * lines_4


@pytest.mark.slow
def test_without_reversibility_a_layer_stores_its_inputs_and_products():
    config = dataclasses.replace(CONFIG, reversible=False, mlp_chunk_length=None)
    (bytes_4, _), (bytes_12, _) = (compile_step(dataclasses.replace(config, num_layers=depth)) for depth in (4, 12))
    # Both streams; the hidden units, twice as wide; on average 1.75 for query, key, value and what was attended.
    assert 4 < (bytes_12 - bytes_4) / 8 / ACTIVATION_BYTES < 6
