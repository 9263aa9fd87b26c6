"""Reversible residual layers: activations are rebuilt in the backward pass instead of stored.

A stack is a list of residual functions under one rule,

    (x1, x2) -> (x2, x1 + f(x2)),        inverse (y1, y2) -> (y2 - f(y1), y1).

Attention, then feed-forward under this rule is the RevNet block of the paper (Y1 = X1 +
Attention(X2), Y2 = X2 + FeedForward(Y1)). A *block* is a fixed list of residual functions; a scan
runs over blocks with stacked parameters, so that neither code nor activations grow with the depth.

Source: arXiv 2001.04451, section 3; Gomez et al. 2017 (arXiv 1707.04585).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from reformer.ops import stored
from reformer.ops.chunking import wide_zeros_like
from reformer.ops.dropout import rows
from reformer.ops.lengthwise import map_length, scan_length


class Residual(NamedTuple):
    """One residual function f of a reversible stack, in the two ways in which the stack runs it.

    Values and cotangents are added to arrays that the caller gives up, chunk by chunk: a value as
    long as a stream never exists beside it.

    Attributes:
      apply: (params, x, onto, context, fixed) -> (onto + f(x), saved). `context` is a float pytree
        shared by all layers and differentiated, `fixed` what is not differentiated (masks, seeds).
        `saved` are the discrete decisions that must not change when `x` is rebuilt with a rounding error.
      undo: (params, x, onto, context, fixed, saved, cotangent, onto_cotangent) -> (onto - f(x),
        cotangent of params, onto_cotangent + that of x, cotangent of context): what the reverse
        sweep rebuilds, and the gradients, together.
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

    def undo(params, x, onto, context, fixed, saved, cotangent, onto_cotangent):
        out, vjp = jax.vjp(lambda *args: value(*args, fixed, saved)[0], params, x, context)
        of_params, of_x, of_context = vjp(cotangent)
        return onto - out, of_params, onto_cotangent + of_x, of_context

    return Residual(apply, undo)


def position_wise(fn: Callable, chunk_length: int | None) -> Residual:
    """A residual function of each position by itself, computed in chunks of the length.

    The reverse sweep takes value and cotangents of a chunk together; rematerialisation inside a
    mapped function would compute the forward a third time.

    Args:
      fn: (params, x [batch, chunk, embed], row [batch, chunk], fixed) -> value like x. `row` numbers
        the tokens of the whole array.
      chunk_length: tokens of a sequence per chunk; None = all at once.
    """

    def apply(params, x, onto, context, fixed):
        del context

        def of_chunk(whole, pair):
            return fn(whole[0], *pair, whole[1])

        return map_length(of_chunk, (params, fixed), (x, rows(x)), chunk_length, onto=onto), ()

    def undo(params, x, onto, context, fixed, saved, cotangent, onto_cotangent):
        del saved
        rebuilt, of_params, of_x = chunked_vjp(
            lambda params, fixed, x, row: fn(params, x, row, fixed),
            params,
            fixed,
            (x, cotangent, rows(x)),
            chunk_length,
            onto=(onto, onto_cotangent),
        )
        return rebuilt, of_params, of_x, jax.tree.map(jnp.zeros_like, context)

    return Residual(apply, undo)


def chunked_vjp(
    fn: Callable, params, fixed, arrays: tuple, chunk_length: int | None, *, in_axis=1, out_axis=1, onto=None
):
    """Negated value and cotangents of a position-wise function, chunk by chunk in one pass.

    Args:
      fn: (params, fixed, x, *others) -> value.
      params: pytree.
      fixed: pytree that is not differentiated.
      arrays: x, the cotangent of the value, and others that are not differentiated.
      chunk_length: tokens of a sequence per chunk; None = all at once.
      in_axis: the axis of the length, for all leaves of `arrays` or as a pytree prefix of it.
      out_axis: likewise of the value and the cotangent of x.
      onto: a pair, what the negated value and the cotangent of x are added to; None = nothing.

    Returns:
      Minus the value, the cotangents of params, and those of x.
    """

    def visit(whole, total, chunk):
        (params, fixed), (x, cotangent, *others) = whole, chunk
        value, vjp = jax.vjp(lambda params, x: fn(params, fixed, x, *others), params, x)
        of_params, of_x = vjp(cotangent)
        return jax.tree.map(jnp.add, total, of_params), (jax.tree.map(jnp.negative, value), of_x)

    scan = partial(scan_length, in_axis=in_axis, out_axis=out_axis, onto=onto)
    of_params, (negated, of_x) = scan(visit, wide_zeros_like(params), (params, fixed), arrays, chunk_length)
    return negated, jax.tree.map(lambda g, p: g.astype(p.dtype), of_params, params), of_x


def scan_blocks(residuals: tuple[Residual, ...], params, x1, x2, context, fixed, num_streams: int = 2):
    """Runs the stack, differentiated by ordinary autodiff.

    Of a residual function its input is stored, and what stands in `ops.stored`: what costs a matrix product or a sort.

    Args:
      residuals: the residual functions of one block.
      params: a tuple with a pytree for each residual function, stacked over blocks on axis 0.
      x1: first stream [batch, length, embed].
      x2: second stream, likewise.
      context: float pytree that every residual function receives.
      fixed: a tuple with a pytree for each residual function, stacked over blocks; not differentiated.
      num_streams: 1 = the ordinary rule x -> x + f(x), where both streams are the same.

    Returns:
      Both streams after the last block.
    """
    residuals = tuple(f._replace(apply=stored.checkpoint(f.apply)) for f in residuals)
    return _forward(residuals, params, x1, x2, context, fixed, num_streams)[0]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def reversible_scan_blocks(residuals: tuple[Residual, ...], params, x1, x2, context, fixed):
    """`scan_blocks` in memory that does not grow with the depth.

    Kept for the backward pass: parameters, context, the two outputs, and per residual function what
    its `apply` chose to save.
    """
    return _forward(residuals, params, x1, x2, context, fixed)[0]


def next_streams(x2, added, num_streams: int):
    """Both streams after a residual function, whose value at `x2` was added to the first: `added`."""
    return x2 if num_streams == 2 else added, added


def _forward(residuals, params, x1, x2, context, fixed, num_streams=2):
    def run_block(streams, block):
        x1, x2 = streams
        saved = []
        for f, p, constants in zip(residuals, *block, strict=True):
            added, kept = f.apply(p, x2, x1, context, constants)
            x1, x2 = next_streams(x2, added, num_streams)
            saved.append(kept)
        return (x1, x2), tuple(saved)

    return jax.lax.scan(run_block, (x1, x2), (params, fixed))


def _reversible_forward(residuals, params, x1, x2, context, fixed):
    streams, saved = _forward(residuals, params, x1, x2, context, fixed)
    return streams, (params, streams, context, fixed, saved)


def _reversible_backward(residuals, kept, cotangents):
    params, streams, context, fixed, saved = kept

    def undo_block(state, block):
        (y1, y2), (dy1, dy2), of_context = state
        of_params = []
        for f, p, constants, decisions in reversed(list(zip(residuals, *block, strict=True))):
            rebuilt, of_p, of_x, of_c = f.undo(p, y1, y2, context, constants, decisions, dy2, dy1)
            y1, y2 = rebuilt, y1
            dy1, dy2 = dy2, of_x
            of_context = jax.tree.map(jnp.add, of_context, of_c)
            of_params.append(of_p)
        return ((y1, y2), (dy1, dy2), of_context), tuple(reversed(of_params))

    start = (streams, cotangents, jax.tree.map(jnp.zeros_like, context))
    (_, (dx1, dx2), of_context), of_params = jax.lax.scan(undo_block, start, (params, fixed, saved), reverse=True)
    return of_params, dx1, dx2, of_context, None


reversible_scan_blocks.defvjp(_reversible_forward, _reversible_backward)
