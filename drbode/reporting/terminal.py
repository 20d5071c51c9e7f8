"""What a run says in the terminal."""

import sys
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from drbode.reporting.table import AblationTable

# A pipe or a log file has no width of its own; the tables need this much.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 128)


def show_plan(plan: Mapping[str, str]) -> None:
    """What the run is about to do, a line a thing."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, text in plan.items():
        table.add_row(name, text)
    console.print(table)


def show_benchmark(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Accuracy after each stage, whole and by part, and the paired difference to the base."""
    written = next(iter(results.values()))["summary"]["stop_rate"] is not None
    table = Table(title="benchmark", title_justify="left", title_style="bold")
    table.add_column("after")
    table.add_column("questions")
    table.add_column("", justify="right")
    table.add_column("accuracy, %", no_wrap=True)
    if written:
        table.add_column("no answer, %", justify="right", min_width=6)
        table.add_column("stopped, %", justify="right", min_width=8)
    if len(results) > 1:
        table.add_column("difference to base", no_wrap=True)
        table.add_column("p", justify="right", no_wrap=True)
    for name, result in results.items():
        whole = result["summary"]
        against = result.get("against_base", {})
        for number, (part, summary) in enumerate({"all": whole, **whole["parts"]}.items()):
            cells = [name if number == 0 else "", part, str(summary["questions"])]
            cells.append(accuracy(summary))
            if written:
                cells += [f"{100 * summary[key]:.1f}" for key in ("unanswered", "stop_rate")]
            cells += difference(against[part]) if against else ()
            table.add_row(*cells, end_section=number == len(whole["parts"]))
    console.print(table)
    whole = next(iter(results.values()))["summary"]
    console.print(
        f"[95 % interval]. Chance is {100 * whole['chance']:.1f}, always the longest alternative "
        f"{100 * whole['floor_longest']:.1f}."
    )
    if written:
        console.print("No answer counts as wrong; stopped: ended its turn before the limit.")
    else:
        errors = ", ".join(f"{name} {r['summary']['ece']:.2f}" for name, r in results.items())
        console.print(f"Calibration error (ECE) {errors}.")
    if len(results) > 1:
        console.print(
            "Difference and p (exact McNemar) compare these two models on these questions, not "
            "the methods that made them: for that, run several seeds."
        )
    if whole["prompts_cut"]:
        console.print(f"{whole['prompts_cut']} questions were too long and lost their start.")


def show_table(table: AblationTable) -> None:
    """The ablation table, and what is to be known of it."""
    for piece in table.to_terminal():
        console.print(piece)
    for note in table.notes:
        console.print(note, markup=False)


def columns(texts: Mapping[str, str]) -> Table:
    """Texts beside each other under their names."""
    table = Table(*texts, box=box.SIMPLE_HEAD, show_edge=False, expand=True)
    for column in table.columns:
        column.ratio = 1
    table.add_row(*(Text(text) for text in texts.values()))
    return table


def difference(pair: Mapping[str, Any]) -> tuple[str, str]:
    """A paired difference in points with its interval, and its p-value."""
    low, high = pair["interval"]
    p = pair["p_value"]
    points = f"{100 * pair['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    return points, "<0.001" if p < 0.001 else f"{p:.3f}"


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
