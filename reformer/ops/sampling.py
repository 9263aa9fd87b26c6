"""Drawing the next token from logits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

# Below it the quotients of logits may overflow, and float32 has 0 for what is below 1e-38; it is cold enough for the
# draw to be the most likely id.
_COLDEST = 1e-20


def cool(logits: Float[Array, "*rows vocab"], temperature: float | int) -> Float[Array, "*rows vocab"]:
    """The logits divided by a positive temperature, however small."""
    return logits / max(temperature, _COLDEST)


def keep_top_k(logits: Float[Array, "batch vocab"], k: int) -> Float[Array, "batch vocab"]:
    """Forbids, by -inf, all but the `k` largest logits of a row and what is equal to the last of them."""
    smallest = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][:, -1:]
    return jnp.where(logits >= smallest, logits, -jnp.inf)


def keep_top_p(logits: Float[Array, "batch vocab"], p: float) -> Float[Array, "batch vocab"]:
    """Forbids, by -inf, all but the fewest most likely ids whose probabilities sum to at least `p`.

    What is as likely as the last of them stays too.

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", arXiv 1904.09751.
    """
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    mass_before = jnp.cumsum(probabilities, axis=-1) - probabilities
    smallest = jnp.min(jnp.where(mass_before < p, ordered, jnp.inf), axis=-1, keepdims=True)
    smallest = jnp.minimum(smallest, ordered[:, :1])  # float32 has 0 for a tiny p
    return jnp.where(logits >= smallest, logits, -jnp.inf)


def draw(
    logits: Float[Array, "batch vocab"],
    rng: PRNGKeyArray,
    *,
    temperature: float | int = 1.0,
    top_k: int | None = None,
    top_p: float | int | None = None,
    num_ids: int | None = None,
) -> Int[Array, " batch"]:
    """Draws an id for every row.

    Args:
      logits: in at least float32.
      rng: row number i draws with `fold_in(rng, i)`, whatever the other rows are.
      temperature: the logits are divided by it; 0 takes the most likely id.
      top_k: see `keep_top_k`.
      top_p: see `keep_top_p`; of what `top_k` left.
      num_ids: the ids from here on are never drawn.
    """
    if num_ids is not None:
        logits = jnp.where(jnp.arange(logits.shape[-1])[None, :] < num_ids, logits, -jnp.inf)
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = cool(logits, temperature)
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    rngs = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(rng, jnp.arange(len(logits)))
    return jax.vmap(jax.random.categorical)(rngs, logits).astype(jnp.int32)
