"""The notes under an ablation table: seeds, cost, power, failed runs, unequal conditions."""

from collections.abc import Iterator, Sequence
from statistics import stdev

from drbode.evaluation.inference import LEVEL, pooled_spread, smallest_difference
from drbode.reporting.measures import measure
from drbode.reporting.runs import RunRecord
from drbode.reporting.variants import Row

BEST = "*"
# Marks of rows that differ from the baseline in what should be equal, and their meaning.
CONDITIONS = {
    "software": ("†", "other versions of the packages than the baseline's"),
    "code": ("‡", "other code of drbode than the baseline's"),
    "questions": ("§", "other questions than the baseline's, so accuracies do not compare"),
    "machine": ("¶", "another processor or precision than the baseline's"),
}


def notes(rows: Sequence[Row], baseline: Row, name: str) -> Iterator[str]:
    """What holds for the whole table: seeds, questions, cost, spread, power, the best group."""
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
    """The budget that all runs had, if it was the same one."""
    costs = {_length(run) for row in rows for run in row.runs if run.config is not None}
    return None if len(costs) != 1 else costs.pop()


def _length(run: RunRecord) -> str | None:
    assert run.config is not None
    stages = [run.config[stage] for stage in run.config["stages"]]
    for unit, words in (("steps", "optimizer steps"), ("tokens", "training tokens")):
        lengths = [stage[unit] for stage in stages]
        if None not in lengths:
            return f"Equal cost: every run took {sum(lengths):,} {words}."
    return None


def _power(rest: Sequence[Row], baseline: Row, name: str) -> str:
    """The smallest difference that the table could have shown, by the first of Holm's steps."""
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


def troubles(rows: Sequence[Row]) -> Iterator[str]:
    """The runs without a result, and the variants that ran under other conditions."""
    for row in rows:
        for seed, why in row.failed.items():
            yield f"{row.name}, seed {seed}: no result ({why})."
    marked = {name: [row.name for row in rows if name in row.odd] for name in CONDITIONS}
    for name, variants in marked.items():
        if variants:
            yield f"{CONDITIONS[name][0]}: {CONDITIONS[name][1]}: {', '.join(variants)}."
