"""What the attention of one row does, asked of the attention operations themselves: a row is one head of one example.

Nothing here computes weights of its own. Attention is a weighted mean of whatever stands in the place of the values:
where the values say which keys belong to a set, its output is the weight that falls on the set.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from reformer.ops import block as block_ops
from reformer.ops import sorting
from reformer.ops.block import Block
from reformer.ops.masking import NO_KEY_BELOW, SCORE_FILLS, Pairs, Tokens, Window
from reformer.ops.plan import Arrays, Given, Plan, unit_keys

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
      far: on keys that a local layer would not show.
      far_seen: of those alone, the share on the ones that the layer shows, by number of rounds.
      far_local: the share on the ones in local windows of the same size, by number of rounds.
      far_random: the share if all keys had the same weight, by number of rounds.
      near: of the keys that the layer shows, by count, the share that a local layer shows too, by number of rounds.
    """

    seen: Float[Array, "*heads counts"]
    local: Float[Array, "*heads counts"]
    random: Float[Array, "*heads counts"]
    num_effective_keys: Float[Array, "*heads"]
    far: Float[Array, "*heads"]
    far_seen: Float[Array, "*heads counts"]
    far_local: Float[Array, "*heads counts"]
    far_random: Float[Array, "*heads counts"]
    near: Float[Array, "*heads counts"]


def picture(
    plan: Plan, arrays: Arrays, given: Given, num_tokens: int, num_pixels: int
) -> Float[Array, "pixels pixels"]:
    """The attention weights, queries down and keys across, summed over pixels.

    Args:
      plan: of the attention; of an operation that works on a row.
      arrays: query and key [length, head_dim]; the value is not used.
      given: mask and order of the row.
      num_tokens: the real tokens; what lies behind them is left out.
      num_pixels: of each side, at most `num_tokens`; a pixel holds equally many tokens, up to one.

    Returns:
      Sums of weights. A row of pixels sums to the number of its queries that have a key.
    """
    position = jnp.arange(arrays.query.shape[0])
    pixel = jnp.where(position < num_tokens, position * num_pixels // num_tokens, num_pixels)

    def some_columns(first):
        is_in_column = pixel[:, None] == first + jnp.arange(_BINS_AT_ONCE)[None]
        values = is_in_column.astype(arrays.query.dtype)
        weights = plan.operation.forward(plan, arrays._replace(value=values), given)[0]
        return jax.ops.segment_sum(weights, pixel, num_pixels)  # drops what lies behind the real tokens

    columns = jax.lax.map(some_columns, jnp.arange(0, num_pixels, _BINS_AT_ONCE))
    return jnp.swapaxes(columns, 0, 1).reshape(num_pixels, -1)[:, :num_pixels]


def coverage(
    plan: Plan,
    arrays: Arrays,
    given: Given,
    counts: tuple[int, ...],
    queries: Int[Array, " sample"],
    near: Window,
) -> Coverage:
    """How much of full attention's weight falls on the keys that a layer shows to its queries, if they have any.

    A key counts once, in however many rounds it is seen. Under `semantics='huggingface'` the windows are taken to stop
    at the edges: without the chunk that they see there by wrapping around.

    Args:
      plan: of the layer.
      arrays: query and key [length, head_dim]; the value is not used.
      given: mask and order of the row, with at least max(counts) rounds.
      counts: numbers of rounds to measure; a layer without rounds shows the same keys for each.
      queries: positions to average over; full attention is computed for these alone.
      near: what a local layer would show.
    """
    key = unit_keys(arrays.query) if arrays.key is None else arrays.key
    rule = plan.rule._replace(semantics="reformer", dropout_rate=0.0, shows=None)
    tokens = Tokens(jnp.arange(len(key), dtype=jnp.int32), given.mask)
    find_windows = _windows(plan, given, len(key), counts)

    def measure(position):
        windows, is_far = find_windows(position), ~near(position, tokens.position)
        sets = jnp.concatenate([windows, windows & is_far[None], is_far[None]]).astype(key.dtype)  # [4 counts + 1, l]
        # The second query scores all keys alike: what it gives to a window is the window's share of the keys.
        query = jnp.stack([arrays.query[position], jnp.zeros_like(key[0])])
        value = jnp.concatenate([sets.T, key], axis=1)
        pairs = Pairs(Tokens(jnp.stack([position, position])[None]), jax.tree.map(lambda x: x[None], tokens))
        out, log_normalizer = block_ops.forward(rule, Block(query[None], key[None], value[None], pairs))
        shares, (mean_key, _) = out[0, :, : len(sets)], out[0, :, len(sets) :]
        mean_score = query[0] @ mean_key * (1.0 if rule.shared else len(mean_key) ** -0.5)
        entropy = jnp.where(log_normalizer[0, 0] < _ALONE_BELOW, 0, log_normalizer[0, 0] - mean_score)
        return log_normalizer[0, 0] > NO_KEY_BELOW, shares, jnp.exp(entropy)

    has_key, *by_query = jax.lax.map(measure, queries.astype(jnp.int32), batch_size=_QUERIES_AT_ONCE)
    weight = has_key.astype(key.dtype) / jnp.maximum(has_key.sum(), 1)
    (shares, by_number), num_effective_keys = (jnp.tensordot(weight, x, 1) for x in by_query)
    seen, local, far_seen, far_local, (far,) = jnp.split(shares, len(counts) * np.arange(1, 5))
    random, _, far_random, _, (far_by_number,) = jnp.split(by_number, len(counts) * np.arange(1, 5))
    far_parts = (_share(far_seen, far), _share(far_local, far), _share(far_random, far_by_number))
    return Coverage(seen, local, random, num_effective_keys, far, *far_parts, near=1 - _share(far_random, random))


def _share(part, whole):
    return part / jnp.where(whole > 0, whole, 1)


def _windows(plan: Plan, given: Given, length: int, counts: tuple[int, ...]):
    """Returns a function of a position: the keys [2 counts, length] that it sees, and those in local windows."""
    position = jnp.arange(length)
    slots = position[None] if given.order is None else sorting.invert(given.order.permutation)
    chunk_length = length if plan.cut is None else plan.cut.chunk_length
    chunks = slots // chunk_length
    larger_chunks = jnp.stack([position // (count * chunk_length) for count in counts])

    def in_window(chunks, query):
        distance = chunks - chunks[:, query][:, None]
        return (distance >= -plan.rule.before) & (distance <= plan.rule.after)

    def find(query):
        in_round = in_window(chunks, query)
        if plan.rule.shows is not None:
            in_round &= plan.rule.shows(query, position)[None]
        if given.order is not None and given.order.buckets is not None:
            in_round &= given.order.buckets == given.order.buckets[:, query][:, None]
        seen = jnp.stack([in_round[:count].any(axis=0) for count in counts])
        return jnp.concatenate([seen, seen if given.order is None else in_window(larger_chunks, query)])

    return find
