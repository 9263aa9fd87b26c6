"""Attention of queries to the keys and values of another sequence: of a decoder to what its encoder made of the source.

There is no order between the two sequences, so every query sees every real key. It is position-wise in the query:
whoever runs it chunk by chunk over the queries (`lengthwise.chunked_vjp`) bounds the scores that exist at once, and
gets the cotangents of keys and values summed over the chunks.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from reformer.ops.block import accumulation_dtype
from reformer.ops.dropout import fold, keep_mask
from reformer.ops.masking import NO_KEY_BELOW, SCORE_FILLS
from reformer.ops.plan import full_scores_at_once

_FORBIDDEN = SCORE_FILLS["reformer"][0]


def attend(
    query: Float[Array, "batch heads q d"],
    key: Float[Array, "batch heads k d"],
    value: Float[Array, "batch heads k e"],
    mask: Bool[Array, "batch k"] | None = None,
    *,
    dropout_rate: float = 0.0,
    row: Int[Array, "batch q"] | None = None,
    seed: UInt[Array, ""] | None = None,
) -> Float[Array, "batch heads q e"]:
    """Softmax attention with scores q.k / sqrt(d), summed in at least float32.

    Args:
      query: queries.
      key: keys of the other sequence.
      value: its values.
      mask: True = a real token of the other sequence; None = all are. A query without any key gets 0.
      dropout_rate: of the attention weights.
      row: the number of every query in the whole, unchunked array; needed for a positive `dropout_rate`.
      seed: of the dropout masks; likewise.

    Returns:
      The attention output, in the type of `value`.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.3, "encoder-decoder attention".
    """
    wide = accumulation_dtype(query.dtype)
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=wide) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, _FORBIDDEN)
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    scale = jnp.where(largest > NO_KEY_BELOW, 1 / jnp.sum(weights, axis=-1, keepdims=True), 0)
    if dropout_rate:
        weights = _drop(weights, dropout_rate, row, seed)
    out = jnp.einsum("bhqk,bhke->bhqe", weights.astype(value.dtype), value, preferred_element_type=wide)
    return (scale * out).astype(value.dtype)


def _drop(weights: Float[Array, "batch heads q k"], rate: float, row, seed):
    _, num_heads, _, num_keys = weights.shape
    column = jnp.arange(num_keys, dtype=jnp.int32)[None, None]
    of_head = jax.vmap(lambda seed: keep_mask(seed, row[:, :, None], column, rate), out_axes=1)
    return jnp.where(of_head(fold(seed, jnp.arange(num_heads))), weights / (1 - rate), 0)


def queries_at_once(num_rows: int, num_keys: int) -> int:
    """So many queries of every row have about as many scores as full self-attention computes at once; at least 8."""
    return max(8, full_scores_at_once() // max(1, num_rows * num_keys))
