"""Scores of written answers: by a function of the user, or by comparison with the reference."""

import inspect
import math
import sys
import typing
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any

from drbode.config import BadInput, failure, load_function
from drbode.data.contamination import words

# Of prompts, answers to them, and for each a reference answer or None.
Scorer = Callable[[list[str], list[str], list[str | None]], Sequence[float]]

EXPECTED = "module:function of (prompts, answers, references), lists of the same length"
GREATEST = sys.float_info.max
CONTAINS = "drbode.evaluation.scorers:contains_reference"


def contains_reference(
    prompts: list[str], answers: list[str], references: list[str | None]
) -> list[float]:
    """1 where the reference's words stand in the answer, in their order and beside each other.

    Without case, accents and punctuation. A long answer that contains the reference is right;
    `exact_match` is stricter.
    """
    return [
        float(f" {_plain(reference)} " in f" {_plain(answer)} ")
        for answer, reference in zip(answers, references, strict=True)
    ]


def exact_match(
    prompts: list[str], answers: list[str], references: list[str | None]
) -> list[float]:
    """1 where the answer is the reference, without case, accents and punctuation."""
    return [
        float(_plain(answer) == _plain(reference))
        for answer, reference in zip(answers, references, strict=True)
    ]


BUILT_IN: Sequence[Scorer] = (contains_reference, exact_match)  # these need references


def _plain(text: str | None) -> str:
    return " ".join(words(text or ""))


def load_scorer(name: str, key: str) -> Scorer:
    """The function `name`, which stands under `key`.

    Raises BadInput where it cannot be imported or takes other arguments.
    """
    scorer = load_function(name, key, EXPECTED)
    try:
        inspect.signature(scorer).bind([], [], [])
    except TypeError as error:
        raise BadInput(f"{key}: {name}: {error}; expected {EXPECTED}") from None
    except ValueError:  # of a function that tells no signature
        pass
    return scorer


def scores_of(
    name: str,
    key: str,
    prompts: list[str],
    answers: list[str],
    references: list[str | None],
    highest: float = math.inf,
) -> list[float]:
    """What the function `name` gives these answers, a finite number each.

    Of a `highest` score they are at least 0 and at most that. Raises BadInput that names `key`
    where the function raises, or gives anything else.
    """
    values = _called(load_scorer(name, key), name, key, (prompts, answers, references))
    limits = "" if highest == math.inf else f" from 0 to {highest:g}"
    expected = f"expected a finite number{limits} for each answer"
    if len(values) != len(answers):
        raise BadInput(
            f"{key}: {name} gave {len(values)} scores for {len(answers)} answers; {expected}"
        )
    low, high = (-GREATEST, GREATEST) if highest == math.inf else (0.0, highest)
    for number, value in enumerate(values, 1):
        if not _is_between(low, value, high):
            raise BadInput(f"{key}: {name} gave {value!r} for answer {number}; {expected}")
    return [float(value) for value in values]


def _is_between(low: float, value: Any, high: float) -> bool:
    """Whether it is a number in these limits; NaN is in none."""
    return isinstance(value, Real) and bool(low <= typing.cast(float, value) <= high)


def _called(scorer: Scorer, name: str, key: str, lists: Sequence[list[Any]]) -> list[Any]:
    """What a scorer gives, as a list; an array or a tensor is one too."""
    try:
        # Copies, so that a function that changes its lists changes nothing here.
        given: Any = scorer(*(list(one) for one in lists))
        given = given.tolist() if callable(getattr(given, "tolist", None)) else given
        if isinstance(given, Iterable):
            return list(given)
    except Exception as error:  # whatever the user's function raises
        raise BadInput(f"{key}: {name} failed ({failure(error)})") from error
    raise BadInput(
        f"{key}: {name} gave {type(given).__name__}; expected a list of numbers, one for each "
        "answer"
    )
