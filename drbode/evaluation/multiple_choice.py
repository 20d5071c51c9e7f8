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
from drbode.data.rows import QUESTION, QUESTION_OPTIONAL, Question, parse_question
from drbode.data.trees import pack, within
from drbode.evaluation.parser import first_letter, stated_letter
from drbode.evaluation.statistics import brier, expected_calibration_error, paired, wilson
from drbode.models.base import Policy
from drbode.models.generation import generate
from drbode.models.machine import Machine

CHAPTER_TOKENS = 10  # the most that the chapter lets a model write


@dataclass(frozen=True)
class Benchmark:
    """Questions, checked, and the digest of the records they came from."""

    questions: list[Question]
    digest: str


@dataclass(frozen=True)
class Answer:
    """What a model answered: by the scores of the alternatives (nats), or by what it wrote."""

    question: Question
    letter: str | None  # None: no answer
    cut: bool
    scores: dict[str, float] | None = None
    written: str | None = None
    stopped: bool | None = None  # what was written ended its turn before the limit

    @property
    def correct(self) -> bool:
        return self.letter == self.question.answer

    @property
    def probabilities(self) -> dict[str, float] | None:
        """The softmax of the scores."""
        if self.scores is None:
            return None
        top = max(self.scores.values())
        weights = {letter: math.exp(score - top) for letter, score in self.scores.items()}
        return {letter: weight / sum(weights.values()) for letter, weight in weights.items()}

    def as_row(self) -> dict[str, Any]:
        """The answer as a line of JSON."""
        question = self.question
        row: dict[str, Any] = {
            "origem": question.origin,
            "prova": question.exam,
            "numero": question.number,
            "enunciado": question.stem,
            "alternativas": question.alternatives,
            "resposta": question.answer,
            "predicted": self.letter,
            "correct": self.correct,
            "prompt_cut": self.cut,
        }
        if self.scores is not None and self.probabilities is not None:
            row["scores"] = {k: round(v, 6) for k, v in self.scores.items()}
            row["probabilities"] = {k: round(v, 6) for k, v in self.probabilities.items()}
        if self.written is not None:
            row |= {"written": self.written, "stopped": self.stopped}
        return row


def load_benchmark(
    config: BenchmarkConfig, conditions: Conditions = "default", key: str = "benchmark.path"
) -> Benchmark:
    """The questions of `config.path`, which stands under `key`.

    Raises BadInput for a question without its answer among the alternatives, or a double.
    """
    records = sources.read(
        "question",
        config.path,
        config.split,
        config.revision,
        key,
        conditions,
        sources.Columns(QUESTION, QUESTION_OPTIONAL),
    )
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
    config: BenchmarkConfig,
    machine: Machine,
) -> list[Answer]:
    """Answers by the protocol of `config`; how many questions go into a batch changes none."""
    by_scores = config.protocol in ("alternatives", "letter")
    by = _by_scores if by_scores else _by_writing
    return by(policy, renderer, questions, config, machine)


def _by_scores(
    policy: Policy,
    renderer: Renderer,
    questions: Sequence[Question],
    config: BenchmarkConfig,
    machine: Machine,
) -> list[Answer]:
    """The completion of highest log-probability: its tokens' mean for a text, sum for a letter.

    All alternatives of a question share their prompt in one tree; no end token is scored.
    """
    of_letters = config.protocol == "letter"
    rendered = [renderer.letter(q) if of_letters else renderer.alternatives(q) for q in questions]
    training = policy.network.training
    policy.network.eval()
    found: list[float] = []
    with torch.inference_mode(), machine.autocast():
        for group in within((row.trees[0] for row in rendered), config.max_tokens):
            batch = pack(group).to(policy.device)
            logps = policy.logps(**batch.inputs()).double()
            found += (batch.sums(logps) / (1 if of_letters else batch.lengths())).tolist()
    policy.network.train(training)
    answers = []
    scored = iter(found)
    for question, row in zip(questions, rendered, strict=True):
        scores = {letter: next(scored) for letter in question.alternatives}
        best = max(scores, key=scores.__getitem__)  # of equal ones the first
        answers.append(Answer(question, best, row.cut, scores))
    return answers


def _by_writing(
    policy: Policy,
    renderer: Renderer,
    questions: Sequence[Question],
    config: BenchmarkConfig,
    machine: Machine,
) -> list[Answer]:
    """What is written after the question, read by the strict parser or by the chapter's rule."""
    of_chapter = config.protocol == "chapter"
    limit = CHAPTER_TOKENS if of_chapter else config.max_new_tokens
    render = renderer.chapter if of_chapter else renderer.generate
    rendered = [render(question, limit) for question in questions]
    with machine.autocast():
        written = generate(
            policy,
            [row.trees[0].prompt for row in rendered],
            end=renderer.turn_end[1],
            max_new_tokens=limit,
            max_tokens=config.max_tokens,
        )
    answers = []
    for question, row, own in zip(questions, rendered, written, strict=True):
        ids = own.ids[:-1] if own.ended else own.ids
        text = policy.tokenizer.decode(ids, skip_special_tokens=True)
        letter = first_letter(text) if of_chapter else stated_letter(text, question.alternatives)
        answers.append(Answer(question, letter, row.cut, written=text, stopped=own.ended))
    return answers


def summarise(answers: Sequence[Answer]) -> dict[str, Any]:
    """Accuracy with Wilson's interval, whole and by part, calibration, and the floors.

    No answer is a wrong answer. Calibration is None where nothing was scored.
    """
    questions = [a.question for a in answers]
    longest = [max(q.alternatives, key=lambda k: len(q.alternatives[k])) for q in questions]
    return {
        **_accuracy(answers),
        "parts": {
            name: _accuracy([answers[i] for i in own]) for name, own in _parts(questions).items()
        },
        **_calibration(answers),
        "prompts_cut": sum(a.cut for a in answers),
        "floor_longest": sum(
            letter == q.answer for letter, q in zip(longest, questions, strict=True)
        )
        / len(answers),
    }


def _parts(questions: Sequence[Question]) -> dict[str, list[int]]:
    """Indices of the questions of each `origem` and each `prova`, where there is more than one."""
    origins: dict[str, dict[str, list[int]]] = {}
    for i, question in enumerate(questions):
        origins.setdefault(question.origin, {}).setdefault(question.exam, []).append(i)
    parts: dict[str, list[int]] = {}
    for origin, exams in origins.items():
        if len(origins) > 1:
            parts[origin] = sorted(i for own in exams.values() for i in own)
        if len(exams) > 1:
            prefix = f"{origin}, " if len(origins) > 1 else ""
            parts |= {f"{prefix}{exam}": own for exam, own in exams.items()}
    return parts


def _accuracy(answers: Sequence[Answer]) -> dict[str, Any]:
    correct = sum(a.correct for a in answers)
    interval = wilson(correct, len(answers))
    chance = sum(1 / len(a.question.alternatives) for a in answers) / len(answers)
    stopped = [a.stopped for a in answers if a.stopped is not None]
    return {
        "accuracy": correct / len(answers),
        "correct": correct,
        "questions": len(answers),
        "interval": list(interval),
        "chance": chance,
        "at_chance": chance in interval,
        "unanswered": sum(a.letter is None for a in answers) / len(answers),
        "stop_rate": sum(stopped) / len(stopped) if stopped else None,
    }


def _calibration(answers: Sequence[Answer]) -> dict[str, float | None]:
    rows = [list(p.values()) for p in (a.probabilities for a in answers) if p is not None]
    if not rows:
        return {"ece": None, "brier": None}
    truth = [list(a.question.alternatives).index(a.question.answer) for a in answers]
    return {
        "ece": expected_calibration_error([max(row) for row in rows], [a.correct for a in answers]),
        "brier": brier(rows, truth),
    }


def compare(before: Sequence[Answer], after: Sequence[Answer]) -> dict[str, Any]:
    """Two models on the same questions: difference with interval and McNemar, whole and by part."""
    chosen = {"all": list(range(len(after))), **_parts([a.question for a in after])}
    return {
        name: paired([before[i].correct for i in own], [after[i].correct for i in own])._asdict()
        for name, own in chosen.items()
    }
