"""Softmax attention of one block: c chunks of q queries, each with its own window of k keys.

Everything larger is loops over blocks. The backward pass is that of flash attention (Dao et al.
2022, arXiv 2205.14135, appendix B.4): weights are rebuilt from the log-normaliser, which may be
that of a softmax over several rounds, and dS = P * (dP - rowsum(dO * O)).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from reformer.ops import masking
from reformer.ops.dropout import keep_mask
from reformer.ops.masking import Pairs, Rule


class Block(NamedTuple):
    """Queries with their windows of keys. Keys are already unit vectors if the projection is shared."""

    query: Float[Array, "c q d"]
    key: Float[Array, "c k d"]
    value: Float[Array, "c k e"]
    pairs: Pairs


class Gradients(NamedTuple):
    """Cotangents of a block's arrays, in at least float32."""

    query: Float[Array, "c q d"]
    key: Float[Array, "c k d"]
    value: Float[Array, "c k e"]


def accumulation_dtype(dtype) -> jnp.dtype:
    """The type in which scores, normalisers and gradients are summed."""
    return jnp.promote_types(jnp.float32, dtype)


def _einsum(subscripts: str, a, b, like):
    dtype = accumulation_dtype(like.dtype)
    return jnp.einsum(subscripts, a.astype(like.dtype), b.astype(like.dtype), preferred_element_type=dtype)


def _scores(rule: Rule, block: Block):
    scores = _einsum("ckd,cqd->ckq", block.key, block.query, block.query)
    if not rule.shared:
        scores *= block.query.shape[-1] ** -0.5
    return masking.mask_scores(rule, block.pairs, scores)


def _drop(rule: Rule, pairs: Pairs, x):
    """Applies attention dropout; a linear map of `x`, so also its own transpose."""
    if rule.dropout_rate == 0:
        return x
    keep = keep_mask(pairs.seed, pairs.query.position[:, None, :], pairs.key.position[:, :, None], rule.dropout_rate)
    return jnp.where(keep, x / (1 - rule.dropout_rate), 0)


def _exponentials(rule: Rule, block: Block):
    """Unnormalised weights, what to multiply them by, and the log-normaliser."""
    scores = _scores(rule, block)
    largest = jnp.max(scores, axis=1, keepdims=True)
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=1, keepdims=True)
    log_normalizer = largest + jnp.log(total)
    if rule.semantics == "huggingface":  # its weights are exp(score - log_normalizer), which rounds near -1e9
        total = jnp.exp(log_normalizer - largest)
    scale = jnp.where(largest > masking.NO_KEY_BELOW, 1 / total, 0)
    return weights, scale, log_normalizer[:, 0]


def forward(rule: Rule, block: Block) -> tuple[Float[Array, "c q e"], Float[Array, "c q"]]:
    """Returns the attention output and the log-normaliser of every query."""
    weights, scale, log_normalizer = _exponentials(rule, block)
    return _weigh(rule, block, weights, scale), log_normalizer


def _weigh(rule: Rule, block: Block, weights, scale):
    summed = _einsum("ckq,cke->cqe", _drop(rule, block.pairs, weights), block.value, block.value)
    return jnp.swapaxes(scale, 1, 2) * summed


def backward(
    rule: Rule,
    block: Block,
    out_gradient: Float[Array, "c q e"],
    delta: Float[Array, "c q"],
    log_normalizer: Float[Array, "c q"],
) -> Gradients:
    """Cotangents from those of the output.

    Args:
      rule: as in `forward`.
      block: as in `forward`.
      out_gradient: cotangent of the output; zero for empty slots.
      delta: rowsum(out_gradient * out), with the output of the whole softmax.
      log_normalizer: of the whole softmax, over all rounds.
    """
    has_key = (log_normalizer > masking.NO_KEY_BELOW) & (block.pairs.query.position >= 0)
    weights = jnp.exp(_scores(rule, block) - jnp.where(has_key, log_normalizer, -masking.NO_KEY_BELOW)[:, None])
    return _gradients(rule, block, weights, out_gradient, delta)


def forward_and_backward(
    rule: Rule, block: Block, out_gradient: Float[Array, "c q e"]
) -> tuple[Float[Array, "c q e"], Gradients]:
    """Output and cotangents in one pass, where the block holds all the keys of its queries."""
    weights, scale, _ = _exponentials(rule, block)
    out = _weigh(rule, block, weights, scale)
    # Rounded where the two-pass form rounds, so that narrow types get the same gradient from both.
    rounded = out.astype(block.value.dtype).astype(out.dtype)
    delta = jnp.sum(rounded * out_gradient, axis=-1)
    return out, _gradients(rule, block, weights * scale, out_gradient, delta)


def _gradients(rule: Rule, block: Block, weights, out_gradient, delta) -> Gradients:
    value_gradient = _einsum("ckq,cqe->cke", _drop(rule, block.pairs, weights), out_gradient, block.value)
    weight_gradient = _einsum("cke,cqe->ckq", block.value, out_gradient, block.value)
    score_gradient = weights * (_drop(rule, block.pairs, weight_gradient) - delta[:, None])
    score_gradient = masking.mask_score_gradients(rule, block.pairs, score_gradient)
    if not rule.shared:
        score_gradient *= block.query.shape[-1] ** -0.5
    return Gradients(
        _einsum("ckq,ckd->cqd", score_gradient, block.key, block.query),
        _einsum("ckq,cqd->ckd", score_gradient, block.query, block.query),
        value_gradient,
    )
