"""Sampling: what is drawn fits the model's own distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer import decoding
from reformer.config import ReformerConfig
from reformer.model import ReformerLM

CONFIG = ReformerConfig(
    max_length=32, num_layers=2, embed_dim=16, mlp_dim=32, num_heads=2, head_dim=8, lsh_chunk_length=8, num_buckets=4
)


@pytest.fixture(scope="module")
def variables():
    """Parameters with large logits, so that the most likely token is clear."""
    variables = ReformerLM(CONFIG).init(
        {"params": jax.random.key(0), "hash": jax.random.key(1)}, jnp.zeros((1, 8), jnp.int32)
    )
    kernel = variables["params"]["head"]["kernel"]
    return {"params": variables["params"] | {"head": variables["params"]["head"] | {"kernel": 100 * kernel}}}


def test_temperature_zero_takes_the_most_likely_token_each_time(variables):
    prompt, rng = np.array([257, 65, 66]), jax.random.key(2)
    drawn = decoding.sample(CONFIG, variables, prompt, 6, temperature=0.0, rng=rng)
    hash_rng, _ = jax.random.split(rng)
    tokens = np.concatenate([prompt, drawn])
    for position in range(3, 9):
        mask = jnp.arange(9)[None] < position
        logits = ReformerLM(CONFIG).apply(variables, jnp.asarray(tokens)[None], mask=mask, rngs={"hash": hash_rng})
        assert logits[0, position - 1].argmax() == tokens[position]


def test_the_same_key_gives_the_same_sample_and_another_does_not(variables):
    def draw(seed):
        return decoding.sample(
            CONFIG, variables, np.array([257]), 20, temperature=5.0, rng=jax.random.key(seed)
        ).tolist()

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)


@pytest.mark.parametrize(("prompt_length", "num_tokens"), [(0, 4), (30, 3), (3, 0)])
def test_impossible_lengths_are_named(variables, prompt_length, num_tokens):
    with pytest.raises(
        ValueError, match=rf"num_tokens={num_tokens} must be at least 1 and together at most max_length=32"
    ):
        decoding.sample(CONFIG, variables, np.full(prompt_length, 257), num_tokens, rng=jax.random.key(0))
