"""Reversible residual layers: activations are rebuilt in the backward pass instead of stored.

A stack is a list of residual functions under one rule,

    (x1, x2) -> (x2, x1 + f(x2)),        inverse (y1, y2) -> (y2 - f(y1), y1).

Attention, then feed-forward under this rule is the RevNet block of the paper (Y1 = X1 +
Attention(X2), Y2 = X2 + FeedForward(Y1)). A *block* is a fixed list of residual functions; a scan
runs over blocks with stacked parameters, so that neither code nor activations grow with the depth.

Source: arXiv 2001.04451, section 3; Gomez et al. 2017 (arXiv 1707.04585).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reformer.ops import stored
from reformer.ops.dropout import token_numbers
from reformer.ops.lengthwise import ChunkLength, chunked_vjp, map_length

Stream = Float[Array, "batch length embed"]
Streams = tuple[Stream, Stream]


class Residual(NamedTuple):
    """One residual function f of a reversible stack, in the two ways in which the stack runs it.

    Values and cotangents are added to arrays that the caller gives up, chunk by chunk: a value as
    long as a stream never exists beside it.

    Attributes:
      apply: (params, x, onto, context, fixed) -> (onto + f(x), saved). `context` is a float pytree
        shared by all layers and differentiated, `fixed` what is not differentiated (masks, seeds).
        `saved` is a pytree of what `run_blocks` is to return of this function. For `undo` it holds the discrete
        decisions that must not change when `x` is rebuilt with a rounding error.
      undo: (params, x, onto, context, fixed, saved, d_value, d_onto) -> (onto - f(x), d_params,
        d_onto + d_x, d_context): what the reverse sweep rebuilds, and the cotangents, together. `d_value` is
        the cotangent of f(x), and `d_onto` what the cotangent of x is added to.
    """

    apply: Callable
    undo: Callable


def residual(value: Callable) -> Residual:
    """A residual function whose vjp is found by tracing it.

    Args:
      value: (params, x, context, fixed, saved) -> (f(x), saved); `saved` is None in the forward pass, and what was
        returned then when the value is computed again.
    """

    def apply(params, x, onto, context, fixed):
        out, saved = value(params, x, context, fixed, None)
        return onto + out, saved

    def undo(params, x, onto, context, fixed, saved, d_value, d_onto):
        out, vjp = jax.vjp(lambda *args: value(*args, fixed, saved)[0], params, x, context)
        d_params, d_x, d_context = vjp(d_value)
        return onto - out, d_params, d_onto + d_x, d_context

    return Residual(apply, undo)


def position_wise(fn: Callable, chunk_length: ChunkLength) -> Residual:
    """A residual function of each position by itself, computed in chunks of the length.

    The reverse sweep takes value and cotangents of a chunk together; rematerialisation inside a
    mapped function would compute the forward a third time.

    Args:
      fn: (params, x [batch, chunk, embed], token_number [batch, chunk], fixed) -> value like x. The numbers are those
        of `token_numbers` of the unchunked array.
      chunk_length: tokens of a sequence per chunk; None = all at once.
    """

    def apply(params, x, onto, context, fixed):
        del context

        def visit(common, chunk):
            params, fixed = common
            return fn(params, *chunk, fixed)

        return map_length(visit, (params, fixed), (x, token_numbers(x)), chunk_length, onto=onto), ()

    def undo(params, x, onto, context, fixed, saved, d_value, d_onto):
        del saved
        rebuilt, d_params, d_x = chunked_vjp(
            lambda params, fixed, x, token_number: fn(params, x, token_number, fixed),
            params,
            fixed,
            (x, d_value, token_numbers(x)),
            chunk_length,
            onto=(onto, d_onto),
        )
        return rebuilt, d_params, d_x, jax.tree.map(jnp.zeros_like, context)

    return Residual(apply, undo)


def run_functions(functions: Sequence[Callable], streams: Streams, num_streams: int) -> tuple[Streams, tuple]:
    """Runs residual functions one after another: the rule of the stack, of training, observing and decoding alike.

    Args:
      functions: each (x, onto) -> (onto + f(x), saved).
      streams: x1 and x2, two arrays [batch, length, embed].
      num_streams: 2, or 1 = the ordinary rule x -> x + f(x), where both streams are the same.

    Returns:
      Both streams after the last function, and what each function saved.
    """
    x1, x2 = streams
    saved = []
    for function in functions:
        added, kept = function(x2, x1)
        x1, x2 = x2 if num_streams == 2 else added, added
        saved.append(kept)
    return (x1, x2), tuple(saved)


def run_blocks(
    residuals: tuple[Residual, ...], params, x1: Stream, x2: Stream, context, fixed, num_streams: int = 2
) -> tuple[Streams, tuple]:
    """Runs the stack forward.

    Args:
      residuals: the residual functions of one block.
      params: a tuple with a pytree for each residual function, stacked over blocks on axis 0.
      x1: first stream.
      x2: second stream.
      context: float pytree that every residual function receives.
      fixed: a tuple with a pytree for each residual function, stacked over blocks; not differentiated.
      num_streams: as in `run_functions`.

    Returns:
      Both streams after the last block, and for every residual function what it saved, stacked over blocks.
    """

    def run_block(streams, block):
        functions = [partial(_apply, *function, context) for function in zip(residuals, *block, strict=True)]
        return run_functions(functions, streams, num_streams)

    return jax.lax.scan(run_block, (x1, x2), (params, fixed))


def _apply(function: Residual, params, fixed, context, x, onto):
    return function.apply(params, x, onto, context, fixed)


def scan_blocks(
    residuals: tuple[Residual, ...], params, x1: Stream, x2: Stream, context, fixed, num_streams: int = 2
) -> Streams:
    """The streams of `run_blocks`, differentiated by ordinary autodiff.

    Of a residual function its input is stored, and what stands in `ops.stored`: what costs a matrix product or a sort.
    """
    residuals = tuple(f._replace(apply=stored.checkpoint(f.apply)) for f in residuals)
    return run_blocks(residuals, params, x1, x2, context, fixed, num_streams)[0]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def reversible_scan_blocks(residuals: tuple[Residual, ...], params, x1: Stream, x2: Stream, context, fixed) -> Streams:
    """`scan_blocks` in memory that does not grow with the depth.

    Kept for the backward pass: parameters, context, the two outputs, and per residual function what
    its `apply` chose to save.
    """
    return run_blocks(residuals, params, x1, x2, context, fixed)[0]


def _reversible_forward(residuals, params, x1, x2, context, fixed):
    streams, saved = run_blocks(residuals, params, x1, x2, context, fixed)
    return streams, (params, streams, context, fixed, saved)


def _reversible_backward(residuals, kept: Any, d_streams):
    params, streams, context, fixed, saved = kept

    def undo_block(state, block):
        (y1, y2), (d_y1, d_y2), d_context = state
        d_params = []
        for f, p, own_fixed, decisions in reversed(list(zip(residuals, *block, strict=True))):
            rebuilt, d_p, d_x, d_c = f.undo(p, y1, y2, context, own_fixed, decisions, d_y2, d_y1)
            y1, y2 = rebuilt, y1
            d_y1, d_y2 = d_y2, d_x
            d_context = jax.tree.map(jnp.add, d_context, d_c)
            d_params.append(d_p)
        return ((y1, y2), (d_y1, d_y2), d_context), tuple(reversed(d_params))

    start = (streams, d_streams, jax.tree.map(jnp.zeros_like, context))
    (_, (d_x1, d_x2), d_context), d_params = jax.lax.scan(undo_block, start, (params, fixed, saved), reverse=True)
    return d_params, d_x1, d_x2, d_context, None


reversible_scan_blocks.defvjp(_reversible_forward, _reversible_backward)
