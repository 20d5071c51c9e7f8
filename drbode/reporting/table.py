"""The ablation table: variants over seeds, and which of their differences are real."""

import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from drbode.config import BadInput, one_of
from drbode.evaluation.inference import (
    LEVEL,
    Difference,
    difference,
    holm,
    mean_interval,
    pooled_spread,
    smallest_difference,
)
from drbode.record.measures import LOSS
from drbode.reporting.measures import SECTIONS, Measure, Section, in_order, measure
from drbode.reporting.runs import RunRecord

BEST = "*"
WIDEST = 8  # columns beside the variant's that a page holds


class Cell(NamedTuple):
    """What stands in the table, and the number it is sorted by."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Row:
    """A variant: its values of each measure by seed, and how it stands to the baseline."""

    name: str
    values: Mapping[str, Mapping[int, float]]
    failed: Mapping[int, str]  # seeds, and why there is no result
    runs: Sequence[RunRecord]
    difference: Difference | None = None  # None: the baseline itself, or nothing to compare
    p_value: float | None = None  # adjusted over the rows
    best: bool = False
    odd: tuple[str, ...] = ()  # conditions in which its runs differ from the baseline's

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for run in self.runs if run.status == "finished"})

    def of(self, name: str) -> list[float]:
        """The measure's values, a run each; empty where it was not measured."""
        return list(self.values[name].values()) if name in self.values else []


@dataclass(frozen=True)
class AblationTable:
    """Rows in the order of their first run, what they are compared by, and what is to be known."""

    measure: str
    baseline: str
    rows: Sequence[Row]
    notes: Sequence[str]

    @property
    def names(self) -> list[str]:
        """The measures with a column, in order: what any row has, if it is shown or compared by."""
        there = dict.fromkeys(name for row in self.rows for name in row.values)
        return in_order(n for n in there if n == self.measure or measure(n).section)

    def columns(self, section: Section | None = None) -> list[tuple[str, Callable[[Row], Cell]]]:
        """Headings, and what stands below them for a row; of one section, or all."""
        shown: list[tuple[str, Callable[[Row], Cell]]] = [
            ("variant", lambda row: Cell(row.name + BEST * row.best + _marks(row))),
        ]
        if section in (None, "result"):
            shown.append(("seeds", lambda row: Cell(_seeds(row), len(row.seeds))))
        for name in self.names:
            how = measure(name)
            own = "result" if name == self.measure else how.section
            if section in (None, own):
                shown.append((how.label, _cell_of(name, how, own == "result")))
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
        found = []
        for section, heads, rows in self.grids():
            title = SECTIONS[section]
            shown = Table(title=title, title_justify="left", title_style="bold")
            for number, head in enumerate(heads):
                side: JustifyMethod = "right" if number else "left"
                shown.add_column(Text(head), justify=side, overflow="fold")
            for row in rows:
                shown.add_row(*(Text(cell.text) for cell in row))
            found.append(shown)
        return found

    def to_markdown(self) -> str:
        """The pieces, and the notes below them."""
        parts = []
        for _, heads, rows in self.grids():
            lines = [heads, ["---", *["--:"] * (len(heads) - 1)]]
            lines += [[cell.text.replace("|", r"\|") for cell in row] for row in rows]
            parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        return "\n\n".join([*parts, "\n".join(f"- {note}" for note in self.notes)]) + "\n"

    def to_latex(self) -> str:
        """The pieces as tables for `booktabs`, the notes as comments."""
        parts = ["\n".join(f"% {note}" for note in self.notes)]
        for _, heads, rows in self.grids():
            lines = [[cell.text for cell in row] for row in rows]
            body = [" & ".join(map(_latex, line)) + r" \\" for line in (heads, *lines)]
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
        """A flat row a variant: every measure's mean, standard deviation and number of runs."""
        found = []
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
            found.append(flat)
        return found

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
    """Groups runs into variants and holds each against the baseline, and against the best.

    `baseline` is a variant's overrides, the first run's where it is None. Raises BadInput for a
    baseline or a measure that is not there.
    """
    name = _whole_name(runs, measure_name)
    rows = _rows(runs, name)
    chosen = _baseline(rows, baseline)
    rows = _compared(rows, chosen, name)
    notes = [*_notes(rows, chosen, name), *_troubles(rows)]
    return AblationTable(name, chosen.name, rows, notes)


def _whole_name(runs: Sequence[RunRecord], short: str) -> str:
    """The measure that a name stands for: one after the last stage, or `STAGE/NAME` of a stage.

    `validation/` may be left out where nothing else has the name, and so may the stage of a loss:
    `kl`, `dpo/kl`, `validation_loss`.
    """
    last = list(dict.fromkeys(name for run in runs for name in run.measures))
    of_stages = list(dict.fromkeys(name for run in runs for name in run.of_stages))
    if not last or short in (*last, *of_stages):
        return short
    losses = [name for name in last if name.endswith(LOSS) and short in _names(LOSS)]
    meant = losses or [name for name in last if short in _names(name)]
    meant = meant or [name for name in of_stages if short in _names(name)]
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise BadInput(f"measure: several stages have {short}; expected {one_of(meant)}")
    columns = ", ".join(in_order(name for name in last if measure(name).section))
    raise BadInput(
        f"measure: no run has {short}; expected one of {columns}, or another of a record's measures"
    )


def _names(name: str) -> set[str]:
    """Of a measure of held-out rows, also the short ones: `dpo/kl`, `sft/validation_loss`."""
    return {name, *(name.replace("validation/", short, 1) for short in ("", "validation_"))}


# --- variants -----------------------------------------------------------------------------------


def _rows(runs: Sequence[RunRecord], compared: str) -> list[Row]:
    """The runs of each variant, named by the overrides in which it differs from the others.

    Beside what was measured after the last stage they hold what the table compares by.
    """
    variants: dict[str, list[RunRecord]] = {}
    by_words = {run.overrides: run.variant for run in runs if run.config is not None}
    for run in runs:
        # A run that failed before it had a config is known by its words alone.
        key = run.variant if run.config is not None else by_words.get(run.overrides, run.variant)
        variants.setdefault(key, []).append(run)
    everywhere = Counter(word for own in variants.values() for word in set(_read(own[0])))
    common = {word for word, count in everywhere.items() if count == len(variants)}
    rows = []
    for own in variants.values():
        words = [w for w in _read(own[0]) if w not in common or len(variants) == 1]
        done = {run.seed: run for run in own if run.status == "finished"}  # of two, the later one
        values: dict[str, dict[int, float]] = {}
        for seed, run in done.items():
            of_stage = {n: value for n, value in run.of_stages.items() if n == compared}
            for name, value in (of_stage | dict(run.measures)).items():
                values.setdefault(name, {})[seed] = value
        failed = {run.seed: run.error or run.status for run in own if run.seed not in done}
        rows.append(Row(" ".join(words) or "defaults", values, failed, own))
    return rows


def _read(run: RunRecord) -> list[str]:
    """The overrides that the run read: those of a block that it left out say nothing of it."""

    def there(word: str) -> bool:
        tree = run.config
        for name in re.split(r"[./]", word.partition("=")[0].lstrip("+~")):
            if isinstance(tree, Mapping):
                if name not in tree:
                    return False
                tree = tree[name]
        return True

    return [word for word in run.overrides if run.config is None or there(word)]


def _baseline(rows: Sequence[Row], asked: str | None) -> Row:
    if asked is None:
        return next((row for row in rows if row.seeds), rows[0])
    words = _meant(asked.split())
    named = [(row, _meant(row.name.split())) for row in rows]
    exact = [row for row, own in named if words == own]
    found = exact or [row for row, own in named if words <= own | _meant(row.runs[0].overrides)]
    if len(found) == 1:
        return found[0]
    what = "several variants have" if found else "there is no variant"
    raise BadInput(
        f"baseline: {what} {asked}; expected one of {', '.join(row.name for row in found or rows)}"
    )


def _meant(words: Iterable[str]) -> set[tuple[str, str]]:
    """Overrides as key and value, as Hydra reads the value: `False` is `false`, 1e-3 is 0.001."""
    parser = OverridesParser.create()
    found = set()
    for word in words:
        key, _, value = word.partition("=")
        with suppress(HydraException):  # a word without a value, or a part of a longer one
            value = str(parser.parse_override(word).value())
        found.add((key.lstrip("+~"), value))
    return found


def _paired(one: Row, other: Row) -> bool:
    """Whether a seed gives both the same order of rows in every stage that both have."""
    mine, its = one.runs[0].order, other.runs[0].order
    shared = mine.keys() & its.keys()
    return bool(shared) and all(mine[stage] == its[stage] for stage in shared)


def _versus(row: Row, other: Row, name: str) -> Difference | None:
    if name not in row.values or name not in other.values:
        return None
    return difference(other.values[name], row.values[name], _paired(row, other))


def _compared(rows: Sequence[Row], baseline: Row, name: str) -> list[Row]:
    """The rows with their difference to the baseline, and the best group marked."""
    differences = {r.name: _versus(r, baseline, name) for r in rows if r is not baseline}
    tested = {n: d.p_value for n, d in differences.items() if d and d.p_value is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    best = _best_group(rows, name)
    return [
        Row(
            row.name,
            row.values,
            row.failed,
            row.runs,
            differences.get(row.name),
            adjusted.get(row.name),
            row.name in best,
            _odd(row, baseline),
        )
        for row in rows
    ]


def _best_group(rows: Sequence[Row], name: str) -> set[str]:
    """The variant of the best mean, and those that no test tells from it.

    Which one is best is not known beforehand, so Holm is over all pairs. Empty where a variant has
    fewer than two runs, for then nothing can be told from anything, and for a measure that is
    better neither higher nor lower.
    """
    there = [row for row in rows if name in row.values]
    better = measure(name).better
    if better == "neither" or len(there) < 2 or any(len(row.values[name]) < 2 for row in there):
        return set()
    found = {
        (one.name, two.name): _versus(one, two, name)
        for one, two in itertools.combinations(there, 2)
    }
    p_values = {pair: d.p_value for pair, d in found.items() if d and d.p_value is not None}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    sign = -1 if better == "lower" else 1
    top = max(there, key=lambda row: sign * fmean(row.of(name))).name
    apart = {pair for pair, p in adjusted.items() if p <= LEVEL}
    return {r.name for r in there if not {(top, r.name), (r.name, top)} & apart}


def _odd(row: Row, baseline: Row) -> tuple[str, ...]:
    """Conditions in which a run of the row is unlike the baseline's first finished run."""
    expected = next((run.conditions for run in baseline.runs if run.conditions), {})
    seen = [run.conditions for run in row.runs if run.conditions]
    return tuple(n for n, value in expected.items() if any(own[n] != value for own in seen))


# --- what stands under the table ----------------------------------------------------------------


def _notes(rows: Sequence[Row], baseline: Row, name: str) -> Iterator[str]:
    how = measure(name)
    unit = how.label.replace(", %", " (points)")
    runs = [run for row in rows for run in row.runs if run.status == "finished"]
    seeds = sorted({run.seed for run in runs})
    questions = sorted({run.questions for run in runs})
    yield (
        f"Seeds {', '.join(map(str, seeds)) or 'none'}; questions "
        f"{', '.join(map(str, questions)) or 'none'}. [95 % t interval over seeds]."
    )
    if len(rows) > 1 and (equal := _equal_cost(rows)):
        yield equal
    values = baseline.of(name)
    if len(values) < 2:
        yield (
            "No p-value and no interval over runs: with one seed nothing tells what a variant does "
            "from the luck of its run. Give two or more, e.g. seed=0,1,2,3,4."
        )
        return
    yield (
        f"The baseline, {baseline.name}, spreads over its {len(values)} seeds by "
        f"{how.text(stdev(values))} (standard deviation of {unit})."
    )
    rest = [row for row in rows if row.difference is not None and row.p_value is not None]
    if rest:
        yield _power(rest, baseline, name)
        if any(row.best for row in rows):
            yield (
                f"{BEST}: the best group, which no test tells from the best mean (Holm over all "
                "pairs). Nothing else is ranked."
            )


def _equal_cost(rows: Sequence[Row]) -> str | None:
    """What every run was held to, if all of them were held to as much of the same."""
    found = {_length(run) for row in rows for run in row.runs if run.config is not None}
    return None if len(found) != 1 else found.pop()


def _length(run: RunRecord) -> str | None:
    assert run.config is not None
    stages = [run.config[stage] for stage in run.config["stages"]]
    for unit, words in (("steps", "optimizer steps"), ("tokens", "training tokens")):
        own = [stage[unit] for stage in stages]
        if None not in own:
            return f"Equal cost: every run took {sum(own):,} {words}."
    return None


def _power(rest: Sequence[Row], baseline: Row, name: str) -> str:
    """How small a difference the table could have seen, by the first of Holm's steps."""
    how = measure(name)
    paired = all(row.difference is not None and row.difference.paired for row in rest)
    if paired:
        spread = pooled_spread(
            [
                [
                    row.values[name][s] - baseline.values[name][s]
                    for s in row.values[name]
                    if s in baseline.values[name]
                ]
                for row in rest
            ]
        )
        runs = min(len(baseline.values[name].keys() & row.values[name].keys()) for row in rest)
    else:
        spread = pooled_spread([baseline.of(name), *(row.of(name) for row in rest)])
        runs = min(len(row.of(name)) for row in (baseline, *rest))
    assert spread is not None, "a p-value comes from a spread"
    least = smallest_difference(spread, runs, paired, LEVEL / len(rest))
    test = "paired t tests over the seeds" if paired else "Welch's t tests over the seeds"
    return (
        f"p: {test}, Holm over {len(rest)} rows. With {runs} seeds this table had 80 % power to "
        f"see a difference of {how.text(least)} or more; a smaller one may be there."
    )


def _troubles(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        for seed, why in row.failed.items():
            yield f"{row.name}, seed {seed}: no result ({why})."
    marked = {name: [row.name for row in rows if name in row.odd] for name in CONDITIONS}
    for name, own in marked.items():
        if own:
            yield f"{CONDITIONS[name][0]}: {CONDITIONS[name][1]}: {', '.join(own)}."


# Marks of rows that differ from the baseline in what should be equal, and their meaning.
CONDITIONS = {
    "software": ("†", "other versions of the packages than the baseline's"),
    "code": ("‡", "other code of drbode than the baseline's"),
    "questions": ("§", "other questions than the baseline's, so accuracies do not compare"),
    "machine": ("¶", "another processor or precision than the baseline's"),
}

# --- cells --------------------------------------------------------------------------------------


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


def _latex(text: str) -> str:
    """Text with LaTeX's own characters escaped."""
    marks = {"\\": r"\textbackslash{}", "†": r"$\dagger$", "‡": r"$\ddagger$", "§": r"\S{}"}
    marks |= {"¶": r"\P{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$"}
    return "".join(marks.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)
