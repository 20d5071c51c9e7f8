"""Intervals and tests over training runs, against hand-worked numbers and other implementations."""

import math
import random
from statistics import fmean

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower, TTestPower

from drbode.evaluation.inference import (
    difference,
    holm,
    mean_interval,
    pooled_spread,
    smallest_difference,
)

DRAW = np.random.default_rng(0)


def test_the_interval_by_hand_and_by_scipy() -> None:
    assert mean_interval([0.5]) is None
    # t(0.975, 2) = 4.3027; the standard error of 1, 2, 3 is 1 / sqrt(3).
    assert mean_interval([1, 2, 3]) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-4)
    for count in (2, 5, 20):
        values = DRAW.normal(size=count)
        expected = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
        assert mean_interval(values.tolist()) == pytest.approx(expected)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_a_paired_difference_is_scipys(count: int) -> None:
    before, after = DRAW.normal(size=(2, count)).tolist()
    result = difference(dict(enumerate(before)), dict(enumerate(after)), paired=True)
    expected = stats.ttest_rel(after, before)
    assert result.paired
    assert result.p_value == pytest.approx(expected.pvalue)
    assert result.interval == pytest.approx(tuple(expected.confidence_interval()))


def test_pairs_are_found_by_their_seed_and_not_by_their_place() -> None:
    before = {0: 1.0, 1: 2.0, 2: 4.0}
    after = {2: 5.0, 0: 2.5, 7: 9.0, 1: 3.0}
    result = difference(before, after, paired=True)
    assert result.mean == pytest.approx(fmean([1.5, 1.0, 1.0]))
    assert result.p_value == pytest.approx(stats.ttest_rel([2.5, 3, 5], [1, 2, 4]).pvalue)


@pytest.mark.parametrize("counts", [(2, 2), (3, 5), (8, 4)])
def test_an_unpaired_difference_is_welchs(counts: tuple[int, int]) -> None:
    before, after = (DRAW.normal(scale=s, size=n) for s, n in zip((1, 3), counts, strict=True))
    sides = [
        {100 * k + i: float(v) for i, v in enumerate(x)} for k, x in enumerate((before, after))
    ]
    for paired in (False, True):  # without a common seed it cannot be paired
        result = difference(*sides, paired=paired)
        expected = stats.ttest_ind(after, before, equal_var=False)
        assert not result.paired
        assert result.p_value == pytest.approx(expected.pvalue)
        assert result.interval == pytest.approx(tuple(expected.confidence_interval()))


def test_without_a_spread_there_is_a_difference_and_no_test() -> None:
    one = difference({0: 0.5}, {0: 0.75}, paired=True)
    assert (one.mean, one.interval, one.p_value) == (0.25, None, None)
    flat = difference({0: 0.1, 1: 0.2}, {0: 0.3, 1: 0.4}, paired=True)
    assert flat.mean == pytest.approx(0.2)
    assert flat.p_value is None
    with pytest.raises(ValueError, match="either side"):
        difference({}, {0: 1.0}, paired=True)


def test_holm_by_hand_and_by_statsmodels() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    for count in (1, 4, 9):
        p_values = (DRAW.uniform(size=count) ** 3).tolist()
        expected = multipletests(p_values, method="holm")[1]
        assert holm(p_values) == pytest.approx(expected.tolist())


def test_the_pooled_spread_by_hand() -> None:
    assert pooled_spread([[1.0], [2.0]]) is None
    # Variances 2 with 1 degree of freedom and 1 with 2: (2 + 2) / 3.
    assert pooled_spread([[0.0, 2.0], [1.0, 2.0, 3.0], [9.0]]) == pytest.approx(math.sqrt(4 / 3))


@pytest.mark.parametrize("runs", [2, 3, 5, 20])
@pytest.mark.parametrize("level", [0.05, 0.0125])
def test_the_smallest_difference_has_that_power_by_statsmodels(runs: int, level: float) -> None:
    effect = smallest_difference(2.0, runs, False, level) / 2
    power = TTestIndPower().power(effect, nobs1=runs, alpha=level)
    assert power == pytest.approx(0.8, abs=5e-3)
    if runs > 2:  # where its noncentral t gives no number
        effect = smallest_difference(2.0, runs, True, level) / 2
        power = TTestPower().power(effect, nobs=runs, alpha=level)
        assert power == pytest.approx(0.8, abs=5e-3)


def test_one_run_sees_no_difference() -> None:
    with pytest.raises(ValueError, match="one run"):
        smallest_difference(1.0, 1, True)


def test_level_and_power_hold_in_simulated_runs() -> None:
    """Two arms of 5 runs of one variant: 5 % differences; shifted by the smallest, 80 %."""
    draw = random.Random(0)
    tables = 2000
    shift = smallest_difference(1.0, 5, paired=False)
    false = detected = 0
    for _ in range(tables):
        one, two = ({s: draw.gauss(0, 1) for s in range(5 * k, 5 * k + 5)} for k in range(2))
        test = difference(one, two, paired=False)
        false += test.p_value is not None and test.p_value <= 0.05
        moved = difference(one, {s: v + shift for s, v in two.items()}, paired=False)
        detected += moved.p_value is not None and moved.p_value <= 0.05
    # Three standard errors of a share of 2000 tables.
    assert false / tables == pytest.approx(0.05, abs=0.015)
    assert detected / tables == pytest.approx(0.80, abs=0.027)
