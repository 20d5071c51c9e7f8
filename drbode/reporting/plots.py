"""Plots of one run."""

import csv
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

STYLES: dict[str, dict[str, Any]] = {
    "train": {"alpha": 0.8},
    "validation": {"marker": "o", "markersize": 4},
}


def learning_curves(metrics: Path, target: Path) -> None:
    """Training and validation loss of all stages against the run's optimizer step, as PNG."""
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    with metrics.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["name"] == "loss":
                points = curves.setdefault(row["stage"], {}).setdefault(row["split"], [])
                points.append((int(row["step"]), float(row["value"])))
    figure = Figure(figsize=(5.5 * len(curves), 3.6), layout="constrained")
    for number, (stage, splits) in enumerate(curves.items(), 1):
        axes = figure.add_subplot(1, len(curves), number)
        for split, points in splits.items():
            steps, losses = zip(*points, strict=True)
            axes.plot(steps, losses, label=split, **STYLES.get(split, {}))
        axes.set(title=stage, xlabel="optimizer step of the run", ylabel="loss (nats a token)")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(target, dpi=120)
