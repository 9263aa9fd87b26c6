"""Sampling from a language model."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from reformer.config import ReformerConfig
from reformer.model import ReformerLM


def sample(
    config: ReformerConfig,
    variables: Any,
    prompt: Int[np.ndarray | Array, " prompt"],
    num_tokens: int,
    *,
    temperature: float = 1.0,
    rng: jax.Array,
) -> Int[Array, " tokens"]:
    """Returns `num_tokens` token ids that continue a prompt, one after the other.

    Nothing is cached: each token costs a pass over prompt and continuation.

    Args:
      config: Of the model.
      variables: Of the model.
      prompt: Token ids, at least one, such as the begin id.
      num_tokens: To be drawn.
      temperature: The logits are divided by it; 0 takes the most likely token.
      rng: Of the draws and of the LSH rotations.

    Raises:
      ValueError: If there is no prompt, or prompt and continuation are longer than `max_length`.
    """
    length = len(prompt) + num_tokens
    if not 1 <= len(prompt) < length <= config.max_length:
        raise ValueError(
            f"len(prompt)={len(prompt)} and num_tokens={num_tokens} must be at least 1 and together at most "
            f"max_length={config.max_length}."
        )
    tokens = jnp.zeros((1, length), jnp.int32).at[0, : len(prompt)].set(jnp.asarray(prompt))
    filled = _fill(config, variables, tokens, len(prompt), temperature, rng)
    return filled[0, len(prompt) :]


@functools.partial(jax.jit, static_argnums=(0,))
def _fill(config, variables, tokens, start, temperature, rng):
    hash_rng, draw_rng = jax.random.split(rng)
    model = ReformerLM(config)

    def fill_one(position, tokens):
        # Without the mask, LSH attention would sort the places that are still empty among the others.
        mask = jnp.arange(tokens.shape[1])[None] < position
        logits = model.apply(variables, tokens, mask=mask, rngs={"hash": hash_rng})[0, position - 1]
        return tokens.at[0, position].set(_draw(logits, temperature, jax.random.fold_in(draw_rng, position)))

    return jax.lax.fori_loop(start, tokens.shape[1], fill_one, tokens)


def _draw(logits, temperature, rng):
    drawn = jax.random.categorical(rng, logits / jnp.maximum(temperature, 1e-6))
    return jnp.where(temperature == 0, jnp.argmax(logits), drawn).astype(jnp.int32)
