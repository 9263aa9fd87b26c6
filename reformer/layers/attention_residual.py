"""An attention layer as a residual function of a reversible stack."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from reformer import sharding
from reformer.config import ReformerConfig
from reformer.layers.attention import Fixed, SelfAttention, num_buckets, plan_attention, with_taps
from reformer.ops import attention as ops
from reformer.ops import planned
from reformer.ops.dropout import fold, rows
from reformer.ops.lengthwise import map_length
from reformer.ops.plan import Arrays, Context, Order, Plan
from reformer.ops.reversible import Residual, chunked_vjp
from reformer.ops.stored import store


@dataclasses.dataclass(frozen=True)
class AttentionResidual:
    """LayerNorm, projections, attention and output projection; its fixed input is a `Fixed`.

    Projections are computed in chunks of `mlp_chunk_length`, in both passes. An LSH layer saves its
    sort: a bucket that flipped between the passes would make the reverse sweep subtract another
    function's value.

    Attributes:
      config: the model's.
      kind: 'full', 'local' or 'lsh'.
    """

    config: ReformerConfig
    kind: str

    def apply(self, params, x, onto, context, fixed: Fixed):
        """As `reversible.Residual` has it."""
        del context
        projected = self._project_all(params, x)
        plan, attention_context = self._prepare(projected, fixed, None)
        added = self._attend_and_combine(params, onto, projected, plan, attention_context, fixed)
        return added, attention_context.order

    def apply_and_observe(self, observe: Callable[[Arrays, Plan, Context], Any], params, x, onto, fixed: Fixed):
        """`apply`, and what `observe` makes of the projections, the plan and the context of the attention.

        The order of the context holds the buckets, even where attention itself has no use for them.
        """
        projected = self._project_all(params, x)
        plan, seen = self._prepare(projected, fixed, None, keep_buckets=True)
        added = self._attend_and_combine(params, onto, projected, plan, self._without_spare_buckets(seen), fixed)
        return added, observe(projected, plan, seen)

    def undo(self, params, x, onto, context, fixed: Fixed, order: Order | None, cotangent, onto_cotangent):
        """As `reversible.Residual` has it."""
        chunk_length = self.config.mlp_chunk_length
        projected = self._project_all(params, x)
        plan, attention_context = self._prepare(projected, fixed, order)
        of_attended = self._transpose_combine(params, x, projected, fixed, cotangent)
        attended, of_projected = _attend_with_gradients(plan, projected, attention_context, of_attended)
        rebuilt, of_output, _ = chunked_vjp(
            lambda params, seed, attended, row: self._combine(params, attended, row, x.dtype, seed),
            params,
            fixed.seed,
            (attended, cotangent, rows(x)),
            chunk_length,
            in_axis=(2, 1, 1),
            out_axis=(1, 2),
            onto=(onto, None),
        )
        _, of_projections, of_x = chunked_vjp(
            lambda params, _, x: self._project(params, x),
            params,
            None,
            (x, of_projected._replace(taps=None)),
            chunk_length,
            in_axis=(1, 2),
            out_axis=(2, 1),
            onto=(None, onto_cotangent),
        )
        of_params = jax.tree.map(jnp.add, of_output, of_projections)
        if of_projected.taps is not None:
            of_params |= {"taps": jnp.sum(of_projected.taps, axis=0)}
        return rebuilt, of_params, of_x, jax.tree.map(jnp.zeros_like, context)

    @property
    def _layer(self) -> SelfAttention:
        return SelfAttention(self.config, self.kind, parent=None)

    def _project(self, params, x) -> Arrays:
        return self._layer.apply({"params": params}, x, method="project")  # type: ignore[return-value]

    def _combine(self, params, attended, row, dtype, seed):
        return self._layer.apply({"params": params}, attended, dtype, row, seed, method="combine")

    def _project_all(self, params, x) -> Arrays:
        return with_taps(params, store(map_length(self._project, params, x, self.config.mlp_chunk_length, out_axis=2)))

    def _without_spare_buckets(self, context: Context) -> Context:
        """Buckets in a context are the rule that tokens of different ones do not meet."""
        if context.order is None or self.config.lsh_within_bucket:
            return context
        return context._replace(order=context.order._replace(buckets=None))

    def _prepare(
        self, projected: Arrays, fixed: Fixed, order: Order | None, keep_buckets: bool = False
    ) -> tuple[Plan, Context]:
        batch, num_heads, length, _ = projected.query.shape
        plan = plan_attention(self.config, self.kind, length, fixed.seed is not None)
        if order is None and self.kind == "lsh" and not plan.is_full:
            keep_buckets |= self.config.lsh_within_bucket
            order = store(_sort(self.config, projected.query, fixed, keep_buckets))
        seeds = None
        if plan.rule.dropout_rate:
            seeds = ops.dropout_seeds(fold(fixed.seed, 1), batch, num_heads)
        return plan, Context(fixed.mask, order, seeds, fixed.documents)

    def _attend_and_combine(self, params, onto, projected: Arrays, plan: Plan, context: Context, fixed: Fixed):
        return map_length(
            lambda whole, pair: self._combine(whole[0], pair[0], pair[1], onto.dtype, whole[1]),
            (params, fixed.seed),
            (_attend(plan, projected, context), rows(onto)),
            self.config.mlp_chunk_length,
            in_axis=(2, 1),
            onto=onto,
        )

    def _transpose_combine(self, params, x, projected: Arrays, fixed: Fixed, cotangent):
        """The cotangent of what was attended: `combine` is linear, so it is known before the attention is."""

        def transpose(whole, chunk):
            (params, seed), (cotangent, row) = whole, chunk
            batch, length = row.shape
            shape = (batch, self.config.num_heads, length, self.config.head_dim)
            unused = jnp.zeros(shape, projected.value.dtype)
            _, vjp = jax.vjp(lambda y: self._combine(params, y, row, x.dtype, seed), unused)
            return vjp(cotangent)[0]

        whole, chunk_length = (params, fixed.seed), self.config.mlp_chunk_length
        return map_length(transpose, whole, (cotangent, rows(x)), chunk_length, out_axis=2)


def attention_residual(config: ReformerConfig, kind: str) -> Residual:
    """The layer as the reversible stack takes it."""
    of_layer = AttentionResidual(config, kind)
    return Residual(of_layer.apply, of_layer.undo)


def _specs():
    """Where arrays by example, by example and head, and by head lie, and the context of attention."""
    batch, batch_heads = sharding.spec("act_batch"), sharding.spec("act_batch", "act_heads")
    return batch, batch_heads, sharding.spec("act_heads"), Context(batch, batch_heads, batch_heads, batch)


def _sort(config: ReformerConfig, query_key, fixed: Fixed, keep_buckets: bool) -> Order:
    """Hashes and sorts, every head and example on its own device."""
    factors = num_buckets(query_key.shape[2], config)

    def sort(query_key, rotations, mask, documents):
        return ops.sort_by_hash(query_key, rotations, factors, mask, keep_buckets=keep_buckets, documents=documents)

    batch, batch_heads, heads, _ = _specs()
    run = sharding.shard_map(sort, (batch_heads, heads, batch, batch), batch_heads)
    return run(query_key, fixed.rotations, fixed.mask, fixed.documents)


def _attend(plan: Plan, projected: Arrays, context: Context):
    _, batch_heads, _, of_context = _specs()
    run = sharding.shard_map(
        lambda arrays, context: planned.attend(plan, arrays, context),
        (batch_heads, of_context),
        batch_heads,
        check_axes=not plan.is_fused,
    )
    return run(projected, context)


def _attend_with_gradients(plan: Plan, projected: Arrays, context: Context, out_gradient):
    _, batch_heads, _, of_context = _specs()
    run = sharding.shard_map(
        lambda arrays, context, gradient: planned.attend_with_gradients(plan, arrays, context, gradient),
        (batch_heads, of_context, batch_heads),
        batch_heads,
        check_axes=not plan.is_fused,
    )
    return run(projected, context, out_gradient)
