"""Attention of sorted tokens in one kernel, which reads every token where it stands; no score leaves the chip.

A program has a tile of sorted slots, whatever the length of the chunks, and visits the slots around it step by step: as
queries it visits keys and keeps a running softmax, as keys it visits the queries that see them. So it makes all of the
cotangents of its tokens, without atomics and without parts that others would have to add up.

On GPUs (Pallas' Triton, which JAX 0.11 deprecates without a date) a program finds its tokens by their positions and
stores what it made there: nothing is gathered before or behind it. Mosaic, for TPUs and for Hopper, cannot index rows
by an array: there the tokens are sorted before. On a CPU both are interpreted, which is slow and meant for tests.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt

from reformer.ops.block import accumulation_dtype
from reformer.ops.dropout import keep_mask
from reformer.ops.kernels import tiles
from reformer.ops.kernels.tiles import Operands, Static, Tile, hide, show
from reformer.ops.masking import NO_KEY_BELOW, SCORE_FILLS, Rule


class Tokens(NamedTuple):
    """Tokens of rows at their positions, and the order in which the rounds sort them.

    Attributes:
      query: of every position.
      key: None = unit vectors of the queries.
      value: of every position.
      place: of every sorted slot the position, or `hide(position)` of a token that may not be attended.
      bucket: of every position; pairs of different buckets are forbidden; None = no such rule.
      scale: what the queries are multiplied by to be keys of length 1; None = keys are given.
      seed: of the dropout masks; None = no dropout.
    """

    query: Float[Array, "rows l d"]
    key: Float[Array, "rows l d"] | None
    value: Float[Array, "rows l e"]
    place: Int[Array, "rows rounds l"]
    bucket: Int[Array, "rows rounds l"] | None = None
    scale: Float[Array, "rows l"] | None = None
    seed: UInt[Array, "rows rounds"] | None = None


class Gradients(NamedTuple):
    """Cotangents of every round at the positions, in the types of the arrays."""

    query: Float[Array, "rows rounds l d"]
    key: Float[Array, "rows rounds l d"] | None
    value: Float[Array, "rows rounds l e"]


class _Side(NamedTuple):
    """What scores and masks know of queries or keys, as columns (what a program has) or rows (what it visits)."""

    position: Array
    reach: Array  # of queries: the last position that they may see
    needed: Array  # of keys: the reach that a query needs to see them
    chunk: Array
    bucket: Array | None
    scale: Array | float
    delta: Array | None
    log_normalizer: Array | None


def forward(
    rule: Rule, chunk_length: int, tokens: Tokens, *, is_sorted: bool
) -> tuple[Float[Array, "rows rounds l e"], Float[Array, "rows rounds l"]]:
    """The attention output of every round, in the type of the values, and the log-normaliser of every query.

    Args:
      rule: who attends to whom.
      chunk_length: slots of a chunk.
      tokens: what attends.
      is_sorted: whether the arrays of tokens stand in the order of the slots, and the results shall do so.
    """
    static = tiles.plan(rule, chunk_length, tokens, is_sorted=is_sorted, num_sums=1)
    operands, num_rounds = _operands(static, tokens), tokens.place.shape[1]
    out_shapes = (
        tiles.result_like(operands.value, num_rounds, tokens.value.dtype),
        tiles.result_like(operands.place, num_rounds, accumulation_dtype(tokens.value.dtype)),
    )
    out, log_normalizer = tiles.launch(_forward_kernel, static, operands, ("keys",), out_shapes)
    length, value_dim = tokens.value.shape[1:]
    return out[:, :, :length, :value_dim], log_normalizer[:, :, :length]


def backward(
    rule: Rule,
    chunk_length: int,
    tokens: Tokens,
    out_gradient: Float[Array, "rows l e"],
    delta: Float[Array, "rows l"],
    log_normalizer: Float[Array, "rows l"],
    *,
    is_sorted: bool,
) -> Gradients:
    """The cotangents that every round gives.

    Args:
      rule: as in `forward`.
      chunk_length: as in `forward`.
      tokens: as in `forward`.
      out_gradient: cotangent of the output.
      delta: rowsum(out_gradient * out), with the output of the whole softmax.
      log_normalizer: of the whole softmax, over all rounds.
      is_sorted: as in `forward`.
    """
    static = tiles.plan(rule, chunk_length, tokens, is_sorted=is_sorted, num_sums=2)
    nothing = -NO_KEY_BELOW  # as the log-normaliser of a query without a key it makes its weights zero
    log_normalizer = jnp.where(log_normalizer > NO_KEY_BELOW, log_normalizer, nothing)
    operands = _operands(static, tokens)._replace(
        out_gradient=tiles.pad_vectors(static, out_gradient.astype(tokens.value.dtype)),
        delta=tiles.pad_slots(static, delta)[:, None],
        log_normalizer=tiles.pad_slots(static, log_normalizer, nothing)[:, None],
    )
    like = partial(tiles.result_like, num_rounds=tokens.place.shape[1], dtype=tokens.value.dtype)
    out_shapes = jax.tree.map(like, Gradients(operands.query, operands.key, operands.value))
    found = tiles.launch(_backward_kernel, static, operands, ("queries", "keys"), out_shapes)
    given = Gradients(tokens.query, tokens.key, tokens.value)
    return jax.tree.map(lambda x, like: x[:, :, : like.shape[1], : like.shape[2]], found, given)


def _operands(static: Static, tokens: Tokens) -> Operands:
    """Pads tokens to whole tiles; an empty slot has a position of its own, behind the last."""
    length = tokens.place.shape[2]
    empty = hide(jnp.arange(length, static.num_slots, dtype=jnp.int32))
    place = jnp.concatenate([tokens.place, jnp.broadcast_to(empty, (*tokens.place.shape[:2], len(empty)))], axis=2)
    vectors = tokens.query, tokens.key, tokens.value
    query, key, value = jax.tree.map(partial(tiles.pad_vectors, static), vectors)
    bucket, scale = jax.tree.map(partial(tiles.pad_slots, static), (tokens.bucket, tokens.scale))
    scale = None if scale is None else scale[:, None]
    seed = None if tokens.seed is None else tokens.seed[:, :, None, None]
    return Operands(query, key, value, place, bucket, scale, seed)


def _forward_kernel(static: Static, refs: Operands, blocks: dict, out, log_normalizer) -> None:
    own = tiles.own_tile(static, refs)
    query, queries = own.vectors(refs.query), _side(static, own, 1)

    def visit_keys(carry, tile: Tile):
        largest, total, summed = carry
        keys, value = _side(static, tile, 0), tile.vectors(tile.refs.value)
        scores, _ = _scores(static, queries, keys, _dot(query, _keys(tile).T))
        new = jnp.maximum(largest, jnp.max(scores, axis=1, keepdims=True))
        weights, shrink = jnp.exp(scores - new), jnp.exp(largest - new)
        dropped = _drop(static.rule, refs, queries, keys, weights).astype(value.dtype)
        total = shrink * total + jnp.sum(weights, axis=1, keepdims=True)
        return new, total, shrink * summed + _dot(dropped, value)

    column, wide = (static.tile, 1), log_normalizer.dtype
    nothing = jnp.full(column, SCORE_FILLS["reformer"][0], wide), jnp.zeros(column, wide)
    summed = jnp.zeros((static.tile, out.shape[-1]), wide)
    largest, total, summed = tiles.visit_tiles(static, refs, blocks, "keys", visit_keys, (*nothing, summed))
    own.store(out, jnp.where(largest > NO_KEY_BELOW, 1 / total, 0) * summed)
    own.store(log_normalizer, (largest + jnp.log(total))[:, 0])


def _backward_kernel(static: Static, refs: Operands, blocks: dict, *results) -> None:
    found = Gradients(*results)
    own, wide = tiles.own_tile(static, refs), accumulation_dtype(found.query.dtype)
    key, value, side = _keys(own), own.vectors(refs.value), _side(static, own, 1)

    def visit_queries(carry, tile: Tile):
        of_key, of_value = carry
        query, out_gradient = tile.vectors(tile.refs.query), tile.vectors(tile.refs.out_gradient)
        products = _dot(key, query.T), _dot(value, out_gradient.T)
        weights, of_scores = _score_gradients(static, refs, _side(static, tile, 0), side, *products)
        of_value += _dot(weights.astype(query.dtype), out_gradient)
        return of_key + _dot(of_scores.astype(query.dtype), query), of_value

    nothing = jnp.zeros(key.shape, wide), jnp.zeros(value.shape, wide)
    of_key, of_value = tiles.visit_tiles(static, refs, blocks, "queries", visit_queries, nothing)
    own.store(found.value, of_value)
    query, out_gradient = own.vectors(refs.query), own.vectors(refs.out_gradient)
    if static.rule.shared:  # the cotangent of unit vectors becomes that of the queries
        vector = query.astype(wide)
        along = jnp.sum(vector * of_key, axis=1, keepdims=True)
        of_query = side.scale * of_key - side.scale**3 * along * vector
    else:
        own.store(found.key, side.scale * of_key)
        of_query = jnp.zeros(query.shape, wide)

    def visit_keys(of_query, tile: Tile):
        keys, key = _side(static, tile, 0), _keys(tile)
        products = _dot(query, key.T), _dot(out_gradient, tile.vectors(tile.refs.value).T)
        _, of_scores = _score_gradients(static, refs, side, keys, *products)
        return of_query + _dot((of_scores * keys.scale).astype(query.dtype), key)

    own.store(found.query, tiles.visit_tiles(static, refs, blocks, "keys", visit_keys, of_query))


def _score_gradients(static: Static, refs: Operands, queries: _Side, keys: _Side, products, of_weights):
    """The weights behind dropout, and the cotangents of the scores, from the products and the weights' cotangents."""
    scores, is_self = _scores(static, queries, keys, products)
    weights = jnp.exp(scores - queries.log_normalizer)
    drop = partial(_drop, static.rule, refs, queries, keys)
    of_scores = weights * (drop(of_weights) - queries.delta)
    return drop(weights), of_scores if is_self is None else jnp.where(is_self, 0, of_scores)


def _scores(static: Static, queries: _Side, keys: _Side, products):
    """Scores as `masking.mask_scores` has them, and where one is replaced because query and key are the same token."""
    allowed = queries.reach >= keys.needed
    if not static.fits:
        distance = keys.chunk - queries.chunk
        allowed &= (distance >= -static.rule.before) & (distance <= static.rule.after)
    if queries.bucket is not None:
        allowed &= queries.bucket == keys.bucket
    forbidden_fill, self_fill = SCORE_FILLS["reformer"]
    scores = jnp.where(allowed, products * keys.scale, forbidden_fill)
    if not static.rule.replaces_self:
        return scores, None
    is_self = queries.position == keys.position
    return jnp.where(is_self, self_fill, scores), is_self


def _drop(rule: Rule, refs: Operands, queries: _Side, keys: _Side, x):
    """Attention dropout with the mask of the plain path; a linear map of `x`, so also its own transpose."""
    if rule.dropout_rate == 0:
        return x
    keep = keep_mask(refs.seed[0, 0], queries.position, keys.position, rule.dropout_rate)
    return jnp.where(keep, x / (1 - rule.dropout_rate), 0)


def _side(static: Static, tile: Tile, axis: int) -> _Side:
    """As columns for `axis` 1, as rows for 0."""
    rule, refs, position = static.rule, tile.refs, show(tile.place)
    if not rule.causal:
        reach = jnp.full_like(position, tiles.NEVER - 1)
    else:
        reach = position - 1 if rule.looks_ahead else position
    needed = jnp.where(tile.place >= 0, position, tiles.NEVER)
    chunk = (tile.first + jax.lax.iota(jnp.int32, len(position))) // static.chunk_length
    numbers = jax.tree.map(lambda ref: ref[tile.index], (refs.bucket, refs.scale, refs.delta, refs.log_normalizer))
    side = _Side(position, reach, needed, chunk, *numbers)
    side = jax.tree.map(lambda x: jnp.expand_dims(x, axis), side)
    return side if rule.shared else side._replace(scale=static.head_dim**-0.5)


def _keys(tile: Tile):
    return tile.vectors(tile.refs.query if tile.refs.key is None else tile.refs.key)


def _dot(a, b):
    return jnp.dot(a, b, preferred_element_type=accumulation_dtype(a.dtype))
