"""What a run says in the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

console = Console(highlight=False)


def show_plan(plan: Mapping[str, str]) -> None:
    """What the run is about to do, a line a thing."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, text in plan.items():
        table.add_row(name, text)
    console.print(table)


def show_benchmark(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Accuracy after each stage, with 95 % intervals, and the paired difference to the base."""
    first = next(iter(results.values()))["summary"]
    parts = list(first["parts"])
    table = Table(title="benchmark", title_justify="left", title_style="bold")
    table.add_column("after")
    table.add_column(f"accuracy ({first['questions']} questions)", no_wrap=True)
    for part in parts:
        table.add_column(f"{part} ({first['parts'][part]['questions']})", no_wrap=True)
    table.add_column("ECE", justify="right")
    if len(results) > 1:
        table.add_column("difference to base", no_wrap=True)
        table.add_column("p (McNemar)", justify="right")
    for name, result in results.items():
        summary = result["summary"]
        cells = [name, accuracy(summary)]
        cells += [accuracy(summary["parts"][part]) for part in parts]
        cells.append(f"{summary['ece']:.2f}")
        if "against_base" in result:
            own = result["against_base"]["all"]
            low, high = own["interval"]
            cells.append(f"{100 * own['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]")
            cells.append(
                f"{own['p_value']:.1e}" if own["p_value"] < 0.001 else f"{own['p_value']:.3f}"
            )
        table.add_row(*cells)
    console.print(table)
    console.print(
        "Percent, [95 % interval]. "
        f"Chance is {100 * first['chance']:.1f}, always the longest alternative "
        f"{100 * first['floor_longest']:.1f}."
    )
    if len(results) > 1:
        console.print(
            "Difference and p speak of these two models on these questions, not of the methods: "
            "for those, run several seeds."
        )
    if first["prompts_cut"]:
        console.print(f"{first['prompts_cut']} questions were too long and lost their start.")


def accuracy(summary: Mapping[str, Any]) -> str:
    low, high = summary["interval"]
    mark = " at chance" if summary["at_chance"] else ""
    return f"{100 * summary['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]{mark}"


def ledger(counts: Mapping[str, Any]) -> str:
    """A ledger of rows in one line."""
    text = (
        f"{counts['rows']} rows, {counts['tokens']} tokens, {counts['supervised']} supervised, "
        f"{100 * counts['ends_supervised']:.0f} % of ends supervised"
    )
    if counts["cut"]:
        text += f", {counts['cut']} cut"
    for reason, count in counts["dropped"].items():
        text += f", {count} dropped ({reason})"
    return text
