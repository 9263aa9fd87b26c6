"""Token and position embeddings."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from reformer.config import ReformerConfig

_TOKEN_SCALE = 1.0  # standard deviations at the start; streams of unit scale rebuild most precisely
_POSITION_SCALE = 0.25


class Embeddings(nn.Module):
    """Token embedding plus position embedding."""

    config: ReformerConfig

    @nn.compact
    def __call__(self, tokens: Int[Array, "batch length"]) -> Float[Array, "batch length embed"]:
        """Embeds tokens at positions 0 .. length - 1, in at least float32."""
        config = self.config
        dtype = jnp.promote_types(jnp.float32, config.dtype)
        shape = (config.vocab_size, config.embed_dim)
        token = self.param("token", nn.initializers.normal(_TOKEN_SCALE), shape, jnp.dtype(config.param_dtype))
        position = {"axial": self._axial, "learned": self._learned, "sinusoidal": self._sinusoidal}
        embedded = jnp.take(token.astype(dtype), tokens, axis=0, mode="clip")
        return embedded + position[config.position_embedding](tokens.shape[1]).astype(dtype)[None]

    def _axial(self, length: int):
        """Concatenates, for every position, a row of each axis's table.

        Source: Kitaev et al. 2020; Ho et al. 2019 (arXiv 1912.12180). Position p stands at the
        row-major coordinates of p, so any length up to the product of the shape has its embedding.
        """
        shape, dims = self.config.resolved_axial_shape, self.config.resolved_axial_dims
        init = nn.initializers.normal(_POSITION_SCALE)
        dtype = jnp.dtype(self.config.param_dtype)
        tables = [self.param(f"axial_{i}", init, sizes, dtype) for i, sizes in enumerate(zip(shape, dims, strict=True))]
        used = (math.ceil(length / math.prod(shape[1:])), *shape[1:])
        parts = []
        for i, table in enumerate(tables):
            # Beyond the grid lie only masked tokens, which pad to Hugging Face's windows.
            rows = jnp.take(table, jnp.arange(used[i]), axis=0, mode="clip")
            on_axis = rows.reshape([used[i] if j == i else 1 for j in range(len(used))] + [-1])
            parts.append(jnp.broadcast_to(on_axis, (*used, table.shape[-1])))
        return jnp.concatenate(parts, axis=-1).reshape(-1, self.config.embed_dim)[:length]

    def _learned(self, length: int):
        shape = (self.config.max_length, self.config.embed_dim)
        init = nn.initializers.normal(_POSITION_SCALE)
        table = self.param("position", init, shape, jnp.dtype(self.config.param_dtype))
        return jnp.take(table, jnp.arange(length), axis=0, mode="clip")

    def _sinusoidal(self, length: int):
        """Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.5, sines first, then cosines."""
        half = self.config.embed_dim // 2
        angle = np.arange(length)[:, None] / 10_000 ** (np.arange(half) / half)
        return jnp.asarray(np.concatenate([np.sin(angle), np.cos(angle)], axis=-1))
