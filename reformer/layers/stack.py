"""The stack of layers: Linen creates the stacked parameters, pure functions run them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from reformer.config import ReformerConfig
from reformer.layers.attention import SelfAttention
from reformer.layers.attention_residual import attention_residual
from reformer.layers.cross_attention import CrossAttention, cross_attention_residual
from reformer.layers.feed_forward import FeedForward, feed_forward_residual
from reformer.ops.plan import Arrays, Given, Plan
from reformer.ops.reversible import Residual, Stream, Streams, reversible_scan_blocks, run_blocks, scan_blocks

Observer = Callable[[int, Arrays, Plan, Given], Any]  # the first is the number of the layer within the pattern


class Layer(nn.Module):
    """The parameters of one layer: attention, cross attention if the model has it, and feed-forward."""

    config: ReformerConfig
    kind: str

    def setup(self):
        """Declares the parts."""
        self.attention = SelfAttention(self.config, self.kind)
        if self.config.cross_attention:
            self.cross_attention = CrossAttention(self.config)
        self.feed_forward = FeedForward(self.config)

    def __call__(self, x: Float[Array, "batch length embed"]) -> Float[Array, "batch length embed"]:
        """Visits every parameter, to create them."""
        x = self.attention(x)
        if self.config.cross_attention:
            x = self.cross_attention(x, jnp.zeros((1, 1, self.config.output_dim), x.dtype))
        return self.feed_forward(x)


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
    """A module with the parameters of all blocks, stacked on axis 0 and initialised block by block.

    Args:
      config: the model's.
    """
    blocks = nn.vmap(
        Block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=None,
        axis_size=config.num_blocks,
    )
    return blocks(config)


def residual_functions(config: ReformerConfig, observe: Observer | None = None) -> tuple[Residual, ...]:
    """The residual functions of one block: the parts of every layer of the pattern.

    Args:
      config: the model's.
      observe: what the attention of the layers is to save in the forward pass, which is then all that the functions
        are good for; None = what the reverse sweep needs.
    """
    functions = []
    for i, kind in enumerate(config.attention_pattern):
        functions.append(attention_residual(config, kind, None if observe is None else partial(observe, i)))
        if config.cross_attention:
            functions.append(cross_attention_residual(config))
        functions.append(feed_forward_residual(config))
    return tuple(functions)


def parts(config: ReformerConfig) -> tuple[str, ...]:
    """The parts of a layer in their order, as its parameters name them; each is a residual function."""
    return ("attention", "cross_attention", "feed_forward") if config.cross_attention else ("attention", "feed_forward")


def run_stack(
    config: ReformerConfig,
    params,
    x: Stream,
    fixed: tuple,
    context: Float[Array, "batch source width"] | tuple[()] = (),
    observe: Observer | None = None,
) -> tuple[Streams, tuple]:
    """Runs all blocks from two copies of `x`.

    Args:
      config: the model's.
      params: the parameters that `stacked_blocks` made.
      x: embedded tokens.
      fixed: for every residual function of a block its fixed input, stacked over blocks.
      context: what cross attention attends to, shared by all layers and differentiated; () = nothing.
      observe: called in every layer, while it is traced, with the number of the layer within the pattern and the
        projections, plan and context of its attention; returns a pytree of arrays. Such a run is not differentiated.
        None = nobody looks.

    Returns:
      Both streams, and for every layer of the pattern what `observe` returned, stacked over blocks; () where nobody
      looks.
    """
    functions, in_order = residual_functions(config, observe), _in_order(config, params)
    if observe is not None:
        streams, saved = run_blocks(functions, in_order, x, x, context, fixed, config.num_streams)
        return streams, saved[:: len(parts(config))]
    scan = reversible_scan_blocks if config.reversible else partial(scan_blocks, num_streams=config.num_streams)
    return scan(functions, in_order, x, x, context, fixed), ()


def _in_order(config: ReformerConfig, params) -> tuple:
    """The parameters of the residual functions of a block, stacked over blocks."""
    layers = [params[f"layer_{i}"] for i in range(len(config.attention_pattern))]
    return tuple(layer[part] for layer in layers for part in parts(config))


def stack_over_blocks(x: Shaped[Array, "..."] | None, num_blocks: int) -> Shaped[Array, "blocks ..."] | None:
    """Repeats an input that is the same for all blocks, for the scan over them; None stays None."""
    return None if x is None else jnp.broadcast_to(x[None], (num_blocks, *x.shape))
