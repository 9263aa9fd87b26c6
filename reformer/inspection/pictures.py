"""Pictures of what attention layers do, for somebody who sees a Reformer for the first time."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, PercentFormatter
from PIL import Image

from reformer.inspection.measure import Layer

_COLORS = "tab20"  # of buckets; repeated where there are more than 20
_DOTS_PER_INCH = 100
_MOST_POINTS = 4096  # of a scatter plot
_MOST_BORDERS = 128
_FAINTEST = 1e-3  # share of a query's attention that is drawn in the palest colour, as what is less
_OUT_OF_SIGHT = "lightsteelblue"  # where there is no weight; no colour of the palette
_EMPTY = 0.25  # where an empty bucket stands on a logarithmic scale


def save(figure: Figure, path: Path) -> Path:
    """Writes a picture: PNG with a palette of 256 colours, a third of the size, or what else the ending says."""
    if path.suffix != ".png":
        figure.savefig(path)
        return path
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
    repeated = ", each of 20 for several" * any(layer.sorting.num_buckets > 20 for layer in layers)
    explained = f"first head, first round; a dot is a token, its colour the bucket{repeated}; grey lines divide chunks"
    figure.supxlabel(explained, fontsize="small")
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
        rank, drawn = np.arange(1, counts.shape[1] + 1), np.maximum(counts, _EMPTY)
        axes.fill_between(rank, drawn.min(0), drawn.max(0), step="mid", color="tab:blue", alpha=0.25, linewidth=0)
        axes.step(rank, np.maximum(counts.mean(0), _EMPTY), where="mid", color="tab:blue")
        axes.axhline(layer.plan.cut.window, color="tab:red", linestyle="--")
        axes.axhline(counts.mean(), color="black", linestyle=":")
        axes.set_yscale("log", base=2)
        axes.set_ylim(bottom=_EMPTY)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: _in_tokens(count)))
        axes.set(xlabel="bucket, fullest first", ylabel="tokens in the bucket", title=_name(layer))
    figure.suptitle("Bucket occupancy (log scale): a bucket above the red line does not fit into a window")
    _explain(
        figure,
        Line2D([], [], color="tab:blue", label="mean over heads and rounds"),
        Patch(color="tab:blue", alpha=0.25, linewidth=0, label="their range"),
        Line2D([], [], color="tab:red", linestyle="--", label="slots that a query sees"),
        Line2D([], [], color="black", linestyle=":", label="if all buckets were equal"),
    )
    return figure


def _in_tokens(count: float) -> str:
    """What stands at a tick: nothing at the fractions between an empty bucket and one token."""
    if count <= _EMPTY:
        return "0"
    return f"{count:g}" if count >= 1 else ""


def draw_attention(layers: Sequence[Layer]) -> Figure:
    """Which positions attend to which, mean over heads: a panel for every layer."""
    figure, panels = _panels(len(layers), height=3.7, width=3.7)
    for axes, layer in zip(panels, layers, strict=True):
        weights = layer.picture.mean(0)
        shares = weights / np.maximum(weights.sum(1, keepdims=True), 1e-9)
        style = {"cmap": "magma_r", "norm": LogNorm(_FAINTEST, 1, clip=True)}
        end = layer.num_tokens
        axes.set_facecolor(_OUT_OF_SIGHT)
        image = axes.imshow(np.ma.masked_equal(shares, 0), extent=(0, end, end, 0), interpolation="nearest", **style)
        axes.set(xlabel="key: position attended to", ylabel="query: position that attends", title=_name(layer))
    label = "share of the query's attention (log scale; palest: 0.1 % or less)"
    bar = figure.colorbar(image, ax=panels, label=label, shrink=0.8)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    figure.suptitle("Who attends to whom (mean over heads)")
    _explain(figure, Patch(facecolor=_OUT_OF_SIGHT, label="out of sight: no weight at all"))
    return figure


def draw_coverage(layers: Sequence[Layer]) -> Figure:
    """How much of full attention's weight a layer keeps, over the number of hash rounds: a panel for every layer."""
    figure, panels = _panels(len(layers), height=3.0, width=3.7)
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
    _explain(figure, *panels[first_sorted].lines)
    figure.suptitle("How much of full attention's weight, with the same queries and keys, a layer keeps")
    return figure


def _name(layer: Layer) -> str:
    return f"layer {layer.depth} ({layer.kind})"


def _explain(figure: Figure, *handles: Artist) -> None:
    """Says below all panels what the colours mean."""
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 2), fontsize="small")


def _figure(num_rows: int, num_columns: int, height: float, width: float) -> Figure:
    """An empty figure; sizes of a panel in inches."""
    return Figure(figsize=(max(width * num_columns + 0.6, 6.5), height * num_rows + 0.9), layout="constrained")


def _grid(num_rows: int, num_columns: int, *, height: float, width: float):
    """A figure and its axes [rows, columns]; sizes of a panel in inches."""
    figure = _figure(num_rows, num_columns, height, width)
    return figure, figure.subplots(num_rows, num_columns, squeeze=False)


def _panels(number: int, *, height: float, width: float):
    """A figure and `number` axes in a nearly square arrangement; a last row that is shorter stands in the middle."""
    num_columns = math.ceil(math.sqrt(number))
    num_rows = math.ceil(number / num_columns)
    figure = _figure(num_rows, num_columns, height, width)
    cells, num_missing = figure.add_gridspec(num_rows, 2 * num_columns), num_rows * num_columns - number
    panels = []
    for row, column in (divmod(i, num_columns) for i in range(number)):
        left = 2 * column + num_missing * (row == num_rows - 1)
        panels.append(figure.add_subplot(cells[row, left : left + 2]))
    return figure, panels
