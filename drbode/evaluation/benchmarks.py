"""A benchmark, whatever it asks: rows, a model's answers to them, a summary, a comparison.

A protocol (`PROTOCOLS` in drbode/config/catalogue.py) names what loads the rows and what answers
them. Every protocol's answers are summarised alike: a mean score, called accuracy, with its
interval, and the paired difference between two models.
"""

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from drbode.config import PROTOCOLS, BenchmarkConfig, load_function, one_of
from drbode.data.bodinho import Conditions
from drbode.data.fewshot import Pool
from drbode.data.prompts import Renderer
from drbode.data.rows import Prompt, Question
from drbode.evaluation.statistics import (
    brier,
    expected_calibration_error,
    paired_scores,
    score_interval,
)
from drbode.models.base import Policy
from drbode.models.machine import Machine

CLEAN = "clean"  # the part of the rows that were not trained on, where others were


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's rows, checked, and the digest of the records they came from."""

    rows: Sequence[Question] | Sequence[Prompt]  # as the protocol's function takes them
    digest: str
    pool: Pool | None = None  # where examples are from

    def as_dict(self) -> dict[str, Any]:
        return {
            "questions": len(self.rows),
            "digest": self.digest,
            "examples": None if self.pool is None else self.pool.as_dict(),
        }


class Forecast(NamedTuple):
    """A probability for each alternative, and which of them is the right one."""

    probabilities: list[float]
    right: int


@dataclass(frozen=True, kw_only=True)
class Answer(ABC):
    """A model's answer to a row; a class derived from this one holds a kind of row."""

    cut: bool = False  # the prompt lost its start
    written: str | None = None
    stopped: bool | None = None  # what was written ended its turn before the limit
    dropped: int = 0  # examples that did not fit
    tokens: int = 0  # of the prompt, examples among it, and of what was scored or written after it
    shared: int = 0  # of these, at the prompt's start, were run once for several rows
    seconds: float = 0.0  # its share of the time that all took together
    scorer: str | None = None  # the function that its score is from

    @property
    @abstractmethod
    def where(self) -> str:
        """Where its row stands."""

    @property
    @abstractmethod
    def score(self) -> float:
        """From 0 (wrong) to 1 (right)."""

    @property
    @abstractmethod
    def answered(self) -> bool:
        """Whether the model answered; a row without an answer scores 0."""

    @property
    def part(self) -> tuple[str, str]:
        """The collection that the row is from, and the part of it."""
        return "", ""

    @property
    def chance(self) -> float | None:
        """The expected score of guessing."""
        return None

    @property
    def longest_score(self) -> float | None:
        """The score of always choosing the longest alternative."""
        return None

    @property
    def forecast(self) -> Forecast | None:
        """None where no alternative was given a probability."""
        return None

    @abstractmethod
    def as_row(self) -> dict[str, Any]:
        """The answer as a line of JSON."""


def load_benchmark(
    config: BenchmarkConfig, conditions: Conditions = "default", key: str = "benchmark.path"
) -> Benchmark:
    """The rows of `config.path`, which stands under `key`, as the protocol reads them.

    Raises BadInput where they are not to be had or malformed.
    """
    benchmark: Benchmark = _function(config.traits.load)(config, conditions, key)
    return benchmark


def answer(
    policy: Policy,
    renderer: Renderer,
    rows: Sequence[Any],
    config: BenchmarkConfig,
    machine: Machine,
) -> list[Answer]:
    """An answer to each row by the protocol of `config`."""
    began = time.perf_counter()
    traits = config.traits
    name = traits.function if policy.kind == "decoder" else traits.encoder_function
    assert name is not None, "the config's rules refuse an encoder under any other protocol"
    answers: list[Answer] = _function(name)(policy, renderer, rows, config, machine)
    share = (time.perf_counter() - began) / max(len(answers), 1)
    return [replace(one, seconds=share) for one in answers]


def _function(name: str) -> Any:
    return load_function(name, "benchmark.protocol", one_of(PROTOCOLS))


def cost(answers: Sequence[Answer]) -> dict[str, float]:
    """The mean time and tokens per row, reported beside accuracy."""
    return {
        "seconds_per_question": sum(a.seconds for a in answers) / len(answers),
        "tokens_per_question": sum(a.tokens for a in answers) / len(answers),
        "shared_tokens_per_question": sum(a.shared for a in answers) / len(answers),
    }


def summarise(answers: Sequence[Answer], unclean: Set[str] = frozenset()) -> dict[str, Any]:
    """Accuracy with its interval, whole and by part, calibration, and the floors.

    A row without an answer counts as wrong. Calibration is None where no alternative was given a
    probability, floors are None where there are no alternatives. `unclean` holds the places of rows
    that were trained on; `clean` is accuracy on the other rows, None where all or none were trained
    on.
    """
    clean = _clean(answers, unclean)
    return {
        **_accuracy(answers),
        "parts": {
            name: _accuracy([answers[i] for i in indices])
            for name, indices in _parts(answers).items()
        },
        "clean": _accuracy([answers[i] for i in clean]) if clean else None,
        **_calibration(answers),
        "prompts_cut": sum(a.cut for a in answers),
        "examples_dropped": _examples_dropped(answers),
        "floor_longest": _mean_known([a.longest_score for a in answers]),
        "scorer": answers[0].scorer,
    }


def compare(
    before: Sequence[Answer], after: Sequence[Answer], unclean: Set[str] = frozenset()
) -> dict[str, Any]:
    """Two models on the same rows: difference with interval and test, whole and by part."""
    chosen = {"all": list(range(len(after))), **_parts(after)}
    if clean := _clean(after, unclean):
        chosen[CLEAN] = clean
    return {
        name: paired_scores(
            [before[i].score for i in indices], [after[i].score for i in indices]
        )._asdict()
        for name, indices in chosen.items()
    }


def _accuracy(answers: Sequence[Answer]) -> dict[str, Any]:
    scores = [a.score for a in answers]
    interval = score_interval(scores)
    chance = _mean_known([a.chance for a in answers])
    return {
        "accuracy": sum(scores) / len(scores),
        "correct": sum(score == 1 for score in scores),
        "questions": len(answers),
        "interval": list(interval),
        "chance": chance,
        "at_chance": chance is not None and chance in interval,
        "unanswered": sum(not a.answered for a in answers) / len(answers),
        "stop_rate": _mean_known([a.stopped for a in answers]),
    }


def _mean_known(values: Sequence[float | None]) -> float | None:
    """The mean of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _clean(answers: Sequence[Answer], unclean: Set[str]) -> list[int]:
    """Indices of the answers to rows that were not trained on, where some were."""
    clean = [i for i, one in enumerate(answers) if one.where not in unclean]
    return clean if len(clean) < len(answers) else []


def _examples_dropped(answers: Sequence[Answer]) -> dict[str, int]:
    """How many rows lost how many of their examples; those that lost none are left out."""
    return {str(n): count for n, count in sorted(Counter(a.dropped for a in answers).items()) if n}


def _parts(answers: Sequence[Answer]) -> dict[str, list[int]]:
    """Indices of the answers of each collection and part, where there is more than one."""
    origins: dict[str, dict[str, list[int]]] = {}
    for i, one in enumerate(answers):
        origin, exam = one.part
        origins.setdefault(origin, {}).setdefault(exam, []).append(i)
    parts: dict[str, list[int]] = {}
    for origin, exams in origins.items():
        if len(origins) > 1:
            parts[origin] = sorted(i for indices in exams.values() for i in indices)
        if len(exams) > 1:
            prefix = f"{origin}, " if len(origins) > 1 else ""
            parts |= {f"{prefix}{exam}": indices for exam, indices in exams.items()}
    return parts


def _calibration(answers: Sequence[Answer]) -> dict[str, float | None]:
    forecasts = [f for f in (a.forecast for a in answers) if f is not None]
    if not forecasts:
        return {"ece": None, "brier": None}
    confidence = [max(f.probabilities) for f in forecasts]
    return {
        "ece": expected_calibration_error(confidence, [a.score == 1 for a in answers]),
        "brier": brier([f.probabilities for f in forecasts], [f.right for f in forecasts]),
    }
