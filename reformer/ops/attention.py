"""Full, local and LSH self-attention in memory that does not grow with the square of the length.

The public functions take arrays [batch, length, heads, head_dim], as `jax.nn.dot_product_attention`
does. Their gradient is written by hand (see `block`, `chunked` and `full`), so that nothing but the inputs, the
output, the log-normaliser and the permutation is kept for the backward pass.

`attend` and `attend_with_gradients` are the same for code that has its own backward pass: the
reversible layers know the cotangent of the output while they recompute it.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt

from reformer.ops import chunked, chunking, full, fused, hashing, look_ahead
from reformer.ops.dropout import draw_seed, fold
from reformer.ops.masking import SCORE_FILLS, Rule
from reformer.ops.plan import Arrays, Context, Order, Plan, chunked_plan, full_plan
from reformer.ops.sorting import sort_by_bucket
from reformer.ops.stored import store


def full_attention(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch length heads head_dim"] | None,
    value: Float[Array, "batch length heads value_dim"],
    *,
    causal: bool = True,
    mask: Bool[Array, "batch length"] | None = None,
    looks_ahead: bool = False,
    dropout_rate: float = 0.0,
    dropout_rng: PRNGKeyArray | None = None,
    semantics: str = "reformer",
) -> Float[Array, "batch length heads value_dim"]:
    """Ordinary softmax attention, a block of queries at a time.

    Args:
      query: queries, or with `key=None` the shared projection.
      key: keys; scores are q.k / sqrt(head_dim). None = unit vectors of the query, scores q.k, and a
        token attends to itself only if it has nothing else (arXiv 2001.04451, section 2, "Shared-QK").
      value: values.
      causal: attend to the token itself and earlier ones only.
      mask: True = real token; the others are never attended by another token. A query without any key gets 0, or with
        `key=None` its own value.
      looks_ahead: a key gives the value of the token after it, which must be real too. A query sees the keys before
        its own position only, and gets 0 if there is none. Needs `causal`; see `reformer.ops.look_ahead`.
      dropout_rate: of the attention weights.
      dropout_rng: needed for a positive `dropout_rate`.
      semantics: 'reformer', or 'huggingface' for the fill values of their masks.

    Returns:
      The attention output, in the type of `value`.

    Raises:
      ValueError: shapes, sizes, types or rates that make no sense; dropout without `dropout_rng`.
    """
    rule = Rule(causal, key is None, dropout_rate, semantics, looks_ahead=looks_ahead)
    _check(Arrays(query, key, value), mask, rule)
    plan = full_plan(query.shape[1], rule)
    context = Context(mask, None, _seeds(query, dropout_rate, dropout_rng))
    return _swap_heads(attend(plan, _swap_heads(Arrays(query, key, value)), context))


def local_attention(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch length heads head_dim"] | None,
    value: Float[Array, "batch length heads value_dim"],
    *,
    chunk_length: int,
    num_chunks_before: int = 1,
    num_chunks_after: int = 0,
    causal: bool = True,
    mask: Bool[Array, "batch length"] | None = None,
    looks_ahead: bool = False,
    dropout_rate: float = 0.0,
    dropout_rng: PRNGKeyArray | None = None,
    semantics: str = "reformer",
    implementation: str = "plain",
) -> Float[Array, "batch length heads value_dim"]:
    """Attention within a chunk of neighbouring tokens and the chunks around it.

    Args:
      query: as in `full_attention`.
      key: as in `full_attention`.
      value: as in `full_attention`.
      chunk_length: tokens per chunk. The length need not be a multiple of it.
      num_chunks_before: how many chunks before its own a query sees; none beyond the ends.
      num_chunks_after: likewise after.
      causal: as in `full_attention`.
      mask: as in `full_attention`.
      looks_ahead: as in `full_attention`.
      dropout_rate: as in `full_attention`.
      dropout_rng: as in `full_attention`.
      semantics: 'huggingface' makes the windows wrap around and needs a length that is a multiple
        of `chunk_length`.
      implementation: 'plain', or 'pallas' for a fused kernel, which has only the semantics 'reformer'.

    Returns:
      The attention output, in the type of `value`.

    Raises:
      ValueError: as `full_attention`; an indivisible length where windows wrap around; options that
        the implementation does not have.
    """
    rule = Rule(causal, key is None, dropout_rate, semantics, num_chunks_before, num_chunks_after, looks_ahead)
    _check(Arrays(query, key, value), mask, rule, chunk_length)
    plan = chunked_plan(query.shape[1], chunk_length, rule, implementation=implementation)
    context = Context(mask, None, _seeds(query, dropout_rate, dropout_rng))
    return _swap_heads(attend(plan, _swap_heads(Arrays(query, key, value)), context))


def lsh_attention(
    query_key: Float[Array, "batch length heads head_dim"],
    value: Float[Array, "batch length heads value_dim"],
    *,
    rotations: Float[Array, "heads head_dim rounds columns"],
    num_buckets: int | tuple[int, ...],
    chunk_length: int,
    num_chunks_before: int = 1,
    num_chunks_after: int = 0,
    causal: bool = True,
    mask: Bool[Array, "batch length"] | None = None,
    within_bucket: bool = False,
    correct_duplicates: bool = False,
    looks_ahead: bool = False,
    dropout_rate: float = 0.0,
    dropout_rng: PRNGKeyArray | None = None,
    semantics: str = "reformer",
    implementation: str = "plain",
) -> Float[Array, "batch length heads value_dim"]:
    """Attention among tokens that hash alike, with a shared query-key projection.

    Per round: hash, sort by (bucket, position), cut into chunks, attend within the chunk and its
    neighbours, undo the sort. All rounds are one softmax over the keys they show to a query.

    The weights are causal, but *which* earlier keys a query sees depends, through the sort, on the
    buckets of later tokens too.

    Args:
      query_key: the shared projection; keys are its unit vectors.
      value: values.
      rotations: Gaussian, from `reformer.ops.hashing.draw_rotations`; their third axis is the number
        of hash rounds.
      num_buckets: buckets per round, even, or a tuple of even factors.
      chunk_length: tokens per chunk of the sorted list. The length need not be a multiple of it.
      num_chunks_before: how many chunks before its own a query sees; none beyond the round's ends.
      num_chunks_after: likewise after.
      causal: keys up to the query's own position only.
      mask: True = real token. The others go to a bucket of their own and are never attended by another token.
      within_bucket: attend only to keys of the query's own bucket (paper, Eq. 2).
      correct_duplicates: count a key that a query sees in N rounds once instead of N times, by
        subtracting log N from its score (paper, appendix A).
      looks_ahead: a key gives the value of the token after it, as in `full_attention`; no rule of the paper's.
      dropout_rate: of the attention weights.
      dropout_rng: needed for a positive `dropout_rate`.
      semantics: 'huggingface' makes the windows wrap around from round to round, with their fill
        values, and needs a length that is a multiple of `chunk_length`.
      implementation: 'plain', or 'pallas' for a fused kernel, which has only the semantics 'reformer'
        and no `correct_duplicates`.

    Returns:
      The attention output, in the type of `value`.

    Raises:
      ValueError: as `full_attention`; rotations that do not fit; under 'huggingface' an indivisible
        length, `within_bucket` or `correct_duplicates`; options that the implementation does not have.

    Source: arXiv 2001.04451, section 2, "LSH attention", and appendix A.
    """
    rule = Rule(causal, True, dropout_rate, semantics, num_chunks_before, num_chunks_after, looks_ahead)
    _check(Arrays(query_key, None, value), mask, rule, chunk_length)
    if semantics == "huggingface" and (within_bucket or correct_duplicates):
        raise ValueError("within_bucket and correct_duplicates do not exist under semantics='huggingface'.")
    plan = chunked_plan(query_key.shape[1], chunk_length, rule, correct_duplicates, implementation)
    arrays = _swap_heads(Arrays(query_key, None, value))
    order = sort_by_hash(arrays.query, rotations, num_buckets, mask, keep_buckets=within_bucket)
    context = Context(mask, order, _seeds(query_key, dropout_rate, dropout_rng))
    return _swap_heads(attend(plan, arrays, context))


def sort_by_hash(query_key, rotations, num_buckets, mask=None, *, keep_buckets: bool = False) -> Order:
    """Hashes and sorts `query_key` [batch, heads, length, head_dim]; other arguments as in `lsh_attention`.

    Returns:
      Arrays [batch, heads, rounds, length].
    """
    factors = hashing.as_factors(num_buckets)
    buckets = hashing.hash_vectors(query_key, rotations, factors, mask)
    permutation = sort_by_bucket(buckets, math.prod(factors) + (mask is not None))
    return Order(permutation, buckets if keep_buckets else None)


def _check(arrays: Arrays, mask, rule: Rule, chunk_length: int = 1) -> None:
    """Raises ValueError where a public function was called with what it cannot compute."""
    shapes = {name: x.shape for name, x in arrays._asdict().items() if x is not None}
    query, key = shapes["query"], shapes.get("key", shapes["query"])
    for name, shape in shapes.items():
        if len(shape) != 4 or not jnp.issubdtype(getattr(arrays, name).dtype, jnp.floating):
            dtype = getattr(arrays, name).dtype
            raise ValueError(f"{name} {shape} of {dtype} must be [batch, length, heads, head_dim] of a float type.")
    if len({shape[:3] for shape in shapes.values()}) > 1 or key[3] != query[3]:
        described = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"{described}: batch, length and heads must be the same in all, and head_dim in query and key. Repeat "
            "heads that several query heads share."
        )
    if mask is not None and (mask.shape != query[:2] or mask.dtype != bool):
        raise ValueError(f"mask {mask.shape} of {mask.dtype} must be [batch, length] = {query[:2]} of bool.")
    if len({x.dtype for x in jax.tree.leaves(arrays)}) > 1:
        raise ValueError(f"{arrays.query.dtype=} and {arrays.value.dtype=}, and that of the key, must be equal.")
    if rule.semantics not in SCORE_FILLS:
        raise ValueError(f"semantics={rule.semantics!r} must be one of {', '.join(SCORE_FILLS)}.")
    sizes = {"length": (query[1], 1), "chunk_length": (chunk_length, 1)}
    sizes |= {"num_chunks_before": (rule.before, 0), "num_chunks_after": (rule.after, 0)}
    for name, (size, least) in sizes.items():
        if not isinstance(size, int) or size < least:
            raise ValueError(f"{name}={size} must be an integer of at least {least}.")
    if not 0 <= rule.dropout_rate < 1:
        raise ValueError(f"dropout_rate={rule.dropout_rate} must be at least 0 and below 1.")
    if rule.looks_ahead and not (rule.causal and rule.semantics == "reformer"):
        raise ValueError(
            f"looks_ahead=True needs causal=True and semantics='reformer'; found causal={rule.causal} and "
            f"semantics={rule.semantics!r}. Values of later tokens are for nobody else."
        )


def dropout_seeds(seed: UInt[Array, ""], batch: int, num_heads: int) -> UInt[Array, "batch heads"]:
    """A seed for the attention dropout of every head of every example."""
    return fold(seed, jnp.arange(batch * num_heads).reshape(batch, num_heads))


def _seeds(query, dropout_rate: float, dropout_rng):
    if dropout_rate == 0:
        return None
    if dropout_rng is None:
        raise ValueError(f"dropout_rate={dropout_rate} needs dropout_rng. Pass a jax.random key or set the rate to 0.")
    return dropout_seeds(draw_seed(dropout_rng), query.shape[0], query.shape[2])


def _swap_heads(x):
    """Between [batch, length, heads, dim] and [batch, heads, length, dim]."""
    return jax.tree.map(lambda y: jnp.swapaxes(y, 1, 2), x)


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


def _undo(plan: Plan, gradients: Arrays) -> Arrays:
    return look_ahead.undo(gradients) if plan.rule.looks_ahead else gradients


def _run_forward(plan: Plan, arrays: Arrays, context: Context):
    return _module(plan).forward(plan, *_prepare(plan, arrays, context))


def _run_backward(plan: Plan, arrays: Arrays, context: Context, out, log_normalizer, out_gradient) -> Arrays:
    prepared = _prepare(plan, arrays, context)
    return _undo(plan, _module(plan).backward(plan, *prepared, out, log_normalizer, out_gradient))


def _run_both(plan: Plan, arrays: Arrays, context: Context, out_gradient) -> tuple[Array, Arrays]:
    out, gradients = _module(plan).forward_and_backward(plan, *_prepare(plan, arrays, context), out_gradient)
    return out, _undo(plan, gradients)


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
    if context.mask is not None:
        context = context._replace(mask=jnp.broadcast_to(context.mask[:, None], (batch, num_heads, length)))
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (arrays, context, *others))
    return flat, partial(jax.tree.map, lambda x: x.reshape(batch, num_heads, *x.shape[1:]))


def _run_rows(run, rows):
    """Runs a function of one row over an axis of rows; a single row without the cost of a batched gather."""
    if len(rows[0].query) == 1:
        return jax.tree.map(lambda x: x[None], run(*jax.tree.map(lambda x: x[0], rows)))
    return jax.vmap(lambda row: run(*row))(rows)
