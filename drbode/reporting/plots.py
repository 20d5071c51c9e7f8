"""Plots of one run."""

import csv
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from drbode.config import STAGES
from drbode.record import whole
from drbode.reporting.escape import for_plot

STYLES: dict[str, dict[str, Any]] = {
    "train": {"alpha": 0.8},
    "validation": {"marker": "o", "markersize": 4},
    "rollouts": {"marker": ".", "linestyle": "none", "alpha": 0.7},
}


def reward_hacking(metrics: Path, stages: Collection[str], target: Path) -> None:
    """The score that stages optimised and the one it stands for, against the policy's distance.

    The proxy is the reward model's score, gold the rule behind the preferences; where gold falls
    while the proxy still rises, the reward is hacked. The distance is sqrt(KL to the
    reference), in which gold falls about linearly (Gao et al. 2023, "Scaling laws for reward model
    overoptimization").
    """
    seen: dict[str, dict[str, list[float]]] = {}
    with metrics.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["stage"] in stages and row["split"] in ("rollouts", "validation"):
                seen.setdefault(row["split"], {}).setdefault(row["name"], []).append(
                    float(row["value"])
                )
    panels = {
        "score of the reward model": "proxy",
        "gold score": "gold",
        "benchmark accuracy": "benchmark_accuracy",
        "share that keeps the content": "keeps_content",
        "length (tokens)": "length",
        "share that repeats itself": "repeats",
    }
    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    for number, (label, name) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), number)
        for split, values in seen.items():
            if name in values:
                distance = [max(kl, 0.0) ** 0.5 for kl in values["kl"]]
                axes.plot(distance, values[name], label=split, **STYLES[split])
        axes.set(xlabel="sqrt(KL to the reference), nats$^{1/2}$", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
    with whole(target) as draft:
        figure.savefig(draft, dpi=120)


def funnel(steps: Sequence[Mapping[str, Any]], target: Path) -> None:
    """Rows that are left after each filter of a curation, as PNG."""
    names = ["all", *(for_plot(step["filter"]) for step in steps)]
    rows = [steps[0]["before"], *(step["left"] for step in steps)]
    figure = Figure(figsize=(6, 0.6 + 0.4 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    axes.bar_label(axes.barh(names, rows), padding=3)
    axes.invert_yaxis()
    axes.set(xlabel="rows left after the filter", xlim=(0, 1.12 * rows[0]))
    with whole(target) as draft:
        figure.savefig(draft, format="png", dpi=120)


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
            axes.plot(steps, losses, label=for_plot(split), **STYLES.get(split, {}))
        axes.set(
            title=for_plot(stage),
            xlabel="optimizer step of the run",
            ylabel=loss_label(STAGES[stage].loss_unit),
        )
        axes.grid(alpha=0.3)
        axes.legend()
    with whole(target) as draft:
        figure.savefig(draft, dpi=120)


def loss_label(unit: str) -> str:
    """`loss (nats a token)`, or `loss of a pair` where the loss has no unit itself."""
    return f"loss ({unit})" if unit.startswith("nats") else f"loss of {unit}"
