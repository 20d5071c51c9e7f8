"""The variants of an ablation: runs grouped by their overrides, compared over their seeds."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import fmean

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from drbode.config import BadInput, one_of
from drbode.evaluation.inference import LEVEL, Difference, difference, holm
from drbode.record.measures import LOSS
from drbode.reporting.measures import in_order, measure
from drbode.reporting.runs import RunRecord


@dataclass(frozen=True)
class Row:
    """A variant: its values of each measure by seed, and its difference to the baseline."""

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


def full_name(runs: Sequence[RunRecord], short: str) -> str:
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


def group_runs(runs: Sequence[RunRecord], compared_by: str) -> list[Row]:
    """The runs of each variant, named by the overrides in which it differs from the others.

    They hold the measures after the last stage, and the measure `compared_by`.
    """
    variants: dict[str, list[RunRecord]] = {}
    by_words = {run.overrides: run.variant for run in runs if run.config is not None}
    for run in runs:
        # A run that failed before it had a config is known by its words alone.
        key = run.variant if run.config is not None else by_words.get(run.overrides, run.variant)
        variants.setdefault(key, []).append(run)
    everywhere = Counter(word for group in variants.values() for word in set(_read(group[0])))
    common = {word for word, count in everywhere.items() if count == len(variants)}
    rows = []
    for group in variants.values():
        words = [w for w in _read(group[0]) if w not in common or len(variants) == 1]
        done = {run.seed: run for run in group if run.status == "finished"}  # of two, the later one
        values: dict[str, dict[int, float]] = {}
        for seed, run in done.items():
            of_stage = {n: value for n, value in run.of_stages.items() if n == compared_by}
            for name, value in (of_stage | dict(run.measures)).items():
                values.setdefault(name, {})[seed] = value
        failed = {run.seed: run.error or run.status for run in group if run.seed not in done}
        rows.append(Row(" ".join(words) or "defaults", values, failed, group))
    return rows


def _read(run: RunRecord) -> list[str]:
    """The overrides that had an effect on the run: not those of a block that it did not have."""

    def there(word: str) -> bool:
        tree = run.config
        for name in re.split(r"[./]", word.partition("=")[0].lstrip("+~")):
            if isinstance(tree, Mapping):
                if name not in tree:
                    return False
                tree = tree[name]
        return True

    return [word for word in run.overrides if run.config is None or there(word)]


def find_baseline(rows: Sequence[Row], overrides: str | None) -> Row:
    """The variant of these overrides; without any, the first that has a result.

    Raises BadInput where none or several have them.
    """
    if overrides is None:
        return next((row for row in rows if row.seeds), rows[0])
    words = _meant(overrides.split())
    named = [(row, _meant(row.name.split())) for row in rows]
    exact = [row for row, name in named if words == name]
    matches = exact or [row for row, name in named if words <= name | _meant(row.runs[0].overrides)]
    if len(matches) == 1:
        return matches[0]
    what = "several variants have" if matches else "there is no variant"
    expected = ", ".join(row.name for row in matches or rows)
    raise BadInput(f"baseline: {what} {overrides}; expected one of {expected}")


def _meant(words: Iterable[str]) -> set[tuple[str, str]]:
    """Overrides as key and value, as Hydra reads the value: `False` is `false`, 1e-3 is 0.001."""
    parser = OverridesParser.create()
    pairs = set()
    for word in words:
        key, _, value = word.partition("=")
        with suppress(HydraException):  # a word without a value, or a part of a longer one
            value = str(parser.parse_override(word).value())
        pairs.add((key.lstrip("+~"), value))
    return pairs


def _paired(one: Row, other: Row) -> bool:
    """Whether a seed gives both the same order of rows in every stage that both have."""
    first, second = one.runs[0].order, other.runs[0].order
    shared = first.keys() & second.keys()
    return bool(shared) and all(first[stage] == second[stage] for stage in shared)


def _versus(row: Row, other: Row, name: str) -> Difference | None:
    if name not in row.values or name not in other.values:
        return None
    return difference(other.values[name], row.values[name], _paired(row, other))


def compare(rows: Sequence[Row], baseline: Row, name: str) -> list[Row]:
    """The rows with their difference to the baseline, and the best group marked."""
    differences = {r.name: _versus(r, baseline, name) for r in rows if r is not baseline}
    tested = {n: d.p_value for n, d in differences.items() if d and d.p_value is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    best = _best_group(rows, name)
    return [
        replace(
            row,
            difference=differences.get(row.name),
            p_value=adjusted.get(row.name),
            best=row.name in best,
            odd=_odd(row, baseline),
        )
        for row in rows
    ]


def _best_group(rows: Sequence[Row], name: str) -> set[str]:
    """The variant of the best mean, and those that do not differ from it significantly.

    Which variant is best is not known beforehand, so Holm's correction is over all pairs. Empty
    where a variant has fewer than two runs, since then nothing can be tested, and for a measure
    that is neither better higher nor better lower.
    """
    there = [row for row in rows if name in row.values]
    better = measure(name).better
    if better == "neither" or len(there) < 2 or any(len(row.values[name]) < 2 for row in there):
        return set()
    differences = {
        (one.name, two.name): _versus(one, two, name)
        for one, two in itertools.combinations(there, 2)
    }
    p_values = {pair: d.p_value for pair, d in differences.items() if d and d.p_value is not None}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    sign = -1 if better == "lower" else 1
    top = max(there, key=lambda row: sign * fmean(row.of(name))).name
    apart = {pair for pair, p in adjusted.items() if p <= LEVEL}
    return {r.name for r in there if not {(top, r.name), (r.name, top)} & apart}


def _odd(row: Row, baseline: Row) -> tuple[str, ...]:
    """Conditions in which a run of the row is unlike the baseline's first finished run."""
    expected = next((run.conditions for run in baseline.runs if run.conditions), {})
    seen = [run.conditions for run in row.runs if run.conditions]
    return tuple(
        n for n, value in expected.items() if any(conditions[n] != value for conditions in seen)
    )
