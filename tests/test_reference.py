"""The model computes what the reference says, and so does its reverse sweep."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer import ReformerLM, reference
from reformer.layers import rotations as all_rotations
from reformer.layers.kinds import num_buckets
from tests import references
from tests import small_models as models

CONFIG = dataclasses.replace(models.SMALL, max_length=40, num_layers=2, dtype="float64", param_dtype="float64")
TOLERANCE = references.GRADIENT_TOLERANCE["float64"]


def check(**changes):
    """Assert that logits, loss and all gradients of the reversible model are those of the reference."""
    config = dataclasses.replace(CONFIG, **changes)
    params, tokens = models.init(config, seed=1), models.tokens(config)
    params = jax.tree.map(lambda x: x + 0.1 * np.random.default_rng(x.size).standard_normal(x.shape), params)
    targets = models.tokens(config, seed=1)
    holes = np.random.default_rng(2).random(tokens.shape) < 0.8
    mask = jnp.asarray(holes & (np.arange(40)[None] < np.array([[40], [31]])))
    rotations = list(all_rotations.draw(config, 40, jax.random.key(3))) if config.num_lsh_layers else []

    def loss_and_logits(loss, logits):
        def run(params):
            nats, weight = loss(params, tokens, targets, mask=mask, rotations=rotations)
            return nats, (weight, logits(params, tokens, mask=mask, rotations=rotations))

        return jax.jit(jax.value_and_grad(run, has_aux=True))

    def apply(params, *args, **kwargs):
        return ReformerLM(config).apply({"params": params}, *args, **kwargs)

    model = loss_and_logits(functools.partial(apply, method="loss"), apply)
    plain = loss_and_logits(*(functools.partial(f, config) for f in (reference.compute_loss, reference.compute_logits)))
    references.assert_close(model(params), plain(params), TOLERANCE)


def test_a_model_of_all_kinds_equals_the_reference(x64):
    check(attention_pattern=("local", "lsh"))


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pattern", [("full",), ("local",), ("lsh",), ("full", "lsh")])
def test_models_of_every_kind_equal_the_reference(x64, pattern, causal):
    check(attention_pattern=pattern, causal=causal, lsh_num_chunks_after=1, local_num_chunks_after=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"look_ahead": False},
        {"look_ahead": False, "share_query_key": True},
        {"look_ahead": True, "share_query_key": False},
        {"num_hashes": 3, "lsh_correct_duplicates": True, "lsh_within_bucket": True, "num_buckets": (2, 4)},
        {"num_hashes": 1, "position_embedding": "learned", "activation": "relu", "num_buckets": 4},
        {"position_embedding": "sinusoidal", "activation": "silu", "merge_streams": "average"},
        {"num_layers": 4, "activation": "gelu_tanh", "causal": False, "share_query_key": True},
    ],
)
def test_models_with_other_options_equal_the_reference(x64, changes):
    check(**{"attention_pattern": ("local", "lsh"), **changes})


@pytest.mark.parametrize("length", [1, 8, 9, 511, 512, 513, 65_536])
def test_the_number_of_buckets_is_that_of_the_model(length):
    assert reference.choose_num_buckets(CONFIG, length) == num_buckets(length, CONFIG)
