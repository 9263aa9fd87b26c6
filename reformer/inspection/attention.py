"""What the attention of one row does, asked of the attention operations themselves: a row is one head of one example.

Nothing here computes weights of its own. Attention is a weighted mean of whatever stands in the place of the values:
where the values say which keys belong to a set, its output is the weight that falls on the set.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from reformer.ops import block as block_ops
from reformer.ops import chunked, full, sorting
from reformer.ops.block import Block
from reformer.ops.masking import NO_KEY_BELOW, SCORE_FILLS, Pairs, Tokens
from reformer.ops.plan import Arrays, Context, Plan, unit_keys

_BINS_AT_ONCE = 64  # as wide as a head's values: memory grows with the length, not with the picture
_QUERIES_AT_ONCE = 32
_ALONE_BELOW = SCORE_FILLS["reformer"][1] / 2  # the log-normaliser of a token that has nothing but itself


class Coverage(NamedTuple):
    """Shares of the weight that full attention with the same queries and keys would give, means over queries.

    Attributes:
      seen: on the keys that the layer shows to a query, by number of rounds.
      local: on the keys of local windows of the same size, by number of rounds.
      random: on as many keys chosen at random, by number of rounds.
      num_effective_keys: exp of the entropy of full attention's weights.
    """

    seen: Float[Array, "*heads counts"]
    local: Float[Array, "*heads counts"]
    random: Float[Array, "*heads counts"]
    num_effective_keys: Float[Array, "*heads"]


def picture(
    plan: Plan, arrays: Arrays, context: Context, num_tokens: int, num_pixels: int
) -> Float[Array, "pixels pixels"]:
    """The attention weights, queries down and keys across, summed over pixels.

    Args:
      plan: of the attention.
      arrays: query and key [length, head_dim]; the value is not used.
      context: mask and order of the row.
      num_tokens: the real tokens; what lies behind them is left out.
      num_pixels: of each side, at most `num_tokens`; a pixel holds equally many tokens, up to one.

    Returns:
      Sums of weights. A row of pixels sums to the number of its queries that have a key.
    """
    position = jnp.arange(arrays.query.shape[0])
    pixel = jnp.where(position < num_tokens, position * num_pixels // num_tokens, num_pixels)
    attend = full.forward if plan.is_full else chunked.forward

    def some_columns(first):
        is_in_column = pixel[:, None] == first + jnp.arange(_BINS_AT_ONCE)[None]
        weights = attend(plan, arrays._replace(value=is_in_column.astype(arrays.query.dtype)), context)[0]
        return jax.ops.segment_sum(weights, pixel, num_pixels)  # drops what lies behind the real tokens

    columns = jax.lax.map(some_columns, jnp.arange(0, num_pixels, _BINS_AT_ONCE))
    return jnp.swapaxes(columns, 0, 1).reshape(num_pixels, -1)[:, :num_pixels]


def coverage(
    plan: Plan, arrays: Arrays, context: Context, counts: tuple[int, ...], queries: Int[Array, " sample"]
) -> Coverage:
    """How much of full attention's weight falls on the keys that a layer shows to its queries, if they have any.

    A key counts once, in however many rounds it is seen. Under `semantics='huggingface'` the windows are taken to stop
    at the edges: without the chunk that they see there by wrapping around.

    Args:
      plan: of the layer.
      arrays: query and key [length, head_dim]; the value is not used.
      context: mask and order of the row, with at least max(counts) rounds.
      counts: numbers of rounds to measure; a layer without rounds shows the same keys for each.
      queries: positions to average over; full attention is computed for these alone.
    """
    key = unit_keys(arrays.query) if arrays.key is None else arrays.key
    rule = plan.rule._replace(semantics="reformer", dropout_rate=0.0)
    tokens = Tokens(jnp.arange(len(key), dtype=jnp.int32), context.mask)
    find_windows = _windows(plan, context, len(key), counts)

    def measure(position):
        windows = find_windows(position).astype(key.dtype)  # [2 counts, l]
        # The second query scores all keys alike: what it gives to a window is the window's share of the keys.
        query = jnp.stack([arrays.query[position], jnp.zeros_like(key[0])])
        value = jnp.concatenate([windows.T, key], axis=1)
        pairs = Pairs(Tokens(jnp.stack([position, position])[None]), jax.tree.map(lambda x: x[None], tokens))
        out, log_normalizer = block_ops.forward(rule, Block(query[None], key[None], value[None], pairs))
        seen, local, mean_key = jnp.split(out[0, 0], (len(counts), 2 * len(counts)))
        mean_score = query[0] @ mean_key * (1.0 if rule.shared else len(mean_key) ** -0.5)
        entropy = jnp.where(log_normalizer[0, 0] < _ALONE_BELOW, 0, log_normalizer[0, 0] - mean_score)
        has_key = log_normalizer[0, 0] > NO_KEY_BELOW
        return has_key, Coverage(seen, local, out[0, 1, : len(counts)], jnp.exp(entropy))

    has_key, by_query = jax.lax.map(measure, queries.astype(jnp.int32), batch_size=_QUERIES_AT_ONCE)
    count = jnp.maximum(has_key.sum(), 1)
    return jax.tree.map(lambda x: jnp.einsum("q,q...->...", has_key.astype(x.dtype), x) / count, by_query)


def _windows(plan: Plan, context: Context, length: int, counts: tuple[int, ...]):
    """Returns a function of a position: the keys [2 counts, length] that it sees, and those in local windows."""
    position = jnp.arange(length)
    slots = position[None] if context.order is None else sorting.invert(context.order.permutation)
    chunk_length = length if plan.is_full else plan.cut.chunk_length
    chunks = slots // chunk_length
    larger_chunks = jnp.stack([position // (count * chunk_length) for count in counts])

    def in_window(chunks, query):
        distance = chunks - chunks[:, query][:, None]
        return (distance >= -plan.rule.before) & (distance <= plan.rule.after)

    def find(query):
        in_round = in_window(chunks, query)
        if context.order is not None and context.order.buckets is not None:
            in_round &= context.order.buckets == context.order.buckets[:, query][:, None]
        seen = jnp.stack([in_round[:count].any(axis=0) for count in counts])
        return jnp.concatenate([seen, seen if context.order is None else in_window(larger_chunks, query)])

    return find
