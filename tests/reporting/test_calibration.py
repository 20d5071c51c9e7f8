"""The table on stored runs of one variant: a difference that is none is declared in 5 %."""

import random
from dataclasses import replace
from pathlib import Path
from statistics import stdev

import pytest

from drbode.evaluation.inference import smallest_difference
from drbode.reporting.runs import RunRecord, read_runs, record_files
from drbode.reporting.table import build_table

RECORDS = Path(__file__).parent.parent.parent / "experiments" / "a_a" / "records"
ARM, TABLES = 5, 600


@pytest.fixture(scope="module")
def runs() -> list[RunRecord]:
    runs, complaints = read_runs(record_files(RECORDS))
    assert not complaints
    assert len({run.variant for run in runs}) == 1
    assert len({run.seed for run in runs}) == len(runs) >= 20
    return runs


def declared(runs: list[RunRecord], shift: float) -> float:
    """The share of tables that declare a difference between two arms drawn without replacement."""
    draw = random.Random(0)
    count = 0
    for _ in range(TABLES):
        drawn = draw.sample(runs, 2 * ARM)
        arms = []
        for number, run in enumerate(drawn):
            arm = "ab"[number % 2]
            accuracy = run.measures["accuracy"] + (shift if arm == "b" else 0.0)
            arms.append(
                replace(
                    run,
                    overrides=(f"arm={arm}",),
                    config={**(run.config or {}), "arm": arm},
                    measures={"accuracy": accuracy},
                )
            )
        row = build_table(arms, "arm=a").rows[1]
        count += row.p_value is not None and row.p_value <= 0.05
    return count / TABLES


def test_equal_arms_differ_in_no_more_than_5_percent(runs: list[RunRecord]) -> None:
    share = declared(runs, 0.0)
    print(f"equal arms: a difference in {100 * share:.1f} % of {TABLES} tables")
    assert share <= 0.05 + 2.6 * (0.05 * 0.95 / TABLES) ** 0.5


def test_the_smallest_difference_is_seen_in_80_percent(runs: list[RunRecord]) -> None:
    spread = stdev(run.measures["accuracy"] for run in runs)
    shift = smallest_difference(spread, ARM, paired=False)
    share = declared(runs, shift)
    print(
        f"spread {100 * spread:.2f} points; arms {100 * shift:.1f} points apart: a difference in "
        f"{100 * share:.1f} % of {TABLES} tables"
    )
    assert share == pytest.approx(0.8, abs=0.06)
