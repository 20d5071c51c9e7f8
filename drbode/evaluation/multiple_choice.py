"""The benchmark of multiple-choice questions (T17)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from drbode.config import BadInput, BenchmarkConfig
from drbode.data import sources
from drbode.data.bodinho import Conditions
from drbode.data.prompts import Renderer
from drbode.data.rows import Question, parse_question
from drbode.data.trees import pack, within
from drbode.evaluation.statistics import brier, expected_calibration_error, paired, wilson
from drbode.models.base import Policy
from drbode.models.machine import Machine


@dataclass(frozen=True)
class Benchmark:
    """Questions, checked, and the digest of the records they came from."""

    questions: list[Question]
    digest: str


@dataclass(frozen=True)
class Answer:
    """What a model answered: the scores of the alternatives (nats a token) and their softmax."""

    question: Question
    scores: dict[str, float]
    probabilities: dict[str, float]
    cut: bool

    @property
    def letter(self) -> str:
        """The alternative of the highest score; of equal ones the first."""
        return max(self.scores, key=lambda letter: self.scores[letter])

    @property
    def correct(self) -> bool:
        return self.letter == self.question.answer

    def as_row(self) -> dict[str, Any]:
        """The answer as a line of JSON."""
        question = self.question
        return {
            "origem": question.origin,
            "prova": question.exam,
            "numero": question.number,
            "enunciado": question.stem,
            "alternativas": question.alternatives,
            "resposta": question.answer,
            "predicted": self.letter,
            "correct": self.correct,
            "scores": {k: round(v, 6) for k, v in self.scores.items()},
            "probabilities": {k: round(v, 6) for k, v in self.probabilities.items()},
            "prompt_cut": self.cut,
        }


def load_benchmark(config: BenchmarkConfig, conditions: Conditions = "default") -> Benchmark:
    """Raises BadInput for a question without its answer among the alternatives, or a double."""
    key = "benchmark.path"
    records = sources.read("question", config.path, config.split, config.revision, key, conditions)
    records = sources.sample(records, config.questions, seed=0)
    questions = [parse_question(fields, where) for where, fields in records]
    seen: dict[tuple[str, ...], Question] = {}
    for question in questions:
        same = (question.stem, question.image or "", *sorted(question.alternatives.values()))
        if same in seen:
            raise BadInput(
                f"{question.where}: is the same question as {seen[same].where}; leave one out"
            )
        seen[same] = question
    return Benchmark(questions, sources.digest(records))


def answer(
    policy: Policy,
    renderer: Renderer,
    questions: Sequence[Question],
    max_tokens: int,
    machine: Machine,
) -> list[Answer]:
    """Answers by `alternatives`: mean log-probability of each alternative's tokens.

    All alternatives of a question share their prompt in one tree; no end token is scored. How many
    questions go into a batch changes the speed and no answer.
    """
    rendered = [renderer.alternatives(question) for question in questions]
    training = policy.network.training
    policy.network.eval()
    scores: list[float] = []
    with torch.inference_mode(), machine.autocast():
        for group in within((r.trees[0] for r in rendered), max_tokens):
            batch = pack(group).to(policy.device)
            logps = policy.logps(**batch.inputs()).double()
            scores += (batch.sums(logps) / batch.lengths()).tolist()
    policy.network.train(training)
    answers = []
    at = 0
    for question, row in zip(questions, rendered, strict=True):
        own = scores[at : at + len(question.alternatives)]
        at += len(own)
        top = max(own)
        weights = [math.exp(score - top) for score in own]
        letters = list(question.alternatives)
        answers.append(
            Answer(
                question,
                dict(zip(letters, own, strict=True)),
                {k: w / sum(weights) for k, w in zip(letters, weights, strict=True)},
                row.cut,
            )
        )
    return answers


def summarise(answers: Sequence[Answer]) -> dict[str, Any]:
    """Accuracy with Wilson's interval, whole and by part (`prova`), calibration, and the floors."""
    parts: dict[str, list[Answer]] = {}
    for one in answers:
        parts.setdefault(one.question.exam, []).append(one)
    truth = [list(a.scores).index(a.question.answer) for a in answers]
    longest = [max(q.alternatives, key=lambda k: len(q.alternatives[k])) for q in _asked(answers)]
    return {
        **_accuracy(answers),
        "parts": {name: _accuracy(own) for name, own in parts.items()} if len(parts) > 1 else {},
        "ece": expected_calibration_error(
            [max(a.probabilities.values()) for a in answers], [a.correct for a in answers]
        ),
        "brier": brier([list(a.probabilities.values()) for a in answers], truth),
        "prompts_cut": sum(a.cut for a in answers),
        "floor_longest": sum(
            letter == q.answer for letter, q in zip(longest, _asked(answers), strict=True)
        )
        / len(answers),
    }


def _asked(answers: Sequence[Answer]) -> list[Question]:
    return [a.question for a in answers]


def _accuracy(answers: Sequence[Answer]) -> dict[str, Any]:
    correct = sum(a.correct for a in answers)
    interval = wilson(correct, len(answers))
    chance = sum(1 / len(a.scores) for a in answers) / len(answers)
    return {
        "accuracy": correct / len(answers),
        "correct": correct,
        "questions": len(answers),
        "interval": list(interval),
        "chance": chance,
        "at_chance": chance in interval,
    }


def compare(before: Sequence[Answer], after: Sequence[Answer]) -> dict[str, Any]:
    """Two models on the same questions: difference with interval and McNemar, whole and by part."""
    parts: dict[str, list[int]] = {}
    for i, one in enumerate(after):
        parts.setdefault(one.question.exam, []).append(i)
    every = list(range(len(after)))
    chosen = {"all": every, **(parts if len(parts) > 1 else {})}
    return {
        name: paired([before[i].correct for i in own], [after[i].correct for i in own])._asdict()
        for name, own in chosen.items()
    }
