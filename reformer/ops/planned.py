"""Attention as planned, over all rows: heads of examples.

The gradient is written by hand (see `block`, `chunked` and `full`), so that nothing but the inputs, the output, the
log-normaliser and the permutation is kept for the backward pass. `attend_with_gradients` is for code that has its own
backward pass: the reversible layers know the cotangent of the output while they recompute it.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reformer.ops import chunked, chunking, full, fused, look_ahead
from reformer.ops.plan import Arrays, Context, Plan
from reformer.ops.stored import store


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(plan: Plan, arrays: Arrays, context: Context) -> Float[Array, "batch heads length value_dim"]:
    """Attention as planned.

    Args:
      plan: from `full_plan` or `chunked_plan`.
      arrays: [batch, heads, length, dim]; heads before the length, unlike the public functions, since
        the work goes head by head and this way without a transpose.
      context: arrays with batch and heads leading; the mask [batch, length].
    """
    return _forward(plan, arrays, context)[0]


def _module(plan: Plan):
    """Where the work of a plan is done."""
    return fused if plan.is_fused else full if plan.is_full else chunked


def _prepare(plan: Plan, arrays: Arrays, context: Context) -> tuple[Arrays, Context]:
    return look_ahead.prepare(arrays, context) if plan.rule.looks_ahead else (arrays, context)


def _undo(plan: Plan, arrays: Arrays, gradients: Arrays) -> Arrays:
    return look_ahead.undo(arrays, gradients) if plan.rule.looks_ahead else gradients


def _run_forward(plan: Plan, arrays: Arrays, context: Context):
    return _module(plan).forward(plan, *_prepare(plan, arrays, context))


def _run_backward(plan: Plan, arrays: Arrays, context: Context, out, log_normalizer, out_gradient) -> Arrays:
    prepared = _prepare(plan, arrays, context)
    return _undo(plan, arrays, _module(plan).backward(plan, *prepared, out, log_normalizer, out_gradient))


def _run_both(plan: Plan, arrays: Arrays, context: Context, out_gradient) -> tuple[Array, Arrays]:
    out, gradients = _module(plan).forward_and_backward(plan, *_prepare(plan, arrays, context), out_gradient)
    return out, _undo(plan, arrays, gradients)


def _forward(plan: Plan, arrays: Arrays, context: Context):
    return _map_rows(plan, _run_forward, arrays, context)


def _attend_forward(plan: Plan, arrays: Arrays, context: Context):
    out, log_normalizer = store(_forward(plan, arrays, context))
    return out, (arrays, context, out, log_normalizer)


def _attend_backward(plan: Plan, saved, out_gradient):
    arrays, context, out, log_normalizer = saved
    return _map_rows(plan, _run_backward, arrays, context, out, log_normalizer, out_gradient), None


attend.defvjp(_attend_forward, _attend_backward)


def attend_with_gradients(plan: Plan, arrays: Arrays, context: Context, out_gradient) -> tuple[Array, Arrays]:
    """Output of `attend` together with the cotangents of `arrays`, given that of the output.

    One pass over the blocks where a block holds all keys of its queries (full and local attention
    and a single hash round). Several rounds need the merged log-normaliser first: two passes.
    """
    if context.order is not None and context.order.permutation.shape[2] > 1 and not plan.is_fused:
        out, saved = _attend_forward(plan, arrays, context)
        return out, _attend_backward(plan, saved, out_gradient)[0]
    run = partial(_run_both, plan)
    flat, restore = _flatten_rows(arrays, context, out_gradient)
    if plan.is_fused:
        return restore(run(*flat))

    def in_place(differentiated, context):
        out, gradients = _run_rows(run, (differentiated[0], context, differentiated[1]))
        return gradients, out

    arrays, context, out_gradient = flat
    gradients, out = chunking.replace_chunks(in_place, (arrays, out_gradient), context, plan.rows_at_once)
    return restore((out, gradients))


def _map_rows(plan: Plan, run, arrays: Arrays, context: Context, *others):
    """Runs a function of one row over all examples and heads."""
    flat, restore = _flatten_rows(arrays, context, *others)
    run = partial(run, plan)
    if plan.is_fused:
        return restore(run(*flat))
    return restore(chunking.map_chunks(partial(_run_rows, run), flat, plan.rows_at_once, in_axis=0, out_axis=0))


def _flatten_rows(arrays: Arrays, context: Context, *others):
    """Merges the axes of examples and heads; returns the arrays, and the function that separates them again."""
    batch, num_heads, length, _ = arrays.query.shape
    of_tokens = {"mask": context.mask, "documents": context.documents}
    spread = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (batch, num_heads, length)), of_tokens)
    context = context._replace(**spread)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (arrays, context, *others))
    return flat, partial(jax.tree.map, lambda x: x.reshape(batch, num_heads, *x.shape[1:]))


def _run_rows(run, rows):
    """Runs a function of one row over an axis of rows; a single row without the cost of a batched gather."""
    if len(rows[0].query) == 1:
        return jax.tree.map(lambda x: x[None], run(*jax.tree.map(lambda x: x[0], rows)))
    return jax.vmap(lambda row: run(*row))(rows)
