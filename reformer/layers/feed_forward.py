"""Position-wise feed-forward layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt

from reformer.config import ReformerConfig
from reformer.layers.linear import LayerNorm, dense
from reformer.ops.dropout import dropout, fold
from reformer.ops.reversible import Residual, position_wise
from reformer.ops.stored import store
from reformer.sharding import constrain


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU by erf; `jax.nn.gelu` takes erfc, which is five times slower on CPU with its gradient."""
    wide = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


class FeedForward(nn.Module):
    """LayerNorm, dense, dropout, activation, dense, dropout.

    As in trax and Hugging Face, the hidden dropout comes before the activation.
    """

    config: ReformerConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        row: Int[Array, "batch length"] | None = None,
        seed: UInt[Array, ""] | None = None,
    ) -> Float[Array, "batch length embed"]:
        """Applies the layer.

        Args:
          x: a residual stream.
          row: number of every token, for dropout.
          seed: of the dropout masks; None = no dropout.

        Returns:
          The residual, in the type of `x`.
        """
        config = self.config
        rate = 0.0 if seed is None else config.dropout_rate
        normed = LayerNorm(config, name="norm")(x).astype(config.dtype)
        hidden = dense(config, config.mlp_dim, name="hidden")(normed)
        hidden = store(constrain(hidden, "act_batch", "act_length", "act_mlp"))
        if rate:
            hidden = dropout(hidden, rate, fold(seed, 0), row)
        hidden = ACTIVATIONS[config.activation](hidden)
        out = dense(config, config.embed_dim, name="output")(hidden)
        if rate:
            out = dropout(out, rate, fold(seed, 1), row)
        return out.astype(x.dtype)


def feed_forward_residual(config: ReformerConfig) -> Residual:
    """The layer as a residual function of a reversible stack; its fixed input is a dropout seed or None."""
    layer = FeedForward(config, parent=None)

    def run(params, x, row, seed):
        return layer.apply({"params": params}, x, row, seed)

    return position_wise(run, config.mlp_chunk_length)
