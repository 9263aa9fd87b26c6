"""What is said and drawn when a run ends: simpler models on the same bytes, and the curves."""

from pathlib import Path

import numpy as np

from reformer.data import baselines, text
from reformer.training.metrics import read_records


def baseline_bits_per_byte(data: text.TextData, split: np.ndarray) -> dict[str, float]:
    """Returns the bits per byte of count models of the training bytes, and of gzip, on `split`."""
    return {
        "order-1 counts": baselines.order_n_bits_per_byte(data.train, split, 1),
        "order-2 counts": baselines.order_n_bits_per_byte(data.train, split, 2),
        "gzip -9": baselines.gzip_bits_per_byte(split),
    }


def table(rows: dict[str, float]) -> str:
    """Returns one line of text for each row."""
    width = max(map(len, rows))
    return "\n".join(f"  {name:<{width}}  {bits:.3f} bits/byte" for name, bits in rows.items())


def draw_curves(workdir: Path, baseline_bits: dict[str, float]) -> Path:
    """Draws bits per byte over the steps from `metrics.jsonl` and returns the picture's path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    records = list(read_records(workdir / "metrics.jsonl"))
    for split, marker in (("train", ""), ("valid", "o")):
        points = [(record["step"], record["bits_per_byte"]) for record in records if record["split"] == split]
        axes.plot(*zip(*points, strict=True) if points else ((), ()), marker=marker, label=split)
    for (name, bits), style in zip(baseline_bits.items(), (":", "--", "-."), strict=False):
        axes.axhline(bits, linestyle=style, color="gray", label=f"{name}: {bits:.2f}")
    axes.set(xlabel="step", ylabel="bits per byte")
    axes.grid(alpha=0.3)
    axes.legend()
    path = workdir / "curves.png"
    FigureCanvasAgg(figure).print_png(path)
    return path
