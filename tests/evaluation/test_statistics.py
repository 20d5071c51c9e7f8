"""Against scipy, statsmodels, and by hand."""

import pytest
from scipy import stats
from statsmodels.stats import contingency_tables, proportion

from drbode.evaluation.statistics import (
    brier,
    expected_calibration_error,
    mcnemar_exact,
    paired,
    wilson,
)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (281, 1301), (325, 1301), (7, 240)])
def test_wilson_equals_statsmodels(k: int, n: int) -> None:
    assert wilson(k, n) == pytest.approx(
        proportion.proportion_confint(k, n, method="wilson"), abs=1e-12
    )


def test_wilson_refuses_what_is_no_proportion() -> None:
    for k, n in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="no proportion"):
            wilson(k, n)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (6, 0), (5, 5), (30, 12), (200, 260)])
def test_mcnemar_equals_statsmodels_and_the_binomial_test(gained: int, lost: int) -> None:
    ours = mcnemar_exact(gained, lost)
    theirs = contingency_tables.mcnemar([[0, gained], [lost, 0]], exact=True).pvalue
    assert ours == pytest.approx(min(theirs, 1.0))
    if gained + lost:
        assert ours == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)


def test_paired_by_hand() -> None:
    before = [True] * 50 + [False] * 50
    after = [True] * 48 + [False] * 2 + [True] * 8 + [False] * 42
    found = paired(before, after)
    assert (found.gained, found.lost, found.trials) == (8, 2, 100)
    assert found.difference == pytest.approx(0.06)
    # p12 = 9/102, p21 = 3/102: 6/102 +- 1.96 sqrt((12/102 - (6/102)^2) / 102)
    assert found.interval == pytest.approx((-0.00674, 0.12439), abs=2e-5)
    assert found.p_value == pytest.approx(0.109375)


def test_the_chapters_last_step_is_one_question_and_nothing_more() -> None:
    """325 against 326 of 1301 can be no significant difference, however the answers lie (C20)."""
    for moved in (0, 10, 100):
        assert mcnemar_exact(1 + moved, moved) > 0.9


def test_calibration_by_hand() -> None:
    assert brier([[0.7, 0.3], [0.2, 0.8]], [0, 0]) == pytest.approx((0.18 + 1.28) / 2)
    # Two answers of confidence 0.9, one right: a gap of 0.4.
    assert expected_calibration_error([0.9, 0.9], [True, False]) == pytest.approx(0.4)
    assert expected_calibration_error([1.0, 1.0], [True, True]) == 0
