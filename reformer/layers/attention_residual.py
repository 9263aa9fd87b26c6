"""An attention layer as a residual function of a reversible stack."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from reformer import sharding
from reformer.config import ReformerConfig
from reformer.layers.attention import Fixed, SelfAttention, with_taps
from reformer.layers.kinds import KINDS, Kind
from reformer.layers.linear import mlp_chunk
from reformer.ops import attention as ops
from reformer.ops import planned
from reformer.ops.dropout import fold, token_numbers
from reformer.ops.lengthwise import chunked_vjp, map_length
from reformer.ops.plan import Arrays, Given, Order, Plan
from reformer.ops.reversible import Residual
from reformer.ops.stored import mark_costly


@dataclasses.dataclass(frozen=True)
class AttentionResidual:
    """LayerNorm, projections, attention and output projection; its fixed input is a `Fixed`.

    Projections are computed in chunks of `mlp_chunk_length`, in both passes. A layer that hashes saves
    its sort: a bucket that flipped between the passes would make the reverse sweep subtract another
    function's value.

    Attributes:
      config: the model's.
      kind: a name that `attention_pattern` may hold.
      observe: what the forward pass saves instead of the sort, made of the projections, the plan and what else the
        attention is given. Its order holds the buckets, even where attention itself has no use for them. None = the
        sort is saved.
    """

    config: ReformerConfig
    kind: str
    observe: Callable[[Arrays, Plan, Given], Any] | None = None

    def apply(self, params, x, onto, context, fixed: Fixed):
        """As `reversible.Residual` has it."""
        del context
        projected = self._project_all(params, x)
        plan, seen = self._prepare(projected, fixed, None, keep_buckets=self.observe is not None)
        added = self._attend_and_combine(params, onto, projected, plan, self._without_spare_buckets(seen), fixed)
        return added, seen.order if self.observe is None else self.observe(projected, plan, seen)

    def undo(self, params, x, onto, context, fixed: Fixed, order: Order | None, d_value, d_onto):
        """As `reversible.Residual` has it."""
        chunk_length = mlp_chunk(self.config)
        projected = self._project_all(params, x)
        plan, given = self._prepare(projected, fixed, order)
        d_attended = self._transpose_combine(params, x, projected, fixed, d_value)
        attended, d_projected = _attend_with_gradients(plan, projected, given, d_attended)
        rebuilt, d_output, _ = chunked_vjp(
            lambda params, seed, attended, row: self._combine(params, attended, row, x.dtype, seed),
            params,
            fixed.seed,
            (attended, d_value, token_numbers(x)),
            chunk_length,
            in_axis=(2, 1, 1),
            out_axis=(1, 2),
            onto=(onto, None),
        )
        _, d_projections, d_x = chunked_vjp(
            lambda params, _, x: self._project(params, x),
            params,
            None,
            (x, d_projected._replace(taps=None)),
            chunk_length,
            in_axis=(1, 2),
            out_axis=(2, 1),
            onto=(None, d_onto),
        )
        d_params = jax.tree.map(jnp.add, d_output, d_projections)
        if d_projected.taps is not None:
            d_params |= {"taps": jnp.sum(d_projected.taps, axis=0)}
        return rebuilt, d_params, d_x, jax.tree.map(jnp.zeros_like, context)

    @property
    def _layer(self) -> SelfAttention:
        return SelfAttention(self.config, self.kind, parent=None)

    def _project(self, params, x) -> Arrays:
        return self._layer.apply({"params": params}, x, method="project")  # type: ignore[return-value]

    def _combine(self, params, attended, row, dtype, seed):
        return self._layer.apply({"params": params}, attended, dtype, row, seed, method="combine")

    def _project_all(self, params, x) -> Arrays:
        projected = map_length(self._project, params, x, mlp_chunk(self.config), out_axis=2)
        return with_taps(params, mark_costly(projected))

    def _without_spare_buckets(self, given: Given) -> Given:
        """Buckets in an order are the rule that tokens of different ones do not meet."""
        if given.order is None or KINDS[self.kind].within_bucket(self.config):
            return given
        return given._replace(order=given.order._replace(buckets=None))

    def _prepare(
        self, projected: Arrays, fixed: Fixed, order: Order | None, keep_buckets: bool = False
    ) -> tuple[Plan, Given]:
        batch, num_heads, length, _ = projected.query.shape
        kind = KINDS[self.kind]
        plan = kind.plan(self.config, length, fixed.seed is not None)
        if order is None and kind.is_hashed and fixed.rotations is not None:
            keep_buckets |= kind.within_bucket(self.config)
            order = mark_costly(_sort(kind, self.config, projected.query, fixed, keep_buckets))
        seeds = None
        if plan.rule.dropout_rate:
            seeds = ops.dropout_seeds(fold(fixed.seed, 1), batch, num_heads)
        return plan, Given(fixed.mask, order, seeds, fixed.documents)

    def _attend_and_combine(self, params, onto, projected: Arrays, plan: Plan, given: Given, fixed: Fixed):
        return map_length(
            lambda common, pair: self._combine(common[0], pair[0], pair[1], onto.dtype, common[1]),
            (params, fixed.seed),
            (_attend(plan, projected, given), token_numbers(onto)),
            mlp_chunk(self.config),
            in_axis=(2, 1),
            onto=onto,
        )

    def _transpose_combine(self, params, x, projected: Arrays, fixed: Fixed, d_value):
        """The cotangent of what was attended: `combine` is linear, so it is known before the attention is."""

        def transpose(common, chunk):
            (params, seed), (d_value, row) = common, chunk
            batch, length = row.shape
            shape = (batch, self.config.num_heads, length, self.config.head_dim)
            unused = jnp.zeros(shape, projected.value.dtype)
            _, vjp = jax.vjp(lambda y: self._combine(params, y, row, x.dtype, seed), unused)
            return vjp(d_value)[0]

        common, chunk_length = (params, fixed.seed), mlp_chunk(self.config)
        return map_length(transpose, common, (d_value, token_numbers(x)), chunk_length, out_axis=2)


def attention_residual(config: ReformerConfig, kind: str, observe: Callable | None = None) -> Residual:
    """The layer as the reversible stack takes it; with `observe` for the forward pass only."""
    residual = AttentionResidual(config, kind, observe)
    return Residual(residual.apply, residual.undo)


def _specs():
    """Where arrays by example, by example and head, and by head lie, and what attention is given."""
    batch, batch_heads = sharding.spec("act_batch"), sharding.spec("act_batch", "act_heads")
    return batch, batch_heads, sharding.spec("act_heads"), Given(batch, batch_heads, batch_heads, batch)


def _sort(kind: Kind, config: ReformerConfig, query, fixed: Fixed, keep_buckets: bool) -> Order:
    """Hashes and sorts, every head and example on its own device."""
    batch, batch_heads, heads, _ = _specs()

    def sort(query, rotations, mask, documents):
        return kind.sort(config, query, rotations, mask, keep_buckets, documents)

    run = sharding.shard_map(sort, (batch_heads, heads, batch, batch), batch_heads)
    return run(query, fixed.rotations, fixed.mask, fixed.documents)


def _attend(plan: Plan, projected: Arrays, given: Given):
    _, batch_heads, _, of_given = _specs()
    attend, specs = partial(planned.attend, plan), (batch_heads, of_given)
    return sharding.shard_map(attend, specs, batch_heads, check_axes=not plan.takes_rows)(projected, given)


def _attend_with_gradients(plan: Plan, projected: Arrays, given: Given, out_gradient):
    _, batch_heads, _, of_given = _specs()
    attend, specs = partial(planned.attend_with_gradients, plan), (batch_heads, of_given, batch_heads)
    run = sharding.shard_map(attend, specs, batch_heads, check_axes=not plan.takes_rows)
    return run(projected, given, out_gradient)
