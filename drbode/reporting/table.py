"""The ablation table: its columns and cells, and how it is written in each format."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import NamedTuple

from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from drbode.evaluation.inference import mean_interval
from drbode.reporting.escape import for_latex, for_markdown, one_line, visible
from drbode.reporting.measures import SECTIONS, Measure, Section, in_order, measure
from drbode.reporting.notes import BEST, CONDITIONS, notes, troubles
from drbode.reporting.runs import RunRecord
from drbode.reporting.variants import Row, compare, find_baseline, full_name, group_runs

WIDEST = 8  # columns beside the variant's that a page holds


class Cell(NamedTuple):
    """What stands in the table, and the number it is sorted by."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class AblationTable:
    """Rows in the order of their first run, the measure that compares them, and notes."""

    measure: str
    baseline: str
    rows: Sequence[Row]
    notes: Sequence[str]

    @property
    def names(self) -> list[str]:
        """The measures with a column, in order: those that any row has and that have a place."""
        there = dict.fromkeys(name for row in self.rows for name in row.values)
        return in_order(n for n in there if n == self.measure or measure(n).section)

    def columns(self, section: Section | None = None) -> list[tuple[str, Callable[[Row], Cell]]]:
        """Headings, each with what makes a row's cell below it; of one section, or all."""
        shown: list[tuple[str, Callable[[Row], Cell]]] = [
            ("variant", lambda row: Cell(row.name + BEST * row.best + _marks(row))),
        ]
        if section in (None, "result"):
            shown.append(("seeds", lambda row: Cell(_seeds(row), len(row.seeds))))
        for name in self.names:
            how = measure(name)
            place = "result" if name == self.measure else how.section
            if section in (None, place):
                shown.append((how.label, _cell_of(name, how, place == "result")))
            if name == self.measure and section in (None, "result") and len(self.rows) > 1:
                shown.append((f"difference to {self.baseline}", _difference_of(how)))
                shown.append(("p (Holm)", _p))
        return shown

    def grid(self, section: Section | None = None) -> tuple[list[str], list[list[Cell]]]:
        """Headings, and a list of cells a row."""
        columns = self.columns(section)
        return [h for h, _ in columns], [[cell(row) for _, cell in columns] for row in self.rows]

    def grids(self) -> Iterator[tuple[Section, list[str], list[list[Cell]]]]:
        """The table in pieces as wide as a page: results, what stands beside them, costs."""
        for section in SECTIONS:
            variant, *rest = self.columns(section)
            pages = -(-len(rest) // WIDEST)
            for page in range(pages):
                first, end = (len(rest) * n // pages for n in (page, page + 1))
                columns = [variant, *rest[first:end]]
                heads = [head for head, _ in columns]
                yield section, heads, [[cell(row) for _, cell in columns] for row in self.rows]

    def to_terminal(self) -> list[Table]:
        """rich's tables, a piece each."""
        pieces = []
        for section, heads, rows in self.grids():
            title = SECTIONS[section]
            shown = Table(title=title, title_justify="left", title_style="bold")
            for number, head in enumerate(heads):
                side: JustifyMethod = "right" if number else "left"
                shown.add_column(Text(visible(head)), justify=side, overflow="fold")
            for row in rows:
                shown.add_row(*(Text(visible(cell.text)) for cell in row))
            pieces.append(shown)
        return pieces

    def to_markdown(self) -> str:
        """The pieces, and the notes below them."""
        parts = []
        for _, heads, rows in self.grids():
            lines = [list(map(for_markdown, heads)), ["---", *["--:"] * (len(heads) - 1)]]
            lines += [[for_markdown(cell.text) for cell in row] for row in rows]
            parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        return (
            "\n\n".join([*parts, "\n".join(f"- {for_markdown(note)}" for note in self.notes)])
            + "\n"
        )

    def to_latex(self) -> str:
        """The pieces as tables for `booktabs`, the notes as comments."""
        parts = ["\n".join(f"% {one_line(note)}" for note in self.notes)]
        for _, heads, rows in self.grids():
            lines = [[cell.text for cell in row] for row in rows]
            body = [" & ".join(map(for_latex, line)) + r" \\" for line in (heads, *lines)]
            body.insert(1, r"\midrule")
            parts.append(
                "\n".join(
                    [
                        rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
                        r"\toprule",
                        *body,
                        r"\bottomrule",
                        r"\end{tabular}",
                    ]
                )
            )
        return "\n\n".join(parts) + "\n"

    def records(self) -> list[dict[str, str | float | None]]:
        """One flat row per variant: every measure's mean and standard deviation, and the seeds."""
        records = []
        for row in self.rows:
            flat: dict[str, str | float | None] = {"variant": row.name, "seeds": len(row.seeds)}
            for name in self.names:
                values = row.of(name)
                flat[name] = fmean(values) if values else None
                flat[f"{name} sd"] = stdev(values) if len(values) > 1 else None
            if row.difference is not None:
                low, high = row.difference.interval or (None, None)
                flat |= {"difference": row.difference.mean, "low": low, "high": high}
                flat |= {"p": row.difference.p_value, "p holm": row.p_value}
            flat |= {"best group": float(row.best), "failed": "; ".join(row.failed.values())}
            records.append(flat)
        return records

    def to_csv(self) -> str:
        """Every measure as it was recorded, unrounded, and no notes."""
        flat = self.records()
        heads = list(dict.fromkeys(name for row in flat for name in row))
        out = io.StringIO()
        writer = csv.DictWriter(out, heads)
        writer.writeheader()
        writer.writerows(flat)
        return out.getvalue()


def build_table(
    runs: Sequence[RunRecord], baseline: str | None = None, measure_name: str = "accuracy"
) -> AblationTable:
    """Groups runs into variants and compares each with the baseline, and with the best.

    `baseline` is a variant's overrides, the first run's where it is None. Raises BadInput for a
    baseline or a measure that is not there.
    """
    name = full_name(runs, measure_name)
    rows = group_runs(runs, name)
    chosen = find_baseline(rows, baseline)
    rows = compare(rows, chosen, name)
    return AblationTable(name, chosen.name, rows, [*notes(rows, chosen, name), *troubles(rows)])


def _marks(row: Row) -> str:
    return "".join(CONDITIONS[name][0] for name in row.odd)


def _seeds(row: Row) -> str:
    return f"{len(row.seeds)}" + (f" ({len(row.failed)} failed)" if row.failed else "")


def _cell_of(name: str, how: Measure, with_interval: bool) -> Callable[[Row], Cell]:
    def cell(row: Row) -> Cell:
        values = row.of(name)
        if not values:
            return Cell("")
        mean = fmean(values)
        interval = mean_interval(values)
        text = how.text(mean)
        if interval is not None and with_interval:
            text += f" [{how.text(interval.low)}, {how.text(interval.high)}]"
        return Cell(text, mean)

    return cell


def _difference_of(how: Measure) -> Callable[[Row], Cell]:
    def cell(row: Row) -> Cell:
        if row.difference is None:
            return Cell("")
        text = how.text(row.difference.mean, "+")
        if row.difference.interval is not None:
            low, high = (how.text(bound, "+") for bound in row.difference.interval)
            text += f" [{low}, {high}]"
        return Cell(text, row.difference.mean)

    return cell


def _p(row: Row) -> Cell:
    if row.p_value is None:
        return Cell("")
    return Cell("<0.001" if row.p_value < 0.001 else f"{row.p_value:.3f}", row.p_value)
