"""What is said and drawn when a run ends: simpler models on the same data, and the curves."""

from collections.abc import Mapping
from pathlib import Path

from reformer.training.metrics import read_records


def table(bits: Mapping[str, float], unit: str, accuracies: Mapping[str, float] | None = None) -> str:
    """Returns one line of text for each model, with its accuracy where that is known."""
    width, shares = max(map(len, bits)), accuracies or {}
    lines = (f"  {name:<{width}}  {bits[name]:.3f} bits/{unit}" for name in bits)
    known = (f"  accuracy {shares[name]:6.2%}" if name in shares else "" for name in bits)
    return "\n".join(map("".join, zip(lines, known, strict=True)))


def draw_curves(workdir: Path, baseline_bits: dict[str, float], unit: str) -> Path:
    """Draws the bits per unit over the steps from `metrics.jsonl` and returns the picture's path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    records = list(read_records(workdir / "metrics.jsonl"))
    for split, marker in (("train", ""), ("valid", "o")):
        points = [(record["step"], record[f"bits_per_{unit}"]) for record in records if record["split"] == split]
        axes.plot(*zip(*points, strict=True) if points else ((), ()), marker=marker, label=split)
    for (name, bits), style in zip(baseline_bits.items(), (":", "--", "-."), strict=False):
        axes.axhline(bits, linestyle=style, color="gray", label=f"{name}: {bits:.2f}")
    axes.set(xlabel="step", ylabel=f"bits per {unit}")
    axes.grid(alpha=0.3)
    axes.legend()
    path = workdir / "curves.png"
    FigureCanvasAgg(figure).print_png(path)
    return path
