"""Full, local and LSH self-attention in memory that does not grow with the square of the length.

Arrays are [batch, length, heads, head_dim], as `jax.nn.dot_product_attention` takes them. What is computed stands in
`planned`, and how in `chunked`, `full` and `fused`.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt

from reformer.ops import hashing
from reformer.ops.dropout import draw_seed, fold
from reformer.ops.masking import SCORE_FILLS, Rule
from reformer.ops.plan import Arrays, Given, Order
from reformer.ops.planned import attend, chunked_plan, full_plan
from reformer.ops.sorting import sort_by_bucket


def full_attention(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch length heads head_dim"] | None,
    value: Float[Array, "batch length heads value_dim"],
    *,
    causal: bool = True,
    mask: Bool[Array, "batch length"] | None = None,
    looks_ahead: bool = False,
    taps: Float[Array, "heads 2"] | None = None,
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
      taps: under `looks_ahead`, how much of the next token's value a key gives, and how much of its own, for every
        head; None = 1 and 0.
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
    given = Given(mask, None, _seeds(query, dropout_rate, dropout_rng))
    return _swap_heads(attend(plan, _heads_first(query, key, value, taps), given))


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
    taps: Float[Array, "heads 2"] | None = None,
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
      taps: as in `full_attention`.
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
    given = Given(mask, None, _seeds(query, dropout_rate, dropout_rng))
    return _swap_heads(attend(plan, _heads_first(query, key, value, taps), given))


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
    taps: Float[Array, "heads 2"] | None = None,
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
      taps: as in `full_attention`.
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
    arrays = _heads_first(query_key, None, value, taps)
    order = sort_by_hash(arrays.query, rotations, num_buckets, mask, keep_buckets=within_bucket)
    given = Given(mask, order, _seeds(query_key, dropout_rate, dropout_rng))
    return _swap_heads(attend(plan, arrays, given))


def sort_by_hash(query_key, rotations, num_buckets, mask=None, *, keep_buckets: bool = False, documents=None) -> Order:
    """Hashes and sorts `query_key` [batch, heads, length, head_dim]; other arguments as in `lsh_attention`.

    With the numbers of `documents` [batch, length], which are below the length, every document has buckets of its own.

    Returns:
      Arrays [batch, heads, rounds, length].
    """
    factors = hashing.as_factors(num_buckets)
    buckets = hashing.hash_vectors(query_key, rotations, factors, mask)
    count, own = math.prod(factors) + (mask is not None), buckets
    if documents is not None:
        own, count = documents[:, None, None] * count + buckets, documents.shape[1] * count
        if count > 2**31:
            raise ValueError(f"{documents.shape[1]} tokens have too many buckets for documents. Lower num_buckets.")
    permutation = sort_by_bucket(own, count)
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
    sizes = {"length": (query[1], 1), "chunk_length": (chunk_length, 1)}
    sizes |= {"num_chunks_before": (rule.before, 0), "num_chunks_after": (rule.after, 0)}
    for name, (size, least) in sizes.items():
        if not isinstance(size, int) or size < least:
            raise ValueError(f"{name}={size} must be an integer of at least {least}.")
    _check_rule(rule)


def _check_rule(rule: Rule) -> None:
    if rule.semantics not in SCORE_FILLS:
        raise ValueError(f"semantics={rule.semantics!r} must be one of {', '.join(SCORE_FILLS)}.")
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


def _heads_first(query, key, value, taps) -> Arrays:
    """The arrays of a public function as `attend` takes them."""
    arrays = _swap_heads(Arrays(query, key, value))
    return arrays if taps is None else arrays._replace(taps=jnp.broadcast_to(taps, (len(query), *taps.shape)))


def _swap_heads(x):
    """Between [batch, length, heads, dim] and [batch, heads, length, dim]."""
    return jax.tree.map(lambda y: jnp.swapaxes(y, 1, 2), x)
