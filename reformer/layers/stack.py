"""The stack of layers: Linen creates the stacked parameters, pure functions run them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reformer.config import ReformerConfig
from reformer.layers.attention import SelfAttention
from reformer.layers.attention_residual import AttentionResidual, attention_residual
from reformer.layers.feed_forward import FeedForward, feed_forward_residual
from reformer.ops.plan import Arrays, Context, Plan
from reformer.ops.reversible import Residual, reversible_scan_blocks, scan_blocks

Observer = Callable[[int, Arrays, Plan, Context], Any]  # the first is the number of the layer within the pattern


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
    scan = reversible_scan_blocks if config.reversible else scan_blocks
    return scan(residual_functions(config), _in_order(config, params), x, x, (), fixed)


def observe_stack(
    config: ReformerConfig,
    params,
    x: Float[Array, "batch length embed"],
    fixed,
    observe: Observer,
):
    """Runs all blocks forward and looks into the attention of every layer.

    Args:
      config: the model's.
      params: as in `run_stack`.
      x: as in `run_stack`.
      fixed: as in `run_stack`.
      observe: (number of the layer within the pattern, projections, plan, context) -> pytree of arrays.

    Returns:
      Both streams, and for every layer of the pattern what `observe` returned, stacked over blocks.
    """
    pattern = config.attention_pattern
    feed_forward = feed_forward_residual(config)

    def run_block(streams, block):
        params, fixed = block
        x1, x2 = streams
        seen = []
        for i, kind in enumerate(pattern):
            attention = AttentionResidual(config, kind)
            added, saw = attention.apply_and_observe(partial(observe, i), params[2 * i], x2, x1, fixed[2 * i])
            x1, x2 = x2, added
            x1, x2 = x2, feed_forward.apply(params[2 * i + 1], x2, x1, (), fixed[2 * i + 1])[0]
            seen.append(saw)
        return (x1, x2), tuple(seen)

    return jax.lax.scan(run_block, (x, x), (_in_order(config, params), fixed))


def _in_order(config: ReformerConfig, params) -> tuple:
    """The parameters of the residual functions of a block, stacked over blocks."""
    layers = [params[f"layer_{i}"] for i in range(len(config.attention_pattern))]
    return tuple(layer[part] for layer in layers for part in ("attention", "feed_forward"))


def stack_over_blocks(x: jax.Array | None, num_blocks: int):
    """Repeats an input that is the same for all blocks, for the scan over them."""
    return None if x is None else jnp.broadcast_to(x[None], (num_blocks, *x.shape))
