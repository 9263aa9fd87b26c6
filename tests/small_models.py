"""Small models that several test files share."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from reformer import ReformerConfig, ReformerLM

SMALL = ReformerConfig(
    vocab_size=50,
    max_length=96,
    num_layers=4,
    embed_dim=16,
    mlp_dim=24,
    num_heads=2,
    head_dim=8,
    num_hashes=2,
    lsh_chunk_length=8,
    local_chunk_length=8,
    mlp_chunk_length=32,
    loss_chunk_length=32,
)

# Its operations can be counted by hand.
TINY = ReformerConfig(
    vocab_size=10,
    max_length=16,
    num_layers=2,
    embed_dim=8,
    mlp_dim=16,
    num_heads=2,
    head_dim=4,
    attention_pattern=("local", "lsh"),
    num_hashes=3,
    local_chunk_length=4,
    lsh_chunk_length=2,
    look_ahead=False,
)


def tokens(config: ReformerConfig, batch: int = 2, length: int | None = None, seed: int = 0) -> jax.Array:
    """Random tokens."""
    shape = (batch, length or config.max_length)
    return jnp.asarray(np.random.default_rng(seed).integers(0, config.vocab_size, shape), jnp.int32)


@functools.cache
def init(config: ReformerConfig, seed: int = 0):
    """Initial parameters; not jitted, since it would be another program for every config."""
    return ReformerLM(config).init(jax.random.key(seed), method="create")["params"]


def mean_loss(config: ReformerConfig, **kwargs):
    """A function of parameters, tokens and a key for hashes and dropout."""

    def loss(params, tokens, key):
        rngs = {"hash": key, "dropout": jax.random.fold_in(key, 1)}
        targets = jnp.roll(tokens, -1, axis=1)
        options = {"deterministic": False, "rngs": rngs, "method": "loss", **kwargs}
        nats, weight = ReformerLM(config).apply({"params": params}, tokens, targets, **options)
        return nats / weight

    return loss


def worst_gradient_error(config: ReformerConfig, num_keys: int, batch: int = 1) -> float:
    """The largest |reversible - autodiff| / |autodiff| of the whole gradient, over keys."""
    ordinary = dataclasses.replace(config, reversible=False)
    gradients = [jax.jit(jax.grad(mean_loss(c))) for c in (config, ordinary)]
    errors = []
    for key in range(num_keys):
        one, other = (g(init(config), tokens(config, batch), jax.random.key(key)) for g in gradients)
        errors.append(relative_error(one, other))
    return max(errors)


def relative_error(one, other) -> float:
    """|one - other| / |other| of two trees, as one vector each."""
    one, other = (np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(t)]) for t in (one, other))
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))
