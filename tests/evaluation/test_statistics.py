"""Against scipy, statsmodels, and by hand."""

import math

import pytest
from scipy import stats
from statsmodels.stats import contingency_tables, proportion

from drbode.evaluation.statistics import (
    brier,
    expected_calibration_error,
    mcnemar_exact,
    paired,
    paired_scores,
    score_interval,
    wilson,
    win_rate,
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
def test_mcnemar_equals_statsmodels_and_the_sum_of_binomial_coefficients(
    gained: int, lost: int
) -> None:
    ours = mcnemar_exact(gained, lost)
    theirs = contingency_tables.mcnemar([[0, gained], [lost, 0]], exact=True).pvalue
    assert ours == pytest.approx(min(theirs, 1.0))
    tail = sum(math.comb(gained + lost, k) for k in range(min(gained, lost) + 1))
    assert ours == pytest.approx(min(1.0, 2 * tail / 2 ** (gained + lost)), rel=1e-12)


def test_paired_by_hand() -> None:
    before = [True] * 50 + [False] * 50
    after = [True] * 48 + [False] * 2 + [True] * 8 + [False] * 42
    result = paired(before, after)
    assert (result.gained, result.lost, result.trials) == (8, 2, 100)
    assert result.difference == pytest.approx(0.06)
    # p12 = 9/102, p21 = 3/102: 6/102 +- 1.96 sqrt((12/102 - (6/102)^2) / 102)
    assert result.interval == pytest.approx((-0.00674, 0.12439), abs=2e-5)
    assert result.p_value == pytest.approx(0.109375)


def test_scores_of_0_and_1_are_a_proportion() -> None:
    assert score_interval([1, 0, 0, 1, 0]) == wilson(2, 5)
    before, after = [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]
    assert paired_scores(before, after) == paired([True, False, False], [True, True, False])


def test_the_interval_of_scores_by_hand_and_inside_its_bounds() -> None:
    # 0.4 -+ 4.303 x 0.2 / sqrt(3) = 0.4 -+ 0.4968
    assert score_interval([0.2, 0.4, 0.6]) == pytest.approx((0.0, 0.89683), abs=1e-5)
    assert score_interval([0.3, 0.4, 0.5]) == pytest.approx((0.151586, 0.648414), abs=1e-6)
    assert score_interval([0.5]) == wilson(0.5, 1)  # one score, or equal ones, show no spread
    assert score_interval([0.1] * 10) == pytest.approx(wilson(1, 10))
    with pytest.raises(ValueError, match="no proportion"):
        score_interval([])


def test_paired_scores_equal_scipys_paired_t_test() -> None:
    before, after = [0.1, 0.5, 0.25, 1.0, 0.0], [0.2, 0.4, 0.75, 1.0, 0.5]
    result, test = paired_scores(before, after), stats.ttest_rel(after, before)
    assert (result.gained, result.lost, result.trials, result.test) == (3, 1, 5, "paired t")
    assert result.p_value == pytest.approx(test.pvalue)
    assert result.interval == pytest.approx(tuple(test.confidence_interval()))
    back = paired_scores(after, before)
    assert (back.difference, back.p_value) == pytest.approx((-result.difference, result.p_value))
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_scores([0.5], [0.5, 0.5])


def test_rows_that_all_gain_alike_are_tested_by_their_signs() -> None:
    result = paired_scores([0.1] * 6, [0.3] * 6)
    assert result.difference == pytest.approx(0.2)
    assert result.p_value == pytest.approx(stats.binomtest(6, 6).pvalue)
    assert result.interval == pytest.approx(
        tuple(0.2 * edge for edge in paired([False] * 6, [True] * 6).interval)
    )
    same = paired_scores([0.3] * 4, [0.3] * 4)
    assert (same.difference, same.p_value, same.test) == (0, 1, "exact sign")
    assert same.interval == paired([True] * 4, [True] * 4).interval


def test_a_win_rate_by_hand() -> None:
    """10 won, 90 tied: 11/102 and 1/102, so 10/102 +- 1.96 sqrt((12/102 - (10/102)^2) / 102)."""
    result = win_rate([1.0] * 100, [0.0] * 10 + [1.0] * 90)
    assert (result.wins, result.ties, result.losses, result.rate) == (10, 90, 0, 0.55)
    assert result.interval == pytest.approx((0.517126, 0.580913), abs=2e-6)
    assert result.p_value == pytest.approx(stats.binomtest(10, 10).pvalue)
    back = win_rate([0.0] * 10 + [1.0] * 90, [1.0] * 100)
    assert back.rate == pytest.approx(1 - result.rate)
    assert back.interval == pytest.approx((1 - result.interval.high, 1 - result.interval.low))


def test_a_win_rate_without_ties_is_about_a_proportion_and_has_a_width_at_its_ends() -> None:
    won = win_rate([1.0] * 60 + [0.0] * 40, [0.5] * 100)
    assert won.rate == 0.6
    theirs = proportion.proportion_confint(60, 100, method="wilson")
    assert won.interval == pytest.approx(theirs, abs=0.01)
    always = win_rate([1.0] * 50, [0.0] * 50)
    assert always.interval.high == 1 > always.interval.low > 0.9
    tied = win_rate([1.0] * 50, [1.0] * 50)
    assert tied.interval.low < tied.rate == 0.5 < tied.interval.high
    with pytest.raises(ValueError, match="cannot be paired"):
        win_rate([1.0], [])


def test_the_chapters_last_step_is_one_question_and_nothing_more() -> None:
    """325 against 326 of 1301 can be no significant difference, whichever questions changed."""
    for moved in (0, 10, 100):
        assert mcnemar_exact(1 + moved, moved) > 0.9


def test_calibration_by_hand() -> None:
    assert brier([[0.7, 0.3], [0.2, 0.8]], [0, 0]) == pytest.approx((0.18 + 1.28) / 2)
    # Two answers of confidence 0.9, one right: a gap of 0.4.
    assert expected_calibration_error([0.9, 0.9], [True, False]) == pytest.approx(0.4)
    assert expected_calibration_error([1.0, 1.0], [True, True]) == 0
    # A confidence of 1 is in the last bin with 0.91: both are 0.955 in the mean, one is right.
    assert expected_calibration_error([1.0, 0.91], [False, True]) == pytest.approx(0.455)
