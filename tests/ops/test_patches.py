"""Patches hold the pixels of their square, and the orders visit each once."""

import jax.numpy as jnp
import numpy as np
import pytest

from reformer.ops.patches import ORDERS, cut, visiting_order


@pytest.mark.parametrize("order", ORDERS)
def test_a_patch_is_a_square_of_pixels_row_by_row(order):
    images = np.arange(2 * 6 * 4 * 3).reshape(2, 6, 4, 3)
    patches = np.asarray(cut(jnp.asarray(images), 2, order))
    assert patches.shape == (2, 6, 12)
    for slot, number in enumerate(visiting_order((3, 2), order)):
        row, column = divmod(int(number), 2)
        square = images[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        np.testing.assert_array_equal(patches[:, slot], square.reshape(2, -1))


def test_one_patch_is_the_image():
    images = jnp.arange(12.0).reshape(1, 2, 2, 3)
    np.testing.assert_array_equal(cut(images, 2), images.reshape(1, 1, 12))


@pytest.mark.parametrize("grid", [(1, 1), (4, 4), (8, 8), (3, 5), (7, 2), (1, 6)])
@pytest.mark.parametrize("order", ORDERS)
def test_every_patch_is_visited_once(grid, order):
    assert sorted(visiting_order(grid, order)) == list(range(grid[0] * grid[1]))


@pytest.mark.parametrize("side", [2, 4, 16])
def test_neighbours_on_a_hilbert_curve_are_neighbours_in_the_image(side):
    row, column = np.divmod(visiting_order((side, side), "hilbert"), side)
    np.testing.assert_array_equal(np.abs(np.diff(row)) + np.abs(np.diff(column)), 1)


@pytest.mark.parametrize("chunk_side", [1, 2, 4, 8])
def test_chunks_of_a_hilbert_curve_are_squares_and_the_next_one_touches(chunk_side):
    row, column = np.divmod(visiting_order((16, 16), "hilbert"), 16)
    chunks = np.stack([row, column], axis=-1).reshape(-1, chunk_side**2, 2) // chunk_side
    assert (chunks == chunks[:, :1]).all()
    np.testing.assert_array_equal(np.abs(np.diff(chunks[:, 0], axis=0)).sum(axis=1), 1)


def test_an_unknown_order_is_refused():
    with pytest.raises(ValueError, match=r"order='snake' must be one of rows, hilbert"):
        visiting_order((2, 2), "snake")
