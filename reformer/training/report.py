"""What is said and drawn when a run ends: simpler models on the same data, and the curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reformer.training.metrics import read_records
from reformer.training.writers import JSON_LINES, Record


def table(bits: Mapping[str, float], unit: str, accuracies: Mapping[str, float] | None = None) -> str:
    """Returns one line of text for each model, with its accuracy where that is known."""
    width, shares = max(map(len, bits)), accuracies or {}
    lines = (f"  {name:<{width}}  {bits[name]:.3f} bits/{unit}" for name in bits)
    known = (f"  accuracy {shares[name]:6.2%}" if name in shares else "" for name in bits)
    return "\n".join(map("".join, zip(lines, known, strict=True)))


def draw_curves(workdir: Path, baseline_bits: Mapping[str, float], unit: str, path: Path | None = None) -> Path:
    """Draws the bits per unit over the steps from `metrics.jsonl`, and returns the picture's path.

    Args:
      workdir: Of the run.
      baseline_bits: Of simpler models, by name.
      unit: What a target is, such as 'byte'. With subwords, 'byte' shows evaluations only.
      path: Its ending says what is written: .png, .svg or .pdf; None = curves.png in the workdir.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    records = list(read_records(workdir / JSON_LINES))
    train, valid = (_points(records, split, unit) for split in ("train", "valid"))
    smoothed = _smooth(train[1])
    if len(smoothed):
        axes.plot(*train, color="tab:blue", alpha=0.25, linewidth=1, label="train, as logged")
        axes.plot(train[0], smoothed, color="tab:blue", label=f"train, smoothed: {smoothed[-1]:.3f} at the end")
    if len(valid[0]):
        label = f"validation: {valid[1][-1]:.3f} after step {valid[0][-1]:,.0f}"
        axes.plot(*valid, color="tab:red", marker="o", markersize=4, label=label)
    for (name, bits), style in zip(baseline_bits.items(), (":", "--", "-."), strict=False):
        axes.axhline(bits, linestyle=style, color="gray", label=f"{name}: {bits:.3f}")
    axes.set(xlabel="step", ylabel=f"bits per {unit}", title=f"{workdir.absolute().name}: bits per {unit}")
    _set_range(axes, [*_without_beginning(smoothed), *_without_beginning(valid[1]), *baseline_bits.values()])
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    path = path or workdir / "curves.png"
    figure.savefig(path)
    return path


def _points(records: Sequence[Record], split: str, unit: str) -> tuple[np.ndarray, np.ndarray]:
    name = f"bits_per_{unit}"
    points = [(record["step"], record[name]) for record in records if record["split"] == split and name in record]
    steps, bits = np.array(points, float).reshape(-1, 2).T
    return steps, bits


def _smooth(values: np.ndarray) -> np.ndarray:
    """Returns means over a window around each value: a twentieth of all or five, less where one side ends."""
    if not len(values):
        return values
    window = np.ones(2 * max(len(values) // 40, min(2, len(values) // 5)) + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _without_beginning(values: np.ndarray) -> np.ndarray:
    return values[len(values) // 10 :]


def _set_range(axes: Any, values: Sequence[float]) -> None:
    """Shows these values; the first steps of a run, which are not among them, would press the rest together."""
    if values and max(values) > min(values):
        margin = 0.05 * (max(values) - min(values))
        axes.set_ylim(min(values) - margin, max(values) + margin)
