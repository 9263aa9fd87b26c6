"""Pictures of the results: attention against length, memory, and the training step beside the other libraries.

Of several measurements of the same thing the last one in the file counts. Every kind of device has pictures of its
own; a picture without results is left out.

Command: python benchmarks/plots.py
         python benchmarks/plots.py --output FOLDER
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import record
from reformer.host import paths
from reformer.inspection import pictures

STYLES = {  # the same colour for the same thing in all pictures
    "ours": {"color": "tab:red", "marker": "o"},
    "ours, not reversible": {"color": "tab:orange", "marker": "s", "linestyle": "--"},
    "Hugging Face": {"color": "tab:blue", "marker": "^"},
    "lucidrains": {"color": "tab:green", "marker": "v"},
    "full": {"color": "black", "marker": "D"},
    "xla": {"color": "gray", "marker": "D", "linestyle": ":"},
    "cudnn": {"color": "tab:green", "marker": "v"},
    "local": {"color": "tab:blue", "marker": "s"},
    "lsh-1": {"color": "#fcae91", "marker": "o"},
    "lsh-2": {"color": "#fb7050", "marker": "o"},
    "lsh-4": {"color": "#de2d26", "marker": "o"},
    "lsh-8": {"color": "#850b10", "marker": "o"},
}
STACKS = {True: ("reversible", STYLES["ours"]), False: ("not reversible", STYLES["ours, not reversible"])}
SWEEPS = {"num_layers": "depth in layers", "length": "length in tokens", "batch_size": "batch in examples"}


def read(name: str, *key_fields: str) -> list[dict]:
    """Returns the records of `results/NAME.jsonl`, the last one for every combination of `key_fields`."""
    path = record.RESULTS / f"{name}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = {}
    for row in map(json.loads, lines):
        found[tuple(row.get(field) for field in key_fields)] = row
    return list(found.values())


def draw_peers(rows: list[dict]) -> Figure:
    """Step time and peak memory against length, a column for every dropout rate, with 1 hash and 2 heads."""
    rows = [row for row in rows if (row["num_hashes"], row["num_heads"]) == (1, 2)]
    rates = sorted({row["dropout_rate"] for row in rows})
    figure = new_figure(width=4.4 * len(rates), height=6.6)
    panels = figure.subplots(2, len(rates), squeeze=False, sharex=True, sharey="row")
    for column, rate in enumerate(rates):
        top, bottom = panels[:, column]
        for library in STYLES:
            mine = [row for row in rows if row["dropout_rate"] == rate and row["library"] == library]
            draw_line(top, mine, "length", "step_seconds", library, STYLES[library])
            draw_line(bottom, mine, "length", "peak_resident_gb", library, STYLES[library])
        top.set(title=f"dropout {rate:g}")
        bottom.set(xlabel="length in tokens")
        finish(top), finish(bottom)
    panels[0, 0].set(ylabel="seconds per training step")
    panels[1, 0].set(ylabel="peak resident memory, GB")
    panels[0, 0].legend(fontsize="small")
    return describe(figure, "A training step, 6 layers local-LSH of width 256: time and memory", rows)


def draw_attention(rows: list[dict]) -> Figure:
    """Time per token and head against length, and time against hash rounds at one length."""
    by_length = [row for row in rows if row["sweep"] == "length"]
    by_rounds = [{**row, "rounds": int(row["kind"][4:])} for row in rows if row["sweep"] == "num_hashes"]
    figure = new_figure(width=10, height=4.4)
    left, right = figure.subplots(1, 2, width_ratios=[1.6, 1])
    for kind in sorted({row["kind"] for row in by_length}, key=list(STYLES).index):
        mine = [row for row in by_length if row["kind"] == kind]
        draw_line(left, mine, "length", "ns_per_token_head", name_of_kind(kind), STYLES[kind])
    left.set(xlabel="length in tokens", ylabel="ns per token and head", title="forward and backward, causal")
    left.legend(fontsize="small")
    for length in sorted({row["length"] for row in by_rounds}):
        mine = [row for row in by_rounds if row["length"] == length]
        draw_line(right, mine, "rounds", "milliseconds", f"{length:,} tokens", STYLES["lsh-4"])
    right.set(xlabel="hash rounds", ylabel="milliseconds, 2 heads", title="LSH against hash rounds")
    right.legend(fontsize="small")
    finish(left), finish(right)
    dtypes = ", ".join(sorted({row["dtype"] for row in rows}))
    return describe(figure, f"Attention alone, heads of 64, chunks of 64, {dtypes}", rows)


def draw_memory(rows: list[dict]) -> Figure:
    """Planned scratch, and where it was measured resident memory, against depth, length and batch."""
    figure = new_figure(width=12, height=4.2)
    for axes, (sweep, name) in zip(figure.subplots(1, 3, sharey=True), SWEEPS.items(), strict=True):
        for reversible, (label, style) in STACKS.items():
            mine = [row for row in rows if row["sweep"] == sweep and row["reversible"] == reversible]
            draw_line(axes, mine, sweep, "scratch_gb", f"{label}: planned scratch", style)
            resident = [row for row in mine if "peak_resident_gb" in row]
            faint = {**style, "linestyle": ":", "alpha": 0.5}
            draw_line(axes, resident, sweep, "peak_resident_gb", f"{label}: resident in all", faint)
        fixed = {
            "num_layers": "4,096 tokens, batch 1",
            "length": "6 layers, batch 1",
            "batch_size": "6 layers, 4,096 tokens",
        }
        axes.set(xlabel=name, ylabel="GB", title=fixed[sweep])
        axes.label_outer()
        finish(axes)
    figure.axes[0].legend(fontsize="small")
    return describe(figure, "Memory of a training step, layers local-LSH of width 256", rows)


def draw_vision(rows: list[dict]) -> Figure:
    """Accuracy and nats against the seconds of training, means over the seeds with their range."""
    figure = new_figure(width=10, height=4.4)
    panels = figure.subplots(1, 2)
    presets = sorted({row["preset"] for row in rows})
    colours = {size: f"C{i}" for i, size in enumerate(sorted({preset.removesuffix("_full") for preset in presets}))}
    for preset in presets:
        courses = [row["course"] for row in rows if row["preset"] == preset]
        style = {"color": colours[preset.removesuffix("_full")], "marker": "o", "markersize": 3}
        style["linestyle"] = "--" if preset.endswith("_full") else "-"
        for axes, field in zip(panels, ("accuracy", "nats"), strict=True):
            points = list(zip(*courses, strict=False))  # of all seeds, an evaluation after the other
            seconds = [sum(entry["seconds"] for entry in entries) / len(entries) for entries in points]
            values = [[entry[field] for entry in entries] for entries in points]
            axes.plot(seconds, [sum(of_all) / len(of_all) for of_all in values], label=preset, **style)
            lowest, highest = ([pick(of_all) for of_all in values] for pick in (min, max))
            axes.fill_between(seconds, lowest, highest, color=style["color"], alpha=0.15)
    for axes, label in zip(panels, ("accuracy", "nats per image"), strict=True):
        axes.set(xlabel="seconds of training", ylabel=label)
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize="small")
    return describe(figure, f"Labels of images, validation, {len({row['seed'] for row in rows})} seeds", rows)


def name_of_kind(kind: str) -> str:
    """Returns what a reader calls a kind of `attention.py`."""
    names = {"xla": "jax.nn, XLA", "cudnn": "jax.nn, cuDNN flash"}
    return f"LSH, rounds: {kind[4:]}" if kind.startswith("lsh-") else names.get(kind, kind)


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure; sizes in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def draw_line(axes: Axes, rows: Iterable[dict], x: str, y: str, label: str, style: dict) -> None:
    """Draws a field against another one of the rows, if there are any."""
    points = sorted((row[x], row[y]) for row in rows)
    if points:
        axes.plot(*zip(*points, strict=True), label=label, markersize=4, **style)


def finish(axes: Axes) -> None:
    """Gives both axes logarithmic scales: powers of 2 below, written as 4K or 1M, and plain numbers at the side."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.12g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3, which="both")


def short(count: float) -> str:
    """Returns 512, 4K or 1M."""
    for size, letter in ((2**20, "M"), (2**10, "K")):
        if count >= size:
            return f"{count / size:g}{letter}"
    return f"{count:g}"


def describe(figure: Figure, title: str, rows: list[dict]) -> Figure:
    """Adds a title, and below where and from which commits the figures are."""
    machines = sorted({f"{row['machine']}, {row['num_cores']} cores, {row['device']}" for row in rows})
    commits = sorted({row["commit"] for row in rows})
    figure.suptitle(title)
    figure.supxlabel(f"{'; '.join(machines)}; jax {rows[-1]['jax']}; commit {', '.join(commits)}", fontsize="x-small")
    return figure


PICTURES: dict[str, tuple[Callable[[list[dict]], Figure], tuple[str, ...]]] = {
    "peers": (draw_peers, ("library", "length", "dropout_rate", "num_hashes", "num_heads")),
    "attention": (draw_attention, ("sweep", "kind", "length")),
    "memory": (draw_memory, ("sweep", *SWEEPS, "reversible")),
    "vision": (draw_vision, ("preset", "seed")),
}


def draw_all() -> Iterator[tuple[str, Figure]]:
    """Yields names of files and pictures: of every benchmark with results, for every device that it ran on."""
    for name, (draw, key_fields) in PICTURES.items():
        rows = [row for row in read(name, "device", *key_fields) if row.get("sweep") != "longest"]
        for device in sorted({row["device"] for row in rows}):
            file_name = f"benchmark_{name}_{device.lower().replace(' ', '_')}.png"
            yield file_name, draw([row for row in rows if row["device"] == device])


def main() -> None:
    """Draws what there are results for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=paths.argument, default=record.ROOT / "docs" / "pictures")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    for file_name, figure in draw_all():
        print(pictures.save(figure, output / file_name))


if __name__ == "__main__":
    main()
