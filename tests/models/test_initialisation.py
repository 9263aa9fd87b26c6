"""What a model gives while it is initialised, by itself or inside another module, is its own value."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer import (
    QuestionAnswerer,
    ReformerEncoder,
    ReformerEncoderDecoder,
    ReformerLM,
    ReformerViT,
    SequenceClassifier,
    TokenClassifier,
)
from reformer.models.electra import ReformerElectra
from tests import small_models as models

CONFIG = dataclasses.replace(
    models.TINY, num_layers=1, attention_pattern=("lsh",), num_hashes=1, loss_chunk_length=None
)
FULL = dataclasses.replace(CONFIG, attention_pattern=("full",))
BOTH_WAYS = dataclasses.replace(FULL, causal=False)
TOKENS = models.tokens(CONFIG, 2, 16)
LABELS = jnp.array([0, 2])
IMAGES = jnp.linspace(-1, 1, 2 * 8 * 8 * 3).reshape(2, 8, 8, 3)
RNGS = {name: jax.random.key(i) for i, name in enumerate(("params", "hash", "dropout"))}

# Of each model a method and what it takes.
CALLS: dict[str, tuple[nn.Module, str, dict[str, Any]]] = {
    "language": (ReformerLM(CONFIG), "__call__", {"tokens": TOKENS}),
    "language loss": (ReformerLM(CONFIG), "loss", {"tokens": TOKENS, "targets": TOKENS}),
    "encoder": (ReformerEncoder(BOTH_WAYS), "__call__", {"tokens": TOKENS}),
    "tokens": (TokenClassifier(BOTH_WAYS, 3), "score", {"tokens": TOKENS, "targets": TOKENS % 3}),
    "sequence": (SequenceClassifier(BOTH_WAYS, 3), "loss", {"tokens": TOKENS, "targets": LABELS}),
    "span": (QuestionAnswerer(BOTH_WAYS), "__call__", {"tokens": TOKENS}),
    "electra": (
        ReformerElectra(BOTH_WAYS, generator_scale=1),
        "loss",
        {"tokens": TOKENS, "targets": TOKENS, "weights": jnp.ones(TOKENS.shape)},
    ),
    "translation": (
        ReformerEncoderDecoder(dataclasses.replace(FULL, cross_attention=True), share_embeddings=True),
        "__call__",
        {"source": TOKENS, "tokens": TOKENS},
    ),
    "images": (
        ReformerViT(dataclasses.replace(BOTH_WAYS, position_embedding="learned"), 3, 8, 2),
        "__call__",
        {"images": IMAGES},
    ),
}


class _Outer(nn.Module):
    """Some module that has a model as one of its parts."""

    inner: nn.Module
    method: str

    def __call__(self, **arguments):
        return getattr(self.inner, self.method)(**arguments)


@pytest.mark.slow
@pytest.mark.parametrize("is_inside", [False, True], ids=["alone", "inside another module"])
@pytest.mark.parametrize("name", CALLS)
def test_the_output_while_parameters_are_created_is_that_of_apply(name, is_inside):
    inner, method, arguments = CALLS[name]
    model = _Outer(inner, method) if is_inside else inner
    method = "__call__" if is_inside else method

    @jax.jit
    def both(arguments):
        found, variables = model.init_with_output(RNGS, **arguments, method=method)
        return found, model.apply(variables, **arguments, method=method, rngs={"hash": RNGS["hash"]})

    found, expected = both(arguments)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6), found, expected)


def test_one_key_suffices_to_initialise_a_model_that_hashes_and_drops():
    model = ReformerLM(dataclasses.replace(CONFIG, dropout_rate=0.1))
    logits, variables = jax.eval_shape(
        lambda rng: model.init_with_output(rng, TOKENS, deterministic=False), RNGS["hash"]
    )
    assert logits.shape == (2, 16, CONFIG.vocab_size)
    created = jax.eval_shape(lambda rng: model.init(rng, method="create"), RNGS["hash"])
    assert jax.tree.structure(variables) == jax.tree.structure(created)
