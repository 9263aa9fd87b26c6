"""The stack of layers: Linen creates the stacked parameters, pure functions run them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reformer.config import ReformerConfig
from reformer.layers.attention import SelfAttention, attention_residual
from reformer.layers.feed_forward import FeedForward, feed_forward_residual
from reformer.ops.reversible import Residual, reversible_scan_blocks, scan_blocks


class Layer(nn.Module):
    """The parameters of one layer: attention and feed-forward."""

    config: ReformerConfig
    kind: str

    def setup(self):
        """Declares the parts."""
        self.attention = SelfAttention(self.config, self.kind)
        self.feed_forward = FeedForward(self.config)

    def __call__(self, x: Float[Array, "batch length embed"]) -> Float[Array, "batch length embed"]:
        """Visits every parameter, to create them."""
        return self.feed_forward(self.attention(x))


class Block(nn.Module):
    """The parameters of one period of `attention_pattern`."""

    config: ReformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "batch length embed"]) -> Float[Array, "batch length embed"]:
        """Visits every parameter, to create them."""
        for i, kind in enumerate(self.config.attention_pattern):
            x = Layer(self.config, kind, name=f"layer_{i}")(x)
        return x


def stacked_blocks(config: ReformerConfig) -> nn.Module:
    """A module with the parameters of all blocks, stacked on axis 0 and initialised block by block."""
    blocks = nn.vmap(
        Block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=None,
        axis_size=config.num_blocks,
    )
    return blocks(config)


def residual_functions(config: ReformerConfig) -> tuple[Residual, ...]:
    """The residual functions of one block: attention and feed-forward of every layer of the pattern."""
    functions = []
    for kind in config.attention_pattern:
        functions += [attention_residual(config, kind), feed_forward_residual(config)]
    return tuple(functions)


def run_stack(config: ReformerConfig, params, x: Float[Array, "batch length embed"], fixed):
    """Runs all blocks from two copies of `x`.

    Args:
      config: the model's.
      params: the parameters that `stacked_blocks` made.
      x: embedded tokens.
      fixed: for every residual function of a block its fixed input, stacked over blocks.

    Returns:
      Both streams.
    """
    in_order = tuple(
        params[f"layer_{i}"][part]
        for i in range(len(config.attention_pattern))
        for part in ("attention", "feed_forward")
    )
    scan = reversible_scan_blocks if config.reversible else scan_blocks
    return scan(residual_functions(config), in_order, x, x, (), fixed)


def stack_over_blocks(x: jax.Array | None, num_blocks: int):
    """Repeats an input that is the same for all blocks, for the scan over them."""
    return None if x is None else jnp.broadcast_to(x[None], (num_blocks, *x.shape))
