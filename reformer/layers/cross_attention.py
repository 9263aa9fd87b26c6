"""Cross attention: the layer of a decoder that attends to a context, such as what an encoder made of a source."""

import dataclasses
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from reformer import sharding
from reformer.config import ReformerConfig
from reformer.layers.attention import Fixed
from reformer.layers.linear import LayerNorm, dense, mlp_chunk
from reformer.ops import cross
from reformer.ops.dropout import dropout, fold, token_numbers
from reformer.ops.lengthwise import chunked_vjp, map_length
from reformer.ops.reversible import Residual
from reformer.ops.stored import mark_costly


class KeysValues(NamedTuple):
    """What a layer makes of the context. It does not depend on the queries."""

    key: Float[Array, "*blocks batch heads source head_dim"]
    value: Float[Array, "*blocks batch heads source head_dim"]


class CrossAttention(nn.Module):
    """The parameters and projections of a cross-attention layer; no biases.

    Only the queries are normalised here: a context comes normalised.
    """

    config: ReformerConfig

    def setup(self):
        """Declares the parts."""
        config = self.config
        heads = (config.num_heads, config.head_dim)
        self.norm = LayerNorm(config)
        self.query = dense(config, heads, use_bias=False)
        self.key = dense(config, heads, use_bias=False)
        self.value = dense(config, heads, use_bias=False)
        self.output = dense(config, config.embed_dim, axis=(-2, -1), use_bias=False)

    def __call__(
        self, x: Float[Array, "batch length embed"], context: Float[Array, "batch source width"]
    ) -> Float[Array, "batch length embed"]:
        """Visits every parameter, to create them."""
        return self.attend(x, self.project(context), None)

    def project(self, context: Float[Array, "batch source width"]) -> KeysValues:
        """The projections of the context to keys and values [batch, heads, source, head_dim]."""
        context = context.astype(self.config.dtype)
        return KeysValues(_heads_first(self.key(context)), _heads_first(self.value(context)))

    def attend(
        self,
        x: Float[Array, "batch length embed"],
        source: KeysValues,
        mask: Bool[Array, "batch source"] | None,
        row: Int[Array, "batch length"] | None = None,
        seed: UInt[Array, ""] | None = None,
    ) -> Float[Array, "batch length embed"]:
        """LayerNorm, queries, attention to the source, output projection and dropout: the residual.

        Args:
          x: a residual stream, or some positions of it.
          source: from `project`.
          mask: True = a real token of the source; None = all are.
          row: number of every token, for dropout.
          seed: of the dropout masks; None = no dropout.
        """
        config = self.config
        rate = 0.0 if seed is None else config.attention_weights_dropout_rate
        query = mark_costly(_heads_first(self.query(self.norm(x).astype(config.dtype))))
        of_weights = fold(seed, 1) if rate else None
        attended = mark_costly(cross.attend(query, *source, mask, dropout_rate=rate, row=row, seed=of_weights))
        out = self.output(jnp.swapaxes(attended, 1, 2))
        if seed is not None:
            out = dropout(out, config.dropout_rate, fold(seed, 0), row)
        return sharding.constrain(out.astype(x.dtype), "act_batch", "act_length", "act_embed")


def _heads_first(x: Float[Array, "batch length heads head_dim"]) -> Float[Array, "batch heads length head_dim"]:
    return sharding.constrain(jnp.swapaxes(x, 1, 2), "act_batch", "act_heads", "act_length", "act_head_dim")


@dataclasses.dataclass(frozen=True)
class CrossAttentionResidual:
    """A cross-attention layer as a residual function; its context is an array, its fixed input a `Fixed`.

    The mask of the fixed input is that of the context. Queries are worked in chunks, of `mlp_chunk_length` or fewer if
    their scores would take too much memory; keys and values are there as a whole, and in the reverse sweep
    their cotangents are.
    """

    config: ReformerConfig

    def apply(self, params, x, onto, context, fixed: Fixed):
        """As `reversible.Residual` has it."""
        source = self._project_all(params, context)

        def attend(common, chunk):
            (params, source), fixed = common
            return self._attend(params, source, fixed, *chunk)

        common, chunk_length = ((params, source), fixed), self._chunk_length(source)
        return map_length(attend, common, (x, token_numbers(x)), chunk_length, onto=onto, common_spec=_specs()), ()

    def undo(self, params, x, onto, context, fixed: Fixed, saved, d_value, d_onto):
        """As `reversible.Residual` has it."""
        del saved
        source = self._project_all(params, context)
        of_both, of_fixed = _specs()
        rebuilt, (d_params, d_source), d_x = chunked_vjp(
            lambda both, fixed, x, row: self._attend(both[0], both[1], fixed, x, row),
            (params, source),
            fixed,
            (x, d_value, token_numbers(x)),
            self._chunk_length(source),
            onto=(onto, d_onto),
            params_spec=of_both,
            fixed_spec=of_fixed,
        )
        _, d_projections, d_context = chunked_vjp(
            lambda params, _, context: self._project(params, context),
            params,
            None,
            (context, d_source),
            mlp_chunk(self.config),
            in_axis=(1, 2),
            out_axis=(2, 1),
        )
        return rebuilt, jax.tree.map(jnp.add, d_params, d_projections), d_x, d_context

    @property
    def _layer(self) -> CrossAttention:
        return CrossAttention(self.config, parent=None)

    def _project(self, params, context) -> KeysValues:
        return self._layer.apply({"params": params}, context, method="project")  # type: ignore[return-value]

    def _attend(self, params, source: KeysValues, fixed: Fixed, x, row):
        return self._layer.apply({"params": params}, x, source, fixed.mask, row, fixed.seed, method="attend")

    def _project_all(self, params, context) -> KeysValues:
        return mark_costly(map_length(self._project, params, context, mlp_chunk(self.config), out_axis=2))

    def _chunk_length(self, source: KeysValues) -> int:
        batch, num_heads, num_keys, _ = source.key.shape
        examples, heads = batch / sharding.num_parts("act_batch"), num_heads / sharding.num_parts("act_heads")
        most = cross.queries_at_once(math.ceil(examples) * math.ceil(heads), num_keys)  # of one device
        return min(most, self.config.mlp_chunk_length or most)


def _specs():
    """Where the parameters and the keys and values lie, and the fixed input."""
    batch = sharding.spec("act_batch")
    return (sharding.EVERYWHERE, batch), Fixed(batch, None, sharding.EVERYWHERE)


def cross_attention_residual(config: ReformerConfig) -> Residual:
    """The layer as the reversible stack takes it."""
    residual = CrossAttentionResidual(config)
    return Residual(residual.apply, residual.undo)
