"""Look-ahead values: behind the key of a token stands the value of the token after it.

With a shared query-key projection a query finds earlier tokens that resemble its own. What such a token was the query
knows already; what *followed* it is what helps to predict the next token. So for causal attention

    out_i = sum over the keys j < i that i sees of softmax_j(q_i . k_j) v_{j+1},    0 where there is none.

Nothing of the future is read, since j + 1 <= i. For the same reason a token never attends to itself: v_{i+1} is the
future. A key may be used if both tokens, j and j + 1, may be attended.

The attention of a row is that of any other values (`masking.Rule.looks_ahead` has who sees whom): here they are moved,
and their cotangents moved back. Where the whole length of a row lies on one device, that needs no halo.

Source: Xu et al. 2024, "KV Shifting Attention Enhances Language Modeling" (arXiv 2411.19574) for separate projections;
Zhang et al. 2024, "Memory Mosaics" (arXiv 2405.06394).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from reformer.ops.plan import Arrays, Context


def shift(value: Float[Array, "*rows l e"]) -> Float[Array, "*rows l e"]:
    """The value of the next token at every position; 0 at the last one, which no query sees."""
    return _move(value, slice(1, None), (0, 1))


def unshift(gradient: Float[Array, "*rows l e"]) -> Float[Array, "*rows l e"]:
    """The transpose of `shift`."""
    return _move(gradient, slice(None, -1), (1, 0))


def both_real(mask: Bool[Array, "*rows l"]) -> Bool[Array, "*rows l"]:
    """True where a token and the one after it are real: a key that may be used."""
    return mask & jnp.roll(mask, -1, axis=-1)  # no query sees the last key, wherever it looks


def prepare(arrays: Arrays, context: Context) -> tuple[Arrays, Context]:
    """What an attention that looks ahead attends to."""
    mask = None if context.mask is None else both_real(context.mask)
    return arrays._replace(value=shift(arrays.value)), context._replace(mask=mask)


def undo(gradients: Arrays) -> Arrays:
    """The cotangents of the arrays from those of the prepared ones."""
    return gradients._replace(value=unshift(gradients.value))


def _move(x, kept: slice, padding: tuple[int, int]):
    kept_slots = jax.lax.slice_in_dim(x, *kept.indices(x.shape[-2])[:2], axis=x.ndim - 2)
    return jnp.pad(kept_slots, [(0, 0)] * (x.ndim - 2) + [padding, (0, 0)])
