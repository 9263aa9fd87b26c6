"""Dense layers and layer normalisation as all layers use them."""

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from reformer.config import ReformerConfig
from reformer.ops import linear
from reformer.ops.lengthwise import Automatic, ChunkLength


def dense(config: ReformerConfig, features: int | tuple[int, ...], **kwargs) -> nn.DenseGeneral:
    """A dense layer in the model's types, with the products of `ops.linear`.

    Args:
      config: the model's.
      features: what the layer gives for every token, perhaps on several axes.
      **kwargs: as `nn.DenseGeneral` has them.
    """
    kwargs.setdefault("kernel_init", nn.initializers.glorot_uniform())
    return nn.DenseGeneral(
        features,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
        dot_general=linear.dot_general,
        promote_dtype=_promote_all_but_kernel,
        **kwargs,
    )


def _promote_all_but_kernel(*arrays, dtype=None, inexact=True):
    """Brings the inputs and the bias of a dense layer to a type; the product itself does that with the kernel."""
    x, kernel, bias = arrays
    x, bias = promote_dtype(x, bias, dtype=dtype, inexact=inexact)
    return [x, kernel, bias]


def mlp_chunk(config: ReformerConfig) -> ChunkLength:
    """`mlp_chunk_length`, or what is used when it is None: ordinary autodiff would store what the chunks leave."""
    if config.mlp_chunk_length is not None or not config.reversible:
        return config.mlp_chunk_length
    return Automatic(max(config.mlp_dim, config.embed_dim, config.num_heads * config.head_dim))


class LayerNorm(nn.Module):
    """LayerNorm in at least float32, whatever the compute type."""

    config: ReformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*tokens features"]) -> Float[Array, "*tokens features"]:
        """Normalises, scales and shifts every token."""
        shape, dtype = x.shape[-1:], jnp.dtype(self.config.param_dtype)
        scale = self.param("scale", nn.initializers.ones, shape, dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, dtype)
        return linear.layer_norm(self.config.layer_norm_epsilon, x, scale, bias)
