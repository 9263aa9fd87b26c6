"""Position-wise feed-forward layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt

from reformer.config import ReformerConfig
from reformer.layers.linear import LayerNorm, dense, mlp_chunk
from reformer.ops.dropout import dropout, fold
from reformer.ops.reversible import Residual, position_wise
from reformer.ops.stored import mark_costly
from reformer.sharding import constrain


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU by erf, computed in at least float32; the result has the type of `x`.

    `jax.nn.gelu` takes erfc, which is five times slower on CPU with its gradient.
    """
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
        token_number: Int[Array, "batch length"] | None = None,
        seed: UInt[Array, ""] | None = None,
    ) -> Float[Array, "batch length embed"]:
        """Applies the layer.

        Args:
          x: a residual stream.
          token_number: as in `dropout.dropout`; needed with a seed.
          seed: of the dropout masks; None = no dropout.

        Returns:
          The residual, in the type of `x`.
        """
        config = self.config
        rate = 0.0 if seed is None else config.dropout_rate
        normed = LayerNorm(config, name="norm")(x).astype(config.dtype)
        hidden = dense(config, config.mlp_dim, name="hidden")(normed)
        hidden = mark_costly(constrain(hidden, "act_batch", "act_length", "act_mlp"))
        if rate:
            hidden = dropout(hidden, rate, fold(seed, 0), token_number)
        hidden = ACTIVATIONS[config.activation](hidden)
        out = dense(config, config.embed_dim, name="output")(hidden)
        if rate:
            out = dropout(out, rate, fold(seed, 1), token_number)
        return out.astype(x.dtype)


def feed_forward_residual(config: ReformerConfig) -> Residual:
    """The layer as a residual function of a stack.

    Args:
      config: the model's.

    Returns:
      A function whose fixed input is a dropout seed (a uint32 scalar) or None.
    """
    layer = FeedForward(config, parent=None)

    def run(params, x, token_number, seed):
        return layer.apply({"params": params}, x, token_number, seed)

    return position_wise(run, mlp_chunk(config))
