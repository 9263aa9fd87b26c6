"""Cross-entropy over a vocabulary, in chunks of the length, so that [length, vocab] never exists."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from reformer.ops.dropout import token_numbers
from reformer.ops.ids import check_ids, exist
from reformer.ops.lengthwise import ChunkLength, map_length


def widen(x: Shaped[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The array in at least float32, as what is normalised or summed up must be: bfloat16 counts to 256."""
    return x.astype(jnp.promote_types(jnp.float32, x.dtype))


def check_targets(targets, weights, shape: tuple[int, ...]) -> None:
    """Checks that targets fit the predictions: other shapes would be broadcast.

    Args:
      targets: array.
      weights: array of the same shape; None = not given.
      shape: of the predictions, an entry of the vocabulary left out.

    Raises:
      ValueError: they do not.
    """
    for name, x in (("targets", targets), ("weights", weights)):
        if x is not None and x.shape != shape:
            raise ValueError(f"{name} of shape {x.shape} must have the shape {shape}, one for each prediction.")


def check_targets_exist(targets, weights, num_outcomes: int, limit: str = "num_labels", mask=None) -> None:
    """Checks that every target that counts exists, if it is known: within `jit` it is not.

    Args:
      targets: ids, integers of any shape.
      weights: array of the same shape, 0 = does not count; None = all count.
      num_outcomes: ids run from 0 to one less.
      limit: what the message calls `num_outcomes`.
      mask: bool, True = counts, of the same shape; None = all count.

    Raises:
      ValueError: one does not exist.
    """
    repair = "the targets, leave them out by a weight of 0,"
    check_ids("targets", targets, num_outcomes, limit, counting=(weights, mask), repair=repair)


def weigh(
    targets: Int[Array, "*shape"], weights: jax.Array | None, num_outcomes: int, dtype: DTypeLike
) -> Float[Array, "*shape"]:
    """The weights of targets, NaN where a target of another weight than 0 does not exist.

    So its loss, its gradient and whether it is right are NaN, and a target that is left out may be any integer.

    Args:
      targets: ids.
      weights: numbers of the shape of the targets; None = 1.
      num_outcomes: ids run from 0 to one less.
      dtype: of the result.
    """
    weights = jnp.ones(targets.shape, dtype) if weights is None else weights.astype(dtype)
    return jnp.where(exist(targets, num_outcomes) | (weights == 0), weights, jnp.nan)


def weight_of(is_true: Bool[Array, "*shape"], weights: Float[Array, "*shape"]) -> Float[Array, ""]:
    """The sum of the weights of what is true; NaN if any weight is, which XLA's product with False would hide."""
    return jnp.sum(jnp.where(is_true | jnp.isnan(weights), weights, 0))


def cross_entropy(
    logits: Float[Array, "batch length vocab"], targets: Int[Array, "batch length"], smoothing: float = 0.0
) -> Float[Array, "batch length"]:
    """Negative log-likelihood of every target, in nats, computed in at least float32.

    Args:
      logits: of every id.
      targets: ids; for one that does not exist the number means nothing, see `weigh`.
      smoothing: the share of every target that is spread evenly over all ids (Szegedy et al. 2015, arXiv 1512.00567,
        section 7), from 0 to 1.
    """
    logits = widen(logits)
    logits -= jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    vocabulary = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2)
    # A comparison instead of a gather, whose transpose would be a scatter.
    chosen = jnp.sum(jnp.where(vocabulary == targets[..., None], logits, 0), axis=-1)
    if smoothing:
        chosen = (1 - smoothing) * chosen + smoothing * jnp.mean(logits, axis=-1)
    return jnp.log(jnp.sum(jnp.exp(logits), axis=-1)) - chosen


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 7))
def chunked_cross_entropy(
    logits_fn: Callable, chunk_length: ChunkLength, params, inputs, targets, weights, fixed=None, smoothing: float = 0.0
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Weighted sum of the cross-entropies of all targets, and the sum of the weights.

    When it is differentiated, each chunk's cotangents are computed together with its loss and only
    scaled in the backward pass, instead of computing the logits a second time.

    Args:
      logits_fn: (params, inputs, token_number [batch, chunk], fixed) -> logits [batch, chunk, vocab]. The numbers are
        those of `token_numbers` of the unchunked array. Must not close over differentiated values.
      chunk_length: tokens of a sequence per chunk; None = all at once.
      params: float pytree, differentiated.
      inputs: pytree of float arrays [batch, length, ...], differentiated.
      targets: ids [batch, length]; all sums are NaN if one does not exist, but for those of weight 0, such as -100.
      weights: [batch, length]; no gradient flows to them.
      fixed: pytree for `logits_fn` that is not differentiated.
      smoothing: of the targets, as in `cross_entropy`.

    Returns:
      Sum of weight * nats, and sum of weights, in at least float32; (0, 0) for zero weights.
    """

    def loss(common, chunk):
        return (), _chunk_loss(logits_fn, smoothing, *common, *chunk)

    arrays = (inputs, token_numbers(targets), targets, weights)
    return map_length(loss, (fixed, params), arrays, chunk_length, has_sums=True)[1]


def chunked_scores(logits_fn: Callable, chunk_length: ChunkLength, params, inputs, targets, weights) -> tuple[Any, ...]:
    """What `chunked_cross_entropy` sums, and how often the target has the largest logit; not to be differentiated.

    Args:
      logits_fn: as in `chunked_cross_entropy`; its `fixed` is None.
      chunk_length: as there.
      params: as there.
      inputs: as there.
      targets: as there.
      weights: as there.

    Returns:
      Sums over all targets, in at least float32: weight * nats, weight where the target has the largest logit, weight.
      For a tuple of weights, of which each is summed by itself, a tuple of these; the logits are computed once.
    """

    def score(params, chunk):
        inputs, token_number, targets, weights = chunk
        logits = logits_fn(params, inputs, token_number, None)
        nats, is_first = cross_entropy(logits, targets), jnp.argmax(logits, axis=-1) == targets

        def sums(weights):
            weights = weigh(targets, weights, logits.shape[-1], nats.dtype)
            return jnp.sum(nats * weights), weight_of(is_first, weights), jnp.sum(weights)

        return (), tuple(map(sums, weights)) if isinstance(weights, tuple) else sums(weights)

    arrays = (inputs, token_numbers(targets), targets, weights)
    return map_length(score, params, arrays, chunk_length, has_sums=True)[1]


def _chunk_loss(logits_fn, smoothing, fixed, params, inputs, token_number, targets, weights):
    logits = logits_fn(params, inputs, token_number, fixed)
    nats = cross_entropy(logits, targets, smoothing)
    weights = weigh(targets, weights, logits.shape[-1], nats.dtype)
    return jnp.sum(nats * weights), jnp.sum(weights)


def _forward(logits_fn, chunk_length, params, inputs, targets, weights, fixed, smoothing):
    def differentiate(common, chunk):
        (fixed, params), (inputs, *others) = common, chunk

        def loss(params, inputs):
            return _chunk_loss(logits_fn, smoothing, fixed, params, inputs, *others)

        nats, vjp, weight = jax.vjp(loss, params, inputs, has_aux=True)
        d_params, d_inputs = vjp(jnp.ones_like(nats))
        return d_inputs, ((nats, weight), d_params)

    arrays = (inputs, token_numbers(targets), targets, weights)
    d_inputs, (sums, d_params) = map_length(differentiate, (fixed, params), arrays, chunk_length, has_sums=True)
    types = jax.tree.map(lambda p: jnp.zeros((), p.dtype), params)
    return sums, (d_params, d_inputs, types)


def _backward(logits_fn, chunk_length, smoothing, saved, d_sums):
    d_params, d_inputs, types = saved
    d_nats, _ = d_sums
    d_params = jax.tree.map(lambda x, like: (x * d_nats).astype(like.dtype), d_params, types)
    return d_params, jax.tree.map(lambda x: (x * d_nats).astype(x.dtype), d_inputs), None, None, None


chunked_cross_entropy.defvjp(_forward, _backward)
