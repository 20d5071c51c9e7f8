"""Figures of an ablation table."""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from drbode.evaluation.inference import mean_interval
from drbode.reporting.escape import for_plot
from drbode.reporting.measures import measure, shown_in
from drbode.reporting.table import AblationTable
from drbode.reporting.variants import Row

NUMBER = re.compile(r"^([\w.]+)=(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)$")
BAR: dict[str, Any] = {"marker": "o", "capsize": 3}


def figures(table: AblationTable) -> dict[str, Figure]:
    """Every figure that the table has the values for, by the name of its file."""
    drawn = {
        "intervals": intervals(table),
        "pareto": pareto(table),
        "over": over(table),
        "curves": curves(table),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def intervals(table: AblationTable) -> Figure | None:
    """Each variant's mean of the compared measure, with its 95 % interval and its runs."""
    rows = [row for row in table.rows if row.of(table.measure)]
    if not rows:
        return None
    how = measure(table.measure)
    figure = Figure(figsize=(7, 0.8 + 0.42 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(reversed(rows)):
        values = [how.factor * v for v in row.of(table.measure)]
        colour = "C0" if row.best else "C7"
        axes.errorbar(fmean(values), place, xerr=_reach(values), fmt="o", capsize=4, color=colour)
        axes.plot(values, [place] * len(values), ".", color=colour, alpha=0.4)
    axes.set_yticks(range(len(rows)), [for_plot(row.name) for row in reversed(rows)])
    axes.set(xlabel=f"{for_plot(how.label)}: runs, mean over seeds with 95 % t interval")
    axes.grid(alpha=0.3, axis="x")
    return figure


def pareto(table: AblationTable) -> Figure | None:
    """The compared measure against the costs; a line joins the variants that none dominates."""
    costs = [name for name in shown_in("pareto") if any(row.of(name) for row in table.rows)]
    rows = [row for row in table.rows if row.of(table.measure)]
    if len(rows) < 2 or not costs:
        return None
    how = measure(table.measure)
    figure = Figure(figsize=(4.4 * len(costs), 3.8), layout="constrained")
    for number, name in enumerate(costs, 1):
        axes = figure.add_subplot(1, len(costs), number)
        points = []
        for row in rows:
            x = measure(name).factor * fmean(row.of(name))
            values = [how.factor * v for v in row.of(table.measure)]
            points.append((x, fmean(values)))
            label = for_plot(row.name) if number == 1 else None
            axes.errorbar(*points[-1], yerr=_reach(values), fmt="o", capsize=3, label=label)
        if how.better != "neither":
            front = _front(points, lower=how.better == "lower")
            axes.plot(*zip(*front, strict=True), color="C7", alpha=0.6, zorder=0)
        if max(x for x, _ in points) > 10 * min(x for x, _ in points):
            axes.set_xscale("log")
        axes.margins(x=0.1)
        axes.set(xlabel=for_plot(measure(name).label), ylabel=for_plot(how.label))
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=min(len(rows), 5), fontsize=8)
    return figure


def over(table: AblationTable) -> Figure | None:
    """The compared measure and the costs over the number that is swept, if there is one."""
    swept = _swept(table.rows)
    if swept is None:
        return None
    key, lines = swept
    names = [n for n in dict.fromkeys((table.measure, *shown_in("over"))) if n in table.names]
    figure = Figure(figsize=(4.6 * len(names), 3.6), layout="constrained")
    for number, name in enumerate(names, 1):
        axes = figure.add_subplot(1, len(names), number)
        how = measure(name)
        for label, points in lines.items():
            there = sorted((x, row.of(name)) for x, row in points.items() if row.of(name))
            scaled = [(x, [how.factor * v for v in values]) for x, values in there]
            axes.errorbar(
                [x for x, _ in scaled],
                [fmean(values) for _, values in scaled],
                yerr=[max(_reach(values) or [0.0]) for _, values in scaled],
                label=for_plot(label),
                **BAR,
            )
        places = sorted({x for points in lines.values() for x in points})
        if places[0] > 0 and places[-1] >= 8 * places[0]:
            axes.set_xscale("log")
            axes.set_xticks(places, [f"{x:g}" for x in places])
            axes.minorticks_off()
        axes.set(xlabel=for_plot(key), ylabel=for_plot(how.label))
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend(fontsize=7)
    return figure


def curves(table: AblationTable) -> Figure | None:
    """Validation loss of each stage, mean over seeds, against the run's optimizer step."""
    stages: dict[str, dict[str, dict[int, list[float]]]] = {}
    for row in table.rows:
        for run in row.runs:
            for stage, step, loss in _losses(run.folder / "metrics.csv"):
                points = stages.setdefault(stage, {}).setdefault(row.name, {})
                points.setdefault(step, []).append(loss)
    if not stages:
        return None
    figure = Figure(figsize=(5.5 * len(stages), 3.6), layout="constrained")
    for number, (stage, variants) in enumerate(stages.items(), 1):
        axes = figure.add_subplot(1, len(stages), number)
        for name, points in variants.items():
            steps = sorted(points)
            axes.plot(steps, [fmean(points[s]) for s in steps], marker=".", label=for_plot(name))
        axes.set(
            title=for_plot(stage), xlabel="optimizer step of the run", ylabel="validation loss"
        )
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return figure


def _losses(metrics: Path) -> list[tuple[str, int, float]]:
    if not metrics.is_file():
        return []
    with metrics.open(newline="") as file:
        return [
            (row["stage"], int(row["step"]), float(row["value"]))
            for row in csv.DictReader(file)
            if row["split"] == "validation" and row["name"] == "loss"
        ]


def _reach(values: Sequence[float]) -> list[float] | None:
    """Half the interval's width, for an error bar; None for one run."""
    interval = mean_interval(values)
    return None if interval is None else [(interval.high - interval.low) / 2]


def _front(points: Sequence[tuple[float, float]], lower: bool) -> list[tuple[float, float]]:
    """The points for which no other is both cheaper and better, the cheapest first."""
    sign = -1 if lower else 1
    front: list[tuple[float, float]] = []
    best = -math.inf
    for x, y in sorted(points, key=lambda p: (p[0], -sign * p[1])):
        if sign * y > best:
            front.append((x, y))
            best = sign * y
    return front


def _swept(rows: Sequence[Row]) -> tuple[str, Mapping[str, Mapping[float, Row]]] | None:
    """The one key whose numbers differ between rows, and the rows at each of its numbers.

    Rows that differ in other overrides as well are on lines of their own, under these overrides.
    """
    keys: dict[str, dict[str, dict[float, Row]]] = {}
    for row in rows:
        for word in row.name.split():
            if swept := NUMBER.match(word):
                rest = " ".join(w for w in row.name.split() if w != word) or "all"
                keys.setdefault(swept[1], {}).setdefault(rest, {})[float(swept[2])] = row
    several = {k: v for k, v in keys.items() if max(len(points) for points in v.values()) > 1}
    return next(iter(several.items())) if len(several) == 1 else None
