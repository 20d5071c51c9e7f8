"""Intervals and tests on answers to questions; `inference` compares training runs."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from scipy import stats

Z95 = 1.959963984540054  # the normal distribution's 97.5 % quantile


class Interval(NamedTuple):
    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high


def wilson(successes: float, trials: int, z: float = Z95) -> Interval:
    """The score interval of a proportion (Wilson 1927).

    It stays inside [0, 1] and has a width at 0 and at all successes, too. 281 of 1301 gives
    0.1945 to 0.2392. Raises ValueError where there are no trials.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} of {trials} is no proportion")
    # Not scipy's binomtest(...).proportion_ci, which takes no fractions of successes.
    p = successes / trials
    scale = 1 + z * z / trials
    centre = (p + z * z / (2 * trials)) / scale
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials)) / scale
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def score_interval(scores: Sequence[float]) -> Interval:
    """The 95 % interval of the mean of scores from 0 to 1, over rows.

    Wilson's where all are 0 or 1, else Student's t, cut off at 0 and 1. A single score, or scores
    that are all equal, show no spread: they get Wilson's interval about their mean, which is wide
    enough because no scores spread more than zeros and ones do. 0.2, 0.4 and 0.6 give 0.4 -+ 4.303
    x 0.2 / sqrt(3), cut off at 0. Raises ValueError where there are no scores.
    """
    total, trials = sum(scores), len(scores)
    if trials < 2 or _binary(scores) or len(set(scores)) == 1:
        return wilson(min(total, trials), trials)
    low, high = _t_interval(scores)
    return Interval(max(0.0, low), min(1.0, high))


def _binary(scores: Sequence[float]) -> bool:
    return all(score in (0, 1) for score in scores)


def _t_interval(values: Sequence[float]) -> Interval:
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return Interval(fmean(values) - half, fmean(values) + half)


class Paired(NamedTuple):
    """Two models on the same questions: `gained` score higher in the second, `lost` lower."""

    gained: int
    lost: int
    trials: int
    difference: float
    interval: Interval
    p_value: float
    test: str = "exact McNemar"


def paired(before: Sequence[bool], after: Sequence[bool]) -> Paired:
    """Difference in accuracy of these two models, with interval and exact McNemar test.

    The interval is Bonett and Price's (2012) adjusted Wald interval for paired proportions, which
    holds its level on few discordant pairs. It speaks of these two models on these questions, not
    of the methods that made them. Raises ValueError where the lengths differ.
    """
    if len(before) != len(after) or not before:
        raise ValueError(f"{len(before)} and {len(after)} answers cannot be paired")
    gained = sum(b and not a for a, b in zip(before, after, strict=True))
    lost = sum(a and not b for a, b in zip(before, after, strict=True))
    return _discordant(gained, lost, len(before))


def paired_scores(before: Sequence[float], after: Sequence[float]) -> Paired:
    """Difference in the mean of these two models' scores from 0 to 1, with interval and test.

    Where all scores are 0 or 1 they are right and wrong answers, and it is `paired`, with the exact
    McNemar test. Otherwise interval and p-value are those of the paired t test over the rows. Where
    all rows gain equally much the t test has no spread to go by: `paired` then counts gained and
    lost rows, and its interval is scaled to the gain. Raises ValueError where the lengths
    differ.
    """
    if len(before) != len(after) or not before:
        raise ValueError(f"{len(before)} and {len(after)} answers cannot be paired")
    if _binary(before) and _binary(after):
        return paired([score == 1 for score in before], [score == 1 for score in after])
    gains = [b - a for a, b in zip(before, after, strict=True)]
    gained, lost = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    signs = _discordant(gained, lost, len(gains))
    error = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    if error <= 1e-12:  # equal but for rounding
        scale = abs(fmean(gains)) or 1.0
        interval = Interval(*(scale * edge for edge in signs.interval))
        return signs._replace(difference=fmean(gains), interval=interval, test="exact sign")
    low, high = _t_interval(gains)
    return Paired(
        gained,
        lost,
        len(gains),
        fmean(gains),
        Interval(max(-1.0, low), min(1.0, high)),
        2 * float(stats.t.sf(abs(fmean(gains)) / error, len(gains) - 1)),
        "paired t",
    )


class WinRate(NamedTuple):
    """One model's answers against another's to the same prompts; a tie counts half."""

    wins: int
    ties: int
    losses: int
    rate: float
    interval: Interval
    p_value: float


def win_rate(ours: Sequence[float], theirs: Sequence[float]) -> WinRate:
    """How often our answer to a prompt has the higher score.

    The rate is 1/2 + (wins - losses) / 2n, so its interval is half that of a paired difference
    about 1/2 (`paired`). Wilson's, of wins and half the ties among n, would treat a tie as if it
    varied like a coin's toss; a bootstrap would have no width where one side always wins. The
    p-value is the sign test's. Raises ValueError where the lengths differ.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"{len(ours)} and {len(theirs)} answers cannot be paired")
    wins = sum(a > b for a, b in zip(ours, theirs, strict=True))
    losses = sum(a < b for a, b in zip(ours, theirs, strict=True))
    pairs = _discordant(wins, losses, len(ours))
    return WinRate(
        wins,
        len(ours) - wins - losses,
        losses,
        0.5 + pairs.difference / 2,
        Interval(*(0.5 + edge / 2 for edge in pairs.interval)),
        pairs.p_value,
    )


def _discordant(gained: int, lost: int, trials: int) -> Paired:
    up, down = (gained + 1) / (trials + 2), (lost + 1) / (trials + 2)
    half = Z95 * math.sqrt((up + down - (up - down) ** 2) / (trials + 2))
    interval = Interval(max(-1.0, up - down - half), min(1.0, up - down + half))
    return Paired(
        gained, lost, trials, (gained - lost) / trials, interval, mcnemar_exact(gained, lost)
    )


def mcnemar_exact(gained: int, lost: int) -> float:
    """Two-sided p-value of the exact McNemar test: are gains and losses equally likely?

    1 without discordant pairs; 1 gained and 0 lost gives 1, 6 and 0 gives 2 / 64.
    """
    discordant = gained + lost
    return float(stats.binomtest(gained, discordant).pvalue) if discordant else 1.0


def brier(probabilities: Sequence[Sequence[float]], right: Sequence[int]) -> float:
    """Mean over questions of the squared distance between probabilities and the truth, 0 to 2."""
    total = 0.0
    for row, index in zip(probabilities, right, strict=True):
        total += sum((p - (i == index)) ** 2 for i, p in enumerate(row))
    return total / len(right)


def expected_calibration_error(
    confidence: Sequence[float], correct: Sequence[bool], bins: int = 10
) -> float:
    """Mean gap between confidence and accuracy, over bins of equal width (Guo et al. 2017)."""
    # Not torchmetrics', which puts a confidence of 1 into a bin of its own, and needs torch.
    sums = [[0.0, 0.0] for _ in range(bins)]
    for p, ok in zip(confidence, correct, strict=True):
        chosen = sums[min(bins - 1, int(p * bins))]
        chosen[0] += p
        chosen[1] += ok
    return sum(abs(p - ok) for p, ok in sums) / len(correct)
