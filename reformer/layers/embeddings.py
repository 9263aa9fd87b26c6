"""Token and position embeddings."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from reformer.config import ReformerConfig
from reformer.sharding import constrain

_TOKEN_SCALE = 1.0  # standard deviation at the start; streams of unit scale rebuild most precisely


class PositionEmbeddings(nn.Module):
    """The tables of positions, of the kind that `position_embedding` names; a subclass adds them to what it embeds."""

    config: ReformerConfig

    def first_positions(self, length: int) -> Float[Array, "length embed"]:
        """Embeds the positions 0 .. length - 1."""
        of_kind = {"axial": self._axial, "learned": self._learned, "sinusoidal": self._sinusoidal}
        return of_kind[self.config.position_embedding](length)

    def at_positions(self, positions: Int[Array, "batch length"]) -> Float[Array, "batch length embed"]:
        """Embeds any positions, each below `max_length`."""
        of_kind = {"axial": self._axial_at, "learned": self._learned_at, "sinusoidal": self._sinusoidal_at}
        return of_kind[self.config.position_embedding](positions)

    def _axial(self, length: int):
        """Concatenates, for every position, an entry of each axis's table.

        Source: Kitaev et al. 2020; Ho et al. 2019 (arXiv 1912.12180). Position p stands at the
        row-major coordinates of p, so any length up to the product of the shape has its embedding.
        """
        shape, tables = self.config.resolved_axial_shape, self._axial_tables()
        used = (math.ceil(length / math.prod(shape[1:])), *shape[1:])
        parts = []
        for i, table in enumerate(tables):
            entries = _first_entries(table, used[i])
            on_axis = entries.reshape([used[i] if j == i else 1 for j in range(len(used))] + [-1])
            parts.append(jnp.broadcast_to(on_axis, (*used, table.shape[-1])))
        return jnp.concatenate(parts, axis=-1).reshape(-1, self.config.embed_dim)[:length]

    def _axial_tables(self) -> list:
        shape, dims = self.config.resolved_axial_shape, self.config.resolved_axial_dims
        init, dtype = nn.initializers.normal(self.config.position_scale), jnp.dtype(self.config.param_dtype)
        return [self.param(f"axial_{i}", init, sizes, dtype) for i, sizes in enumerate(zip(shape, dims, strict=True))]

    def _axial_at(self, positions):
        shape = self.config.resolved_axial_shape
        parts, stride = [], math.prod(shape)
        for size, table in zip(shape, self._axial_tables(), strict=True):
            stride //= size
            parts.append(jnp.take(table, positions // stride % size, axis=0, mode="clip"))
        return jnp.concatenate(parts, axis=-1)

    def _learned(self, length: int):
        return _first_entries(self._learned_table(), length)

    def _learned_at(self, positions):
        return jnp.take(self._learned_table(), positions, axis=0, mode="clip")

    def _learned_table(self):
        shape = (self.config.max_length, self.config.embed_dim)
        init = nn.initializers.normal(self.config.position_scale)
        return self.param("position", init, shape, jnp.dtype(self.config.param_dtype))

    def _sinusoidal(self, length: int):
        """Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.5, sines first, then cosines."""
        return jnp.asarray(np.concatenate(self._sines_and_cosines(np.arange(length)), axis=-1))

    def _sinusoidal_at(self, positions):
        """By the angle-sum formulas: float32 is too coarse for the angle of a late position, not for its parts'."""
        fine_size = math.isqrt(self.config.max_length - 1) + 1
        coarse = [jnp.asarray(x) for x in self._sines_and_cosines(np.arange(fine_size) * fine_size)]
        fine = [jnp.asarray(x) for x in self._sines_and_cosines(np.arange(fine_size))]
        sin_a, cos_a = (jnp.take(x, positions // fine_size, axis=0, mode="clip") for x in coarse)
        sin_b, cos_b = (jnp.take(x, positions % fine_size, axis=0, mode="clip") for x in fine)
        return jnp.concatenate([sin_a * cos_b + cos_a * sin_b, cos_a * cos_b - sin_a * sin_b], axis=-1)

    def _sines_and_cosines(self, positions: np.ndarray) -> list[np.ndarray]:
        half = self.config.embed_dim // 2
        angle = positions[:, None] / 10_000 ** (np.arange(half) / half)
        return [np.sin(angle), np.cos(angle)]


def _first_entries(table, count: int):
    """A slice, whose transpose scatters nothing. Beyond the end lie only masked tokens that pad to whole windows."""
    entries = table[:count]
    return jnp.pad(entries, ((0, count - len(entries)), (0, 0)), mode="edge")


class Embeddings(PositionEmbeddings):
    """Token embedding plus position embedding."""

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "batch length"], positions: Int[Array, "batch length"] | None = None
    ) -> Float[Array, "batch length embed"]:
        """Embeds tokens, in at least float32.

        Args:
          tokens: ids.
          positions: where they stand, each below `max_length`; None = 0 .. length - 1.
        """
        config = self.config
        dtype = jnp.promote_types(jnp.float32, config.dtype)
        shape = (config.vocab_size, config.embed_dim)
        token = self.param("token", nn.initializers.normal(_TOKEN_SCALE), shape, jnp.dtype(config.param_dtype))
        # Whole on every device: from a table in parts along `embed` XLA would exchange embedded tokens.
        table = constrain(token, "replicated", "replicated").astype(dtype)
        embedded = jnp.take(table, tokens, axis=0, mode="clip")
        if positions is not None:
            return embedded + self.at_positions(positions).astype(dtype)
        return embedded + self.first_positions(tokens.shape[1]).astype(dtype)[None]
