"""Pictures of what attention layers do, for somebody who sees a Reformer for the first time."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image

from reformer.inspection.measure import Layer

_COLORS = "tab20"  # of buckets; repeated where there are more than 20
_DOTS_PER_INCH = 100
_MOST_POINTS = 4096  # of a scatter plot
_MOST_BORDERS = 128
_FAINTEST = 1e-3  # share of a query's attention that is drawn in the palest colour


def save(figure: Figure, path: Path) -> Path:
    """Writes a picture as PNG with a palette of 256 colours, a third of the size."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(_DOTS_PER_INCH)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


def draw_buckets(layers: Sequence[Layer]) -> Figure:
    """The bucket of every position, and the sorted list cut into chunks: a row for every LSH layer."""
    figure, rows = _grid(len(layers), 2, height=2.8, width=5.0)
    for (left, right), layer in zip(rows, layers, strict=True):
        buckets, permutation = layer.sorting.buckets[0, 0], layer.sorting.permutation[0, 0]
        shown = np.arange(0, len(buckets), -(-len(buckets) // _MOST_POINTS))
        style: dict = {"s": 4, "cmap": _COLORS, "vmin": 0, "vmax": 20, "linewidths": 0}
        left.scatter(shown, buckets[shown], c=buckets[shown] % 20, **style)
        left.set(xlabel="position in the sequence", ylabel="bucket", ylim=(-1, layer.sorting.num_buckets))
        left.set_title(f"{_name(layer)}: hashed into {layer.sorting.num_buckets} buckets")
        right.scatter(shown, permutation[shown], c=buckets[permutation[shown]] % 20, **style)
        _draw_borders(right, len(buckets), layer.plan.cut.chunk_length)
        right.set(xlabel="slot in the sorted list", ylabel="position in the sequence")
        right.set_title(f"sorted, cut into {layer.plan.cut.num_chunks} chunks")
    figure.suptitle("Every token is hashed to a bucket (colour) and attends within its own and neighbouring chunks")
    figure.supxlabel("first head, first round", fontsize="small")
    return figure


def _draw_borders(axes: Axes, length: int, chunk_length: int) -> None:
    if length <= _MOST_BORDERS * chunk_length:
        for border in range(0, length + 1, chunk_length):
            axes.axvline(border - 0.5, color="black", linewidth=0.4, alpha=0.4)


def draw_occupancy(layers: Sequence[Layer]) -> Figure:
    """How many tokens share a bucket, in descending order: a panel for every LSH layer."""
    figure, panels = _panels(len(layers), height=2.8, width=4.6)
    for axes, layer in zip(panels, layers, strict=True):
        counts = np.sort(layer.sorting.occupancy.reshape(-1, layer.sorting.num_buckets))[:, ::-1]
        rank = np.arange(1, counts.shape[1] + 1)
        axes.bar(rank, counts.mean(0), width=1, color="tab:blue", label="mean over heads and rounds")
        axes.fill_between(rank, counts.min(0), counts.max(0), step="mid", color="black", alpha=0.25, label="range")
        axes.axhline(layer.plan.cut.window, color="tab:red", linestyle="--", label="slots that a query sees")
        axes.axhline(counts.mean(), color="black", linestyle=":", label="if all buckets were equal")
        axes.set(xlabel="bucket, fullest first", ylabel="tokens in the bucket", title=_name(layer))
    panels[0].legend(fontsize="small")
    figure.suptitle("Bucket occupancy: a bucket above the red line does not fit into a window")
    return figure


def draw_attention(layers: Sequence[Layer]) -> Figure:
    """Which positions attend to which, mean over heads: a panel for every layer."""
    figure, panels = _panels(len(layers), height=3.7, width=3.7)
    for axes, layer in zip(panels, layers, strict=True):
        weights = layer.picture.mean(0)
        shares = weights / np.maximum(weights.sum(1, keepdims=True), 1e-9)
        style = {"cmap": "magma_r", "norm": LogNorm(_FAINTEST, 1, clip=True)}
        end = layer.num_tokens
        image = axes.imshow(np.ma.masked_equal(shares, 0), extent=(0, end, end, 0), interpolation="nearest", **style)
        axes.set(xlabel="key: position attended to", ylabel="query: position that attends", title=_name(layer))
    figure.colorbar(image, ax=panels, label="share of the query's attention", shrink=0.8)
    figure.suptitle("Who attends to whom (mean over heads; white = out of sight)")
    return figure


def draw_coverage(layers: Sequence[Layer]) -> Figure:
    """How much of full attention's weight a layer keeps, over the number of hash rounds: a panel for every layer."""
    figure, panels = _panels(len(layers), height=3.0, width=3.7, sharey=True)
    lines = (
        ("seen", "what the layer sees", {"color": "tab:red", "marker": "o"}),
        ("local", "local windows of the same size", {"color": "tab:blue", "marker": "s", "linestyle": "--"}),
        ("random", "as many random keys", {"color": "gray", "marker": "^", "linestyle": ":"}),
    )
    for axes, layer in zip(panels, layers, strict=True):
        for field, label, style in lines:
            if field != "local" or layer.sorting is not None:
                axes.plot(layer.counts, np.mean(getattr(layer.coverage, field), axis=0), label=label, **style)
        axes.set_xscale("log", base=2)
        axes.set_xticks(layer.counts, [str(count) for count in layer.counts])
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set(ylim=(0, 1.05), ylabel="share of full attention", title=_name(layer))
        axes.set_xlabel("hash rounds" if layer.sorting is not None else "hash rounds (it has none)")
        axes.grid(alpha=0.3)
    first_sorted = next((i for i, layer in enumerate(layers) if layer.sorting is not None), 0)
    panels[first_sorted].legend(fontsize="small")
    figure.suptitle("How much of full attention's weight, with the same queries and keys, a layer keeps")
    return figure


def _name(layer: Layer) -> str:
    return f"layer {layer.depth} ({layer.kind})"


def _grid(num_rows: int, num_columns: int, *, height: float, width: float, **options):
    """A figure and its axes [rows, columns]; sizes of a panel in inches."""
    figure = Figure(figsize=(max(width * num_columns + 0.6, 6.5), height * num_rows + 0.5), layout="constrained")
    return figure, figure.subplots(num_rows, num_columns, squeeze=False, **options)


def _panels(number: int, **options):
    """A figure and `number` axes in a nearly square arrangement."""
    num_columns = math.ceil(math.sqrt(number))
    figure, rows = _grid(math.ceil(number / num_columns), num_columns, **options)
    for axes in rows.flat[number:]:
        axes.set_visible(False)
    return figure, list(rows.flat[:number])
