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
from reformer.layers.cross_attention import CrossAttention, cross_attention_residual
from reformer.layers.feed_forward import FeedForward, feed_forward_residual
from reformer.ops.plan import Arrays, Given, Plan
from reformer.ops.reversible import Residual, next_streams, reversible_scan_blocks, scan_blocks

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
    """The residual functions of one block: the parts of every layer of the pattern."""
    functions = []
    for kind in config.attention_pattern:
        functions.append(attention_residual(config, kind))
        if config.cross_attention:
            functions.append(cross_attention_residual(config))
        functions.append(feed_forward_residual(config))
    return tuple(functions)


def parts(config: ReformerConfig) -> tuple[str, ...]:
    """The parts of a layer in their order, as its parameters name them; each is a residual function."""
    return ("attention", "cross_attention", "feed_forward") if config.cross_attention else ("attention", "feed_forward")


def run_stack(config: ReformerConfig, params, x: Float[Array, "batch length embed"], fixed, context=()):
    """Runs all blocks from two copies of `x`.

    Args:
      config: the model's.
      params: the parameters that `stacked_blocks` made.
      x: embedded tokens.
      fixed: for every residual function of a block its fixed input, stacked over blocks.
      context: what cross attention attends to [batch, source, width]; differentiated.

    Returns:
      Both streams.
    """
    scan = reversible_scan_blocks if config.reversible else partial(scan_blocks, num_streams=config.num_streams)
    return scan(residual_functions(config), _in_order(config, params), x, x, context, fixed)


def observe_stack(
    config: ReformerConfig,
    params,
    x: Float[Array, "batch length embed"],
    fixed,
    observe: Observer,
    context=(),
):
    """Runs all blocks forward and looks into the attention of every layer.

    Args:
      config: the model's.
      params: as in `run_stack`.
      x: as in `run_stack`.
      fixed: as in `run_stack`.
      observe: (number of the layer within the pattern, projections, plan, what else is given) -> pytree of arrays.
      context: as in `run_stack`.

    Returns:
      Both streams, and for every layer of the pattern what `observe` returned, stacked over blocks.
    """
    functions, num_parts = residual_functions(config), len(parts(config))

    def run_block(streams, block):
        x1, x2 = streams
        seen = []
        for number, (f, of_f, constants) in enumerate(zip(functions, *block, strict=True)):
            i, part = divmod(number, num_parts)
            if parts(config)[part] == "attention":
                attention = AttentionResidual(config, config.attention_pattern[i])
                added, saw = attention.apply_and_observe(partial(observe, i), of_f, x2, x1, constants)
                seen.append(saw)
            else:
                added, _ = f.apply(of_f, x2, x1, context, constants)
            x1, x2 = next_streams(x2, added, config.num_streams)
        return (x1, x2), tuple(seen)

    return jax.lax.scan(run_block, (x, x), (_in_order(config, params), fixed))


def _in_order(config: ReformerConfig, params) -> tuple:
    """The parameters of the residual functions of a block, stacked over blocks."""
    layers = [params[f"layer_{i}"] for i in range(len(config.attention_pattern))]
    return tuple(layer[part] for layer in layers for part in parts(config))


def stack_over_blocks(x: jax.Array | None, num_blocks: int):
    """Repeats an input that is the same for all blocks, for the scan over them."""
    return None if x is None else jnp.broadcast_to(x[None], (num_blocks, *x.shape))
