"""The embedding of images: one vector for every patch."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from reformer.layers.embeddings import PositionEmbeddings
from reformer.layers.linear import dense
from reformer.ops.patches import Grid, visiting_order

# Pixels have a mean square of about 0.3 when they run from -1 to 1; streams of unit scale rebuild most precisely.
_TO_UNIT_SCALE = nn.initializers.variance_scaling(1 / 0.3, "fan_in", "normal")
_CLASS_TOKEN_SCALE = 1.0  # as embedded patches


class PatchEmbeddings(PositionEmbeddings):
    """A dense layer over the values of a patch plus its position, and perhaps a learned class token before all.

    The dense layer is the ViT's convolution, whose stride is its width: no value is read twice. As a matrix product it
    keeps patches on the one axis of the length, which is what is padded, masked and split over devices. It has no bias:
    the positions hold it.

    The positions are the numbers of the patches in the grid, row by row, in whatever order they come; the class token
    stands at the one after the last.

    Source: Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words", arXiv 2010.11929, section 3.1.

    Attributes:
      grid: rows and columns of patches.
      order: in which the patches come.
      has_class_token: whether slot 0 of the sequence holds it, whatever stands there.
    """

    grid: Grid
    order: str
    has_class_token: bool

    @nn.compact
    def __call__(
        self, patches: Num[Array, "batch length values"], slots: Int[Array, "batch length"] | None = None
    ) -> Float[Array, "batch length embed"]:
        """Embeds patches, in at least float32.

        Args:
          patches: uint8, or floats from -1 to 1.
          slots: where they stand in the sequence; None = 0 .. length - 1.
        """
        config = self.config
        dtype = jnp.promote_types(jnp.float32, config.dtype)
        embedded = dense(config, config.embed_dim, use_bias=False, kernel_init=_TO_UNIT_SCALE, name="patch")(
            to_floats(patches)
        ).astype(dtype)
        if self.has_class_token:
            is_first = (jnp.arange(patches.shape[1])[None] if slots is None else slots) == 0
            init = nn.initializers.normal(_CLASS_TOKEN_SCALE)
            token = self.param("class_token", init, (config.embed_dim,), jnp.dtype(config.param_dtype))
            embedded = jnp.where(is_first[:, :, None], token.astype(dtype)[None, None], embedded)
        return embedded + self._positions(patches.shape[1], slots).astype(dtype)

    def _positions(self, length: int, slots) -> Float[Array, "batch length embed"]:
        positions = slot_positions(self.grid, self.order, self.has_class_token)
        if slots is not None:
            return self.at_positions(jnp.take(jnp.asarray(positions), slots, mode="clip"))
        # Every row of the tables once, then an order: a lookup in the tables would leave open in which order the
        # gradients of the patches of a row of the grid are added.
        whole = self.first_positions(positions.size)
        behind = max(0, length - positions.size)  # masked: Hugging Face's windows are padded
        return jnp.take(whole, np.pad(positions, (0, behind), "edge")[:length], axis=0)[None]


def slot_positions(grid: Grid, order: str, has_class_token: bool) -> Int[np.ndarray, " slots"]:
    """The position of every slot of the sequence."""
    positions = visiting_order(grid, order)
    return np.concatenate([[positions.size], positions]) if has_class_token else positions


def to_floats(values: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Bytes as numbers from -1 to 1; floats as they are."""
    return values / 127.5 - 1 if values.dtype == jnp.uint8 else values
