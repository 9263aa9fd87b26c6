"""The rotations of all layers that hash: drawn, checked, and handed to the layers."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from reformer.config import ReformerConfig
from reformer.layers.kinds import KINDS, falls_back_to_full, num_buckets
from reformer.ops import hashing

# Of all layers that hash, in the order of their depth; as one array or as a sequence with an array for each.
Rotations = (
    Float[Array, "layers heads head_dim rounds columns"] | Sequence[Float[Array, "heads head_dim rounds columns"]]
)


def are_needed(config: ReformerConfig, length: int) -> bool:
    """Whether any layer hashes, given `length` tokens."""
    kinds = map(KINDS.__getitem__, config.attention_pattern)
    return any(kind.is_hashed and not falls_back_to_full(kind, config, length) for kind in kinds)


def draw(
    config: ReformerConfig, length: int, rng: PRNGKeyArray
) -> Float[Array, "layers heads head_dim rounds columns"]:
    """Draws the rotations of all layers at once: a draw for each would make the program grow with the depth.

    Args:
      config: the model's.
      length: tokens, which the number of buckets depends on.
      rng: of the draw.
    """
    num_heads, dtype = config.num_lsh_layers * config.num_heads, jnp.promote_types(jnp.float32, config.dtype)
    factors = num_buckets(length, config)
    drawn = hashing.draw_rotations(rng, num_heads, config.head_dim, config.num_hashes, factors, dtype)
    return drawn.reshape(config.num_lsh_layers, config.num_heads, *drawn.shape[1:])


def check(config: ReformerConfig, length: int, rotations: Rotations) -> None:
    """Raises ValueError unless there are rotations for each layer that hashes, and they fit `length` tokens."""
    if len(rotations) != config.num_lsh_layers:
        raise ValueError(f"{len(rotations)} rotations for {config.num_lsh_layers} LSH layers. Pass one for each.")
    for array in rotations if isinstance(rotations, Sequence) else rotations[:1]:
        hashing.check_rotations(array, (config.num_heads, config.head_dim), num_buckets(length, config))
        if array.shape[2] != config.num_hashes:
            raise ValueError(
                f"rotations of shape {array.shape} have {array.shape[2]} rounds, num_hashes={config.num_hashes}. "
                "Make them equal."
            )


def by_layer(
    config: ReformerConfig, rotations: Rotations | None
) -> tuple[Float[Array, "blocks heads head_dim rounds columns"] | None, ...]:
    """Returns for every layer of the pattern the rotations of all blocks, or None where nothing is hashed."""
    are_hashed = [KINDS[kind].is_hashed for kind in config.attention_pattern]
    place, period = 0, sum(are_hashed)
    of_layers: list[jax.Array | None] = []
    for is_hashed in are_hashed:
        of_layer = rotations[place::period] if is_hashed and rotations is not None else None
        of_layers.append(jnp.stack(of_layer) if isinstance(of_layer, Sequence) else of_layer)
        place += is_hashed
    return tuple(of_layers)
