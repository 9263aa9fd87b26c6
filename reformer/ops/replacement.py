"""Drawing a token for every place of a sequence, from logits that exist only in chunks of the length.

By the Gumbel-max trick: the largest of logits + noise is a draw from their softmax. The noise of an id at a place is a
hash of a seed and of what the example holds, so that it draws the same in whatever batch, chunk or device it stands.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from reformer.ops.dropout import random_bits, token_numbers
from reformer.ops.lengthwise import ChunkLength, map_length
from reformer.ops.sampling import cool


def number_places(
    seed: UInt[Array, ""], ids: Int[Array, "batch length"], mask: Bool[Array, "batch length"] | None = None
) -> UInt[Array, "batch length"]:
    """Numbers all places by chance; equal examples have equal numbers, others have others (but for one pair in 2^32).

    Args:
      seed: another one gives other numbers.
      ids: what the examples hold.
      mask: True = counts in what an example holds; None = all do.
    """
    position = jnp.arange(ids.shape[1], dtype=jnp.uint32)[None]
    bits = random_bits(seed, position, ids)
    bits = bits if mask is None else jnp.where(mask, bits, 0)
    example = jnp.sum(bits, axis=1, keepdims=True, dtype=jnp.uint32)
    return random_bits(seed, example, position)


def gumbel(seed: UInt[Array, ""], places: UInt[Array, "*places"], num_ids: int) -> Float[Array, "*places ids"]:
    """Standard Gumbel noise in float32 for every id at every place, from about -2.8 to 16.6.

    Args:
      seed: another one gives other noise.
      places: from `number_places`.
      num_ids: ids are 0 .. num_ids - 1.
    """
    ids = jnp.arange(num_ids, dtype=jnp.uint32).reshape((1,) * places.ndim + (-1,))
    bits = random_bits(seed, places[..., None], ids)
    # 23 bits and a half: float32 holds the number exactly, and it is neither 0 nor 1.
    uniform = ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-23
    return -jnp.log(-jnp.log(uniform))


def draw_in_chunks(
    logits_fn: Callable,
    chunk_length: ChunkLength,
    params,
    inputs,
    seed: UInt[Array, ""],
    places: UInt[Array, "batch length"],
    temperature: float | int,
    fixed=None,
) -> Int[Array, "batch length"]:
    """Draws an id for every place from the softmax of logits / temperature; no gradient passes.

    Args:
      logits_fn: as in `losses.chunked_cross_entropy`.
      chunk_length: tokens of a sequence per chunk; None = all at once.
      params: as there.
      inputs: as there.
      seed: the same seed and places give the same noise.
      places: from `number_places`.
      temperature: above 0.
      fixed: as there.

    Returns:
      Ids, int32.
    """

    def draw(common, chunk):
        (params, fixed, seed), (inputs, token_number, places) = common, chunk
        logits = cool(logits_fn(params, inputs, token_number, fixed), temperature)
        noise = gumbel(seed, places, logits.shape[-1]).astype(logits.dtype)
        return jnp.argmax(logits + noise, axis=-1).astype(jnp.int32)

    params, inputs = jax.lax.stop_gradient((params, inputs))
    return map_length(draw, (params, fixed, seed), (inputs, token_numbers(places), places), chunk_length)
