"""The registry of measures: whole, and the only one."""

from pathlib import Path

import pytest

from drbode.config import STAGES
from drbode.record import load_record
from drbode.reporting.measures import MEASURES, SECTIONS, in_order, measure, shown_in

STUDIES = Path(__file__).parent.parent.parent / "experiments"


@pytest.mark.parametrize("name", MEASURES)
def test_an_entry_says_what_is_to_be_known(name: str) -> None:
    entry = MEASURES[name]
    assert entry.label
    assert entry.better in ("higher", "lower", "neither")
    assert len(set(entry.shown) & set(SECTIONS)) <= 1
    assert float(entry.text(0.5).replace(",", "")) == pytest.approx(0.5 * entry.factor, abs=0.5)
    assert not entry.phrase or name.startswith("validation/")


def test_no_two_measures_of_a_table_have_the_same_label() -> None:
    labels = [entry.label for entry in MEASURES.values() if entry.section or "open" in entry.shown]
    assert len(labels) == len(set(labels))


def test_costs_are_lower_the_better_but_for_a_rate() -> None:
    lower = {name for name in shown_in("cost") if MEASURES[name].better == "lower"}
    assert lower == {*shown_in("cost")} - {"tokens_per_second"}
    assert MEASURES["overconfident"].better == MEASURES["validation/kl"].better == "lower"


def test_a_measure_is_known_by_what_it_is_and_whose() -> None:
    assert measure("accuracy/difíceis").label == "difíceis, %"
    assert measure("sft/accuracy").label == "accuracy of sft, %"
    assert measure("sft/accuracy").section == "result"
    assert measure("dpo/validation/loss").label == "validation loss of dpo"
    assert measure("run/seconds") == MEASURES["seconds"]
    unheard = measure("validation/unheard_{of}")
    assert (unheard.label, unheard.section) == ("unheard {of}", "beside")
    assert unheard.better == "neither"
    assert unheard.said(2.5) == "unheard {of} 2.5"


def test_measures_are_in_the_order_of_the_registry_and_unknown_ones_last() -> None:
    names = ["new", "seconds", "validation/kl", "sft/validation/loss", "accuracy/x", "accuracy"]
    expected = ["accuracy/x", "accuracy", "sft/validation/loss", "validation/kl", "seconds", "new"]
    assert in_order(names) == expected


def test_every_measure_of_the_studies_is_in_the_registry() -> None:
    """What is measured is shown, or it is said here that it is not."""
    names = set()
    for path in STUDIES.glob("*/records/*.json"):
        if path.parent.parent.name != "benchmarks":
            names |= {n.partition("/")[2] for n in load_record(path, "").measures}
    assert {n for n in names if not n.startswith("accuracy/")} <= set(MEASURES)


def test_a_stage_is_no_name_of_a_measure() -> None:
    assert not {name.partition("/")[0] for name in MEASURES} & {*STAGES, "base", "run"}
