"""One picture that tells LSH attention on a short input, as Figure 2 of the paper does."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from reformer.inspection.measure import Layer

MOST_TOKENS = 48
_FAINTEST = 1e-2  # weight that is drawn in the palest grey, white, as what is less
CHUNK_LENGTH = 8  # of the picture's layer, whatever the model's: one chunk of the model would fill the picture


def draw_story(layer: Layer, symbols: Sequence[str], legend: str = "") -> Figure:
    """The sequence, hashed, sorted, cut into chunks, and the attention in sorted order and put back.

    Args:
      layer: an LSH layer measured on at most `MOST_TOKENS` tokens with one hash round.
      symbols: a character for every token, or ''.
      legend: explains them.

    Returns:
      The picture.

    Source: arXiv 2001.04451, Figure 2.
    """
    order, buckets = layer.sorting.permutation[0, 0], layer.sorting.buckets[0, 0]
    colors = colormaps["Set2"](np.unique(buckets, return_inverse=True)[1] % 8)
    figure = Figure(figsize=(12, 9), layout="constrained")
    parts = figure.subplot_mosaic([["list", "list"], ["sorted", "natural"]], height_ratios=[3, 8])
    _draw_lists(parts["list"], order, colors, symbols, layer.plan.cut.chunk_length)
    weights = layer.picture[0]
    _draw_weights(parts["sorted"], weights[np.ix_(order, order)], colors[order], [symbols[i] for i in order])
    _draw_windows(parts["sorted"], len(order), layer.plan.cut)
    image = _draw_weights(parts["natural"], weights, colors, symbols)
    parts["sorted"].set_title("3. Attend within a few chunks (red frames), never ahead", fontsize=10, loc="left")
    parts["natural"].set_title("4. Undo the sort: the same weights, in sequence order", fontsize=10, loc="left")
    figure.colorbar(image, ax=[parts["sorted"], parts["natural"]], label="attention weight (log scale)", shrink=0.7)
    itself = "A token attends to itself only if it has nothing else.  "
    if layer.plan.rule.looks_ahead:
        itself = "What a key gives is what came after it, so no token attends to itself.  "
    figure.supxlabel(itself + legend, fontsize=9)
    figure.suptitle(f"LSH attention, step by step (layer {layer.depth}, first head, one hash round)", fontsize=14)
    return figure


def _draw_lists(axes: Axes, order, colors, symbols, chunk_length: int) -> None:
    """The sequence above, the sorted list in chunks below, and a line from each token to where it is sorted to."""
    slot = np.arange(len(order))
    gap = 0.6 * (slot // chunk_length)
    left = 0.5 * gap[-1] + slot  # centred over the list with gaps
    for token in slot:
        _draw_token(axes, left[token], 3, colors[token], symbols[token])
    for token, x in zip(order, slot + gap, strict=True):
        _draw_token(axes, x, 0, colors[token], symbols[token])
        axes.plot([left[token] + 0.5, x + 0.5], [3, 1], color=colors[token], linewidth=1)
    axes.text(-0.3, 4.25, "1. Hash: tokens whose query-key vectors point the same way get the same bucket (colour).")
    axes.text(
        -0.3, -0.75, f"2. Sort by bucket, keeping the order within a bucket, and cut into chunks of {chunk_length}."
    )
    axes.set(xlim=(-0.5, len(order) + gap[-1] + 0.5), ylim=(-1, 4.8))
    axes.axis("off")


def _draw_token(axes: Axes, x, y, color, symbol: str) -> None:
    axes.add_patch(Rectangle((x, y), 1, 1, facecolor=color, edgecolor="white"))
    axes.text(x + 0.5, y + 0.45, symbol, ha="center", va="center", family="monospace", fontsize=9)


def _draw_weights(axes: Axes, weights, colors, symbols):
    """A matrix of weights between strips of the tokens in their colours."""
    size = len(weights)
    norm = LogNorm(_FAINTEST, 1, clip=True)
    image = axes.imshow(np.ma.masked_equal(weights, 0), cmap="Greys", norm=norm, extent=(0, size, size, 0))
    for i, (color, symbol) in enumerate(zip(colors, symbols, strict=True)):
        for corner in ((i, -1.6), (-1.6, i)):
            width, height = (1, 1.4) if corner[0] == i else (1.4, 1)
            axes.add_patch(Rectangle(corner, width, height, facecolor=color, edgecolor="none"))
            axes.text(corner[0] + width / 2, corner[1] + height / 2, symbol, ha="center", va="center", fontsize=6)
    axes.set(xlim=(-1.7, size + 0.1), ylim=(size + 0.1, -1.7), xticks=[], yticks=[], xlabel="key", ylabel="query")
    axes.spines[:].set_visible(False)
    return image


def _draw_windows(axes: Axes, size: int, cut) -> None:
    """A frame around the keys that each chunk of queries sees."""
    for first in range(0, size, cut.chunk_length):
        left = max(first - cut.before * cut.chunk_length, 0)
        right = min(first + (1 + cut.after) * cut.chunk_length, size)
        height = min(cut.chunk_length, size - first)
        axes.add_patch(Rectangle((left, first), right - left, height, fill=False, edgecolor="tab:red", linewidth=1.2))
