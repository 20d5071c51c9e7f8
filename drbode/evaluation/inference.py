"""Comparisons of training runs: t intervals and tests over seeds, Holm's correction, power.

The unit is a training run, not a question: two runs that differ only in their seed answer many
questions differently, so a test on one run's questions finds differences between methods that are
equal. All results are in the unit of the values given.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from scipy import optimize, stats

from drbode.evaluation.statistics import Interval

LEVEL = 0.05
POWER = 0.8


class Difference(NamedTuple):
    """A variant's mean over seeds less the baseline's, with its 95 % interval and two-sided p.

    `paired`: over the seeds that both have. Interval and p-value are None without a test.
    """

    mean: float
    interval: Interval | None
    p_value: float | None
    paired: bool


def mean_interval(values: Sequence[float]) -> Interval | None:
    """The 95 % t interval of the mean over runs; None for one run, which has no spread.

    1, 2, 3 gives 2 - 2.484 to 2 + 2.484, for the t quantile of 2 degrees of freedom is 4.303.
    """
    if len(values) < 2:
        return None
    return _around(fmean(values), _error(values), len(values) - 1)


def difference(
    baseline: Mapping[int, float], variant: Mapping[int, float], paired: bool
) -> Difference:
    """The difference of two means over runs; the keys are seeds.

    With `paired` it is a paired t test over the seeds that both have, for runs that share something
    when their seed is equal, such as the order of the data. Without it, or with fewer than two
    seeds in common, it is Welch's (1947) test, which does not assume equal spreads. Where neither
    side has a spread, as in coarse measures, there is no test. Raises ValueError for an empty side.
    """
    if not baseline or not variant:
        raise ValueError("a difference needs a run on either side")
    shared = sorted(baseline.keys() & variant.keys())
    if paired and len(shared) > 1:
        gains = [variant[seed] - baseline[seed] for seed in shared]
        return _tested(fmean(gains), _error(gains), len(gains) - 1, paired=True)
    before, after = list(baseline.values()), list(variant.values())
    mean = fmean(after) - fmean(before)
    if len(before) < 2 or len(after) < 2:
        return Difference(mean, None, None, paired=False)
    errors = [_error(before), _error(after)]
    error = math.hypot(*errors)
    freedom = 1.0
    if error > 0:  # Welch and Satterthwaite's degrees of freedom
        weights = [e**4 / (len(v) - 1) for e, v in zip(errors, (before, after), strict=True)]
        freedom = error**4 / sum(weights)
    return _tested(mean, error, freedom, paired=False)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in the order they came (Holm 1979).

    Rejecting where they are at most 0.05 declares one or more false differences in at most 5 % of
    tables. 0.01, 0.04, 0.03 becomes 0.03, 0.06, 0.06.
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def pooled_spread(samples: Sequence[Sequence[float]]) -> float | None:
    """The standard deviation within samples, over all of them; None where none has two values."""
    variances = [(len(values) - 1, stdev(values) ** 2) for values in samples if len(values) > 1]
    if not variances:
        return None
    return math.sqrt(sum(n * v for n, v in variances) / sum(n for n, _ in variances))


def smallest_difference(
    spread: float, runs: int, paired: bool, level: float = LEVEL, power: float = POWER
) -> float:
    """The true difference that a t test at `level` finds with probability `power`.

    `spread` is the standard deviation over runs of one variant, or of a pair's difference where
    `paired`; `runs` are those of each side. From the noncentral t distribution (Cohen 1988, chapter
    2). With 5 runs on either side it is 2.02 times their spread. Raises ValueError for one run.
    """
    if runs < 2:
        raise ValueError("one run has no spread to hold a difference against")
    freedom = runs - 1 if paired else 2 * (runs - 1)
    bound = float(stats.t.ppf(1 - level / 2, freedom))

    def missing(shift: float) -> float:
        above = stats.nct.sf(bound, freedom, shift)
        below = stats.nct.cdf(-bound, freedom, shift) if shift < 5 else 0.0
        return float(above + below) - power

    high = 1.0
    while missing(high) < 0:
        high *= 2
    shift = float(optimize.brentq(missing, 0.0, high))
    return shift * spread * math.sqrt((1 if paired else 2) / runs)


def _error(values: Sequence[float]) -> float:
    return stdev(values) / math.sqrt(len(values))


def _around(mean: float, error: float, freedom: float) -> Interval:
    half = float(stats.t.ppf(1 - LEVEL / 2, freedom)) * error
    return Interval(mean - half, mean + half)


def _tested(mean: float, error: float, freedom: float, paired: bool) -> Difference:
    if error <= 1e-12 * max(1.0, abs(mean)):  # equal but for rounding
        return Difference(mean, None, None, paired)
    p_value = 2 * float(stats.t.sf(abs(mean) / error, freedom))
    return Difference(mean, _around(mean, error, freedom), p_value, paired)
