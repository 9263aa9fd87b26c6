"""Look-ahead values: behind the key of a token stands the value of the token after it.

With a shared query-key projection a query finds earlier tokens that resemble its own. What such a token was the query
knows already; what *followed* it is what helps to predict the next token. So for causal attention

    out_i = sum over the keys j < i that i sees of softmax_j(q_i . k_j) (a v_{j+1} + b v_j),    0 where there is none,

with `taps` (a, b), (1, 0) unless they are given; a model learns a pair for every head. Nothing of the future is read,
since j + 1 <= i. For the same reason a token never attends to itself: v_{i+1} is the future. A key may be used if both
tokens, j and j + 1, may be attended.

The attention of a row is that of any other values (`masking.Rule.looks_ahead` has who sees whom): here they are mixed,
and the cotangents brought back. Where the whole length of a row lies on one device, that needs no halo.

Source: Xu et al. 2024, "KV Shifting Attention Enhances Language Modeling" (arXiv 2411.19574) for separate projections;
Zhang et al. 2024, "Memory Mosaics" (arXiv 2405.06394).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from reformer.ops.block import accumulation_dtype
from reformer.ops.plan import Arrays, Given

FIRST_TAPS = (1.0, 0.0)  # of the next token's value, and of the key's own


def parts(
    value: Float[Array, "*rows l e"], taps: Float[Array, "*rows 2"] | None
) -> tuple[Float[Array, "*rows l e"], Float[Array, "*rows l e"]]:
    """What the value of a token gives to the key before its own, and to its own; in at least float32."""
    wide = value.astype(accumulation_dtype(value.dtype))
    if taps is None:
        return wide, jnp.zeros_like(wide)
    ahead, own = (taps[..., i, None, None].astype(wide.dtype) for i in range(2))
    return ahead * wide, own * wide


def mix(value: Float[Array, "*rows l e"], taps: Float[Array, "*rows 2"] | None) -> Float[Array, "*rows l e"]:
    """The values behind the keys. Behind the last one, which no query sees, stands no next value."""
    ahead, own = parts(value, taps)
    return (shift(ahead) + own).astype(value.dtype)


def shift(x: Float[Array, "*rows l e"]) -> Float[Array, "*rows l e"]:
    """What stands at the next place, 0 at the last one."""
    moved = jax.lax.slice_in_dim(x, 1, None, axis=x.ndim - 2)
    return jnp.pad(moved, [(0, 0)] * (x.ndim - 2) + [(0, 1), (0, 0)])


def prepare(arrays: Arrays, given: Given) -> tuple[Arrays, Given]:
    """What an attention that looks ahead attends to."""
    mask = None if given.mask is None else _both_real(given.mask)
    return arrays._replace(value=mix(arrays.value, arrays.taps), taps=None), given._replace(mask=mask)


def undo(arrays: Arrays, gradients: Arrays) -> Arrays:
    """The cotangents of the arrays from those of the prepared ones."""
    of_mixed, value, taps = gradients.value, arrays.value, arrays.taps
    if taps is not None:
        wide, wide_value = (x.astype(accumulation_dtype(x.dtype)) for x in (of_mixed, value))
        of_taps = [_sum(wide[..., :-1, :] * wide_value[..., 1:, :]), _sum(wide * wide_value)]
        # The values are read first, by a dependency that XLA sees: their cotangent can take their place without a copy.
        of_mixed = (wide + 0 * sum(of_taps)[..., None, None]).astype(of_mixed.dtype)
        taps = jnp.stack(of_taps, axis=-1).astype(taps.dtype)
    of_value = jax.vjp(lambda value: mix(value, arrays.taps), value)[1](of_mixed.astype(value.dtype))[0]
    return gradients._replace(value=of_value, taps=taps)


def _sum(products):
    return jnp.sum(products, axis=(-2, -1))


def _both_real(mask: Bool[Array, "*rows l"]) -> Bool[Array, "*rows l"]:
    """True where a token and the one after it are real: a key that may be used."""
    return mask & jnp.roll(mask, -1, axis=-1)  # no query sees the last key, wherever it looks
