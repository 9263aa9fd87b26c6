"""Plans of attention, and attention as planned over all rows: heads of examples.

The gradient is written by hand (see `block`, `chunked` and `full`), so that nothing but the inputs, the output, the
log-normaliser and the permutation is kept for the backward pass. `attend_with_gradients` is for code that has its own
backward pass: the reversible layers know the cotangent of the output while they recompute it.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reformer import sharding
from reformer.ops import chunked, chunking, full, fused, look_ahead
from reformer.ops.masking import Rule
from reformer.ops.plan import Arrays, Given, Plan, full_scores_at_once, scores_at_once
from reformer.ops.stored import mark_costly

IMPLEMENTATIONS = ("plain", "pallas")
_BLOCKS_IN_FLIGHT_CPU = 4


def full_plan(length: int, rule: Rule) -> Plan:
    """The plan of full attention over `length` tokens."""
    most = full_scores_at_once()
    num_queries = min(length, max(64, most // length))
    return Plan(rule, full, queries_at_once=num_queries, rows_at_once=max(1, most // length**2))


def chunked_plan(
    length: int, chunk_length: int, rule: Rule, correct_duplicates: bool = False, implementation: str = "plain"
) -> Plan:
    """The plan of local and LSH attention over `length` tokens."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r} must be one of {', '.join(IMPLEMENTATIONS)}.")
    if rule.semantics == "huggingface" and length % chunk_length:
        raise ValueError(
            f"length={length} is not a multiple of chunk_length={chunk_length}, which windows that wrap around "
            "(semantics='huggingface') need. Pad and mask the input."
        )
    most = scores_at_once()
    cut = chunking.geometry(length, chunk_length, rule.before, rule.after, most)
    if implementation == "pallas":
        _check_kernel(rule, correct_duplicates)
        return Plan(rule, fused, cut, rows_at_once=fused.rows_at_once)
    scores_per_row = cut.num_chunks * chunk_length * cut.window
    return Plan(
        rule,
        chunked,
        cut,
        correct_duplicates=correct_duplicates,
        rows_at_once=max(1, most // scores_per_row),
        blocks_in_flight=min(_BLOCKS_IN_FLIGHT_CPU, cut.num_blocks) if sharding.on_cpu() else 1,
    )


def _check_kernel(rule: Rule, correct_duplicates: bool) -> None:
    """Raises ValueError where options are asked for that the fused kernel does not have."""
    options = {
        f"semantics={rule.semantics!r}": rule.semantics != "reformer",
        "correct_duplicates=True": correct_duplicates,
        "a rule that shows some keys only": rule.shows is not None,
    }
    missing = " and ".join(name for name, is_asked_for in options.items() if is_asked_for)
    if missing:
        raise ValueError(f"implementation='pallas' does not have {missing}. Use implementation='plain'.")


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(plan: Plan, arrays: Arrays, given: Given) -> Float[Array, "batch heads length value_dim"]:
    """Attention as planned.

    Args:
      plan: from `full_plan` or `chunked_plan`.
      arrays: [batch, heads, length, dim]; heads before the length, unlike the public functions, since
        the work goes head by head and this way without a transpose.
      given: arrays with batch and heads leading; the mask [batch, length].
    """
    return _forward(plan, arrays, given)[0]


def _prepare(plan: Plan, arrays: Arrays, given: Given) -> tuple[Arrays, Given]:
    return look_ahead.prepare(arrays, given) if plan.rule.looks_ahead else (arrays, given)


def _undo(plan: Plan, arrays: Arrays, gradients: Arrays) -> Arrays:
    return look_ahead.undo(arrays, gradients) if plan.rule.looks_ahead else gradients


def _run_forward(plan: Plan, arrays: Arrays, given: Given):
    return plan.operation.forward(plan, *_prepare(plan, arrays, given))


def _run_backward(plan: Plan, arrays: Arrays, given: Given, out, log_normalizer, out_gradient) -> Arrays:
    prepared = _prepare(plan, arrays, given)
    return _undo(plan, arrays, plan.operation.backward(plan, *prepared, out, log_normalizer, out_gradient))


def _run_both(plan: Plan, arrays: Arrays, given: Given, out_gradient) -> tuple[Array, Arrays]:
    out, gradients = plan.operation.forward_and_backward(plan, *_prepare(plan, arrays, given), out_gradient)
    return out, _undo(plan, arrays, gradients)


def _forward(plan: Plan, arrays: Arrays, given: Given):
    return _map_rows(plan, _run_forward, arrays, given)


def _attend_forward(plan: Plan, arrays: Arrays, given: Given):
    out, log_normalizer = mark_costly(_forward(plan, arrays, given))
    return out, (arrays, given, out, log_normalizer)


def _attend_backward(plan: Plan, saved, out_gradient):
    arrays, given, out, log_normalizer = saved
    return _map_rows(plan, _run_backward, arrays, given, out, log_normalizer, out_gradient), None


attend.defvjp(_attend_forward, _attend_backward)


def attend_with_gradients(plan: Plan, arrays: Arrays, given: Given, out_gradient) -> tuple[Array, Arrays]:
    """Output of `attend` together with the cotangents of `arrays`, given that of the output.

    They take the places of `out_gradient` and `arrays`, some rows after others.
    """

    def in_place(differentiated, given):
        out, gradients = _run_rows(plan, _run_both, (differentiated[0], given, differentiated[1]))
        return gradients, out

    (arrays, given, out_gradient), restore = _flatten_rows(arrays, given, out_gradient)
    size = _rows_at_once(plan, arrays, given)
    gradients, out = chunking.replace_chunks(in_place, (arrays, out_gradient), given, size)
    return restore((out, gradients))


def _map_rows(plan: Plan, run, arrays: Arrays, given: Given, *others):
    """Runs a function of the plan and a row, or rows if the operation takes them, over all examples and heads."""
    flat, restore = _flatten_rows(arrays, given, *others)
    size = _rows_at_once(plan, *flat[:2])
    return restore(chunking.map_chunks(partial(_run_rows, plan, run), flat, size, in_axis=0, out_axis=0))


def _rows_at_once(plan: Plan, arrays: Arrays, given: Given) -> int:
    return plan.rows_at_once(arrays, given) if callable(plan.rows_at_once) else plan.rows_at_once


def _flatten_rows(arrays: Arrays, given: Given, *others):
    """Merges the axes of examples and heads; returns the arrays, and the function that separates them again."""
    batch, num_heads, length, _ = arrays.query.shape
    of_tokens = {"mask": given.mask, "documents": given.documents}
    spread = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (batch, num_heads, length)), of_tokens)
    given = given._replace(**spread)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (arrays, given, *others))
    return flat, partial(jax.tree.map, lambda x: x.reshape(batch, num_heads, *x.shape[1:]))


def _run_rows(plan: Plan, run, rows):
    """Runs such a function over an axis of rows; one alone without the cost of a batched gather."""
    if plan.takes_rows:
        return run(plan, *rows)
    if len(rows[0].query) == 1:
        return jax.tree.map(lambda x: x[None], run(plan, *jax.tree.map(lambda x: x[0], rows)))
    return jax.vmap(lambda row: run(plan, *row))(rows)
