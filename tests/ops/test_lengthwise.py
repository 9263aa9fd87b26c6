"""The automatic size of the chunks of the length."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer import ReformerConfig, ReformerLM, sharding
from reformer.ops.lengthwise import Automatic, map_length
from tests import small_models as models


def _sizes(chunk_length, batch: int, length: int) -> set[tuple[int, ...]]:
    """The shapes of all chunks that a function sees."""
    seen = set()

    def look(common, x):
        seen.add(x.shape)
        return x

    jax.eval_shape(lambda x: map_length(look, None, x, chunk_length), jnp.zeros((batch, length)))
    return seen


@pytest.mark.parametrize(
    "platform,width,batch,length,tokens",
    [
        ("cpu", 512, 1, 4096, 4096),
        ("cpu", 512, 1, 65_536, 4096),
        ("cpu", 512, 4, 65_536, 1024),
        ("cpu", 512, 1, 9000, 3000),  # not 4096, 4096 and 808
        ("cuda", 4096, 1, 65_536, 65_536),
        ("cuda", 512, 1, 65_536, 65_536),
        ("tpu", 4096, 1, 2**20, 65_536),
        ("cuda", 4096, 8, 65_536, 8192),
        ("tpu", 32_768, 1, 65_536, 8192),
        ("cuda", 2**30, 8, 100, 1),
    ],
)
def test_the_machine_and_the_width_choose(platform, width, batch, length, tokens):
    with sharding.compiling_for(platform):
        assert Automatic(width).tokens(batch, length) == tokens
        assert {shape[1] for shape in _sizes(Automatic(width), batch, length)} == {tokens}


@pytest.mark.parametrize("sizes,split_length,tokens", [((4, 2, 1), False, 1024), ((2, 1, 4), True, 256)])
def test_the_part_of_a_device_counts(sizes, split_length, tokens):
    mesh = sharding.make_mesh(*sizes, split_length=split_length)
    with jax.set_mesh(mesh):
        assert tokens in {shape[1] for shape in _sizes(Automatic(1024), 16, 2048)}


@pytest.mark.slow
def test_automatic_chunks_of_a_model_give_what_the_whole_gives(monkeypatch):
    monkeypatch.setattr("reformer.ops.lengthwise._NUMBERS_AT_ONCE_CPU", 512)
    config = dataclasses.replace(models.SMALL, mlp_chunk_length=None, loss_chunk_length=None, num_layers=2)
    whole = dataclasses.replace(config, mlp_chunk_length=config.max_length, loss_chunk_length=config.max_length)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, config.vocab_size, (2, config.max_length)))
    params = ReformerLM(config).init(jax.random.key(0), tokens)["params"]

    def losses(config):
        def loss(params):
            rngs = {"hash": jax.random.key(1), "dropout": jax.random.key(2)}
            options = {"deterministic": False, "rngs": rngs, "method": "loss"}
            return ReformerLM(config).apply({"params": params}, tokens, tokens, **options)[0]

        return jax.make_jaxpr(loss)(params), jax.jit(jax.value_and_grad(loss))(params)

    (program, found), (whole_program, expected) = losses(config), losses(whole)
    assert str(program).count("scan[") > str(whole_program).count("scan[")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5), found, expected)


@pytest.mark.slow
def test_ordinary_autodiff_takes_all_at_once():
    config = ReformerConfig(max_length=2**16, reversible=False, merge_streams="average")
    tokens = jax.ShapeDtypeStruct((1, 2**16), jnp.int32)
    params = jax.eval_shape(ReformerLM(config).init, jax.random.key(0), tokens)["params"]

    def count(config):
        step = jax.jit(ReformerLM(config).apply).lower({"params": params}, tokens, rngs={"hash": jax.random.key(0)})
        return step.as_text().count("stablehlo.while")

    whole = dataclasses.replace(config, mlp_chunk_length=2**16)
    assert count(config) == count(whole) < count(dataclasses.replace(config, mlp_chunk_length=2**12))
