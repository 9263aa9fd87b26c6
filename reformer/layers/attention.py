"""The parameters and projections of a self-attention layer."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from reformer import sharding
from reformer.config import ReformerConfig
from reformer.layers.kinds import KINDS
from reformer.layers.linear import LayerNorm, dense
from reformer.ops import look_ahead
from reformer.ops.dropout import dropout, fold
from reformer.ops.plan import Arrays


class Fixed(NamedTuple):
    """What an attention layer receives and does not differentiate.

    Attributes:
      mask: True = real token; None = all.
      rotations: of a layer that hashes.
      seed: of the dropout masks; None = no dropout.
      documents: of every token the number of its document; None = all is one.
    """

    mask: Bool[Array, "batch length"] | None = None
    rotations: Float[Array, "heads head_dim rounds columns"] | None = None
    seed: UInt[Array, ""] | None = None
    documents: Int[Array, "batch length"] | None = None


def with_taps(params, arrays: Arrays) -> Arrays:
    """The projections of a layer, and the taps by which its values look ahead, if it has them; for every example."""
    if "taps" not in params:
        return arrays
    return arrays._replace(taps=jnp.broadcast_to(params["taps"], (len(arrays.value), *params["taps"].shape)))


def _first_taps(rng, shape: tuple[int, ...], dtype) -> Float[Array, "heads 2"]:
    del rng
    return jnp.broadcast_to(jnp.asarray(look_ahead.FIRST_TAPS, dtype), shape)


class SelfAttention(nn.Module):
    """The parameters and projections of an attention layer; no biases."""

    config: ReformerConfig
    kind: str

    def setup(self):
        """Declares the parts."""
        config = self.config
        heads = (config.num_heads, config.head_dim)
        self.norm = LayerNorm(config)
        if KINDS[self.kind].shares_query_key(config):
            self.query_key = dense(config, heads, use_bias=False)
        else:
            self.query = dense(config, heads, use_bias=False)
            self.key = dense(config, heads, use_bias=False)
        self.value = dense(config, heads, use_bias=False)
        if KINDS[self.kind].rule(config).looks_ahead:
            self.taps = self.param("taps", _first_taps, (config.num_heads, 2), jnp.dtype(config.param_dtype))
        self.output = dense(config, config.embed_dim, axis=(-2, -1), use_bias=False)

    def __call__(self, x: Float[Array, "batch length embed"]) -> Float[Array, "batch length embed"]:
        """Visits every parameter, to create them; the stack runs `project`, attention and `combine`."""
        return self.combine(self.project(x).value, x.dtype)

    def project(self, x: Float[Array, "batch length embed"]) -> Arrays:
        """LayerNorm and the projections to query (and key) and value [batch, heads, length, head_dim]."""
        normed = self.norm(x).astype(self.config.dtype)
        if KINDS[self.kind].shares_query_key(self.config):
            projected = Arrays(self.query_key(normed), None, self.value(normed))
        else:
            projected = Arrays(self.query(normed), self.key(normed), self.value(normed))
        heads_first = jax.tree.map(lambda y: jnp.swapaxes(y, 1, 2), projected)
        axes = ("act_batch", "act_heads", "act_length", "act_head_dim")
        return jax.tree.map(lambda y: sharding.constrain(y, *axes), heads_first)

    def combine(
        self,
        attended: Float[Array, "batch heads length head_dim"],
        dtype,
        row: Int[Array, "batch length"] | None = None,
        seed: UInt[Array, ""] | None = None,
    ) -> Float[Array, "batch length embed"]:
        """The output projection and dropout. Linear in `attended`."""
        out = self.output(jnp.swapaxes(attended, 1, 2))
        if seed is not None:
            out = dropout(out, self.config.dropout_rate, fold(seed, 0), row)
        return sharding.constrain(out.astype(dtype), "act_batch", "act_length", "act_embed")
