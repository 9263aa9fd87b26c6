"""Images as sequences of square patches, in one of several orders."""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Num

ORDERS = ("rows", "hilbert")

Grid = tuple[int, int]  # rows and columns of patches


def cut(
    images: Num[Array, "batch height width channels"], patch_size: int, order: str = "rows"
) -> Num[Array, "batch patches values"]:
    """Cuts images into patches.

    Args:
      images: their height and width are multiples of `patch_size`.
      patch_size: pixels of a patch's side.
      order: of the patches, see `visiting_order`.

    Returns:
      The values of every patch: its rows one after the other, of each row the pixels, of each pixel the channels.
    """
    batch, height, width, channels = images.shape
    rows, columns = height // patch_size, width // patch_size
    tiles = images.reshape(batch, rows, patch_size, columns, patch_size, channels).swapaxes(2, 3)
    patches = tiles.reshape(batch, rows * columns, patch_size**2 * channels)
    if order == "rows":
        return patches
    return jnp.take(patches, jnp.asarray(visiting_order((rows, columns), order)), axis=1, unique_indices=True)


@functools.cache
def visiting_order(grid: Grid, order: str) -> Int[np.ndarray, " patches"]:
    """The patches of a grid, numbered row by row, in the order in which a sequence holds them.

    Args:
      grid: rows and columns.
      order: 'rows' = row by row; 'hilbert' = along a Hilbert curve, on which patches that are near each other in the
        sequence are near each other in the image: 4 ** n patches from a multiple of that on are a square.
    """
    if order not in ORDERS:
        raise ValueError(f"order={order!r} must be one of {', '.join(ORDERS)}.")
    rows, columns = grid
    if order == "rows":
        return np.arange(rows * columns)
    # The curve fills a square whose side is a power of two; of that, what lies in the grid.
    row, column = _hilbert_curve(1 << (max(grid) - 1).bit_length())
    is_inside = (row < rows) & (column < columns)
    return row[is_inside] * columns + column[is_inside]


def _hilbert_curve(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the cells of a square along the curve.

    Source: Hilbert 1891; built here from the square of half the side, four copies of which are turned and joined.
    """
    row = column = np.zeros(1, np.int64)
    half = 1
    while half < side:
        last = half - 1
        row, column = (
            np.concatenate([column, row, row + half, last - column + half]),
            np.concatenate([row, column + half, column + half, last - row]),
        )
        half *= 2
    return row, column
