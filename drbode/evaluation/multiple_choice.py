"""The benchmark of multiple-choice questions (T17)."""

import math
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any

import torch

from drbode.config import BadInput, BenchmarkConfig
from drbode.data import fewshot, sources
from drbode.data.bodinho import Conditions
from drbode.data.prompts import Rendered, Renderer
from drbode.data.rows import QUESTION, QUESTION_OPTIONAL, Question, parse_question
from drbode.evaluation.parser import first_letter, stated_letter
from drbode.evaluation.statistics import brier, expected_calibration_error, paired, wilson
from drbode.models.base import Policy
from drbode.models.generation import generate
from drbode.models.machine import Machine
from drbode.models.pseudo import pseudo_logps
from drbode.trees import Tree, pack, within

CHAPTER_TOKENS = 10  # the most that the chapter lets a model write
CLEAN = "clean"  # the part of the questions that were not trained on, where others were
WORTH_SHARING = 16  # tokens; to run fewer apart from the rest costs more than it saves


@dataclass(frozen=True)
class Benchmark:
    """Questions, checked, and the digest of the records they came from; where examples are from."""

    questions: list[Question]
    digest: str
    pool: fewshot.Pool | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "questions": len(self.questions),
            "digest": self.digest,
            "examples": None if self.pool is None else self.pool.as_dict(),
        }


@dataclass(frozen=True)
class Answer:
    """What a model answered: by the scores of the alternatives (nats), or by what it wrote.

    `question` has the examples that stood before it; `dropped` is how many more were asked for.
    """

    question: Question
    letter: str | None  # None: no answer
    cut: bool
    scores: dict[str, float] | None = None
    written: str | None = None
    stopped: bool | None = None  # what was written ended its turn before the limit
    dropped: int = 0
    tokens: int = 0  # of the prompt, examples among it, and of what was scored or written after it
    shared: int = 0  # of these, at the prompt's start, were run once for several questions
    seconds: float = 0.0  # its share of the time that all took together

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
        if question.examples or self.dropped:
            row["examples"] = [example.where for example in question.examples]
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
    pool = None
    if config.num_fewshot:
        questions, pool = fewshot.with_examples(questions, config, conditions)
    return Benchmark(questions, sources.digest(records), pool)


def answer(
    policy: Policy,
    renderer: Renderer,
    questions: Sequence[Question],
    config: BenchmarkConfig,
    machine: Machine,
) -> list[Answer]:
    """Answers by the protocol of `config`; how many questions go into a batch changes none.

    What all prompts begin with is run once, and the rest of each goes on from its keys and values:
    so it is for `fixed` examples, and for the chapter's long opening. An encoder knows one protocol
    alone.
    """
    began = time.perf_counter()
    by_scores = config.protocol in ("alternatives", "letter")
    by = _by_scores if by_scores else _by_writing
    if policy.kind == "encoder":
        by = _by_pseudo_likelihood
    answers = by(policy, renderer, questions, config, machine)
    share = (time.perf_counter() - began) / max(len(answers), 1)
    return [replace(a, seconds=share) for a in answers]


@dataclass(frozen=True)
class Asked:
    """A question as it is put to a model, with as many of its examples as it has room for."""

    question: Question
    tree: Tree
    cut: bool
    dropped: int


def _ask(question: Question, render: Callable[[Question], Rendered], overflow: str) -> Asked:
    """Raises BadInput where examples do not fit and are not to be dropped."""
    examples = question.examples

    def without(dropped: int) -> Rendered:
        return render(replace(question, examples=examples[dropped:]))

    dropped, rendered = 0, without(0)
    if rendered.dropped is not None:
        if overflow == "refuse":
            raise BadInput(
                f"{question.where}: its {len(examples)} examples do not fit into the model's "
                f"context ({rendered.dropped}); lower benchmark.num_fewshot, or set "
                "benchmark.fewshot_overflow=drop"
            )
        some = range(1, len(examples))
        dropped = 1 + bisect_left(some, True, key=lambda n: without(n).dropped is None)
        rendered = without(dropped)
    kept = replace(question, examples=examples[dropped:])
    return Asked(kept, rendered.trees[0], rendered.cut, dropped)


def _alike(
    asked: Sequence[Asked], config: BenchmarkConfig
) -> Iterator[tuple[list[int], list[int]]]:
    """Indices of questions, and the tokens that all their prompts begin with, if worth sharing."""
    fixed = config.num_fewshot > 0 and config.fewshot_choice == "fixed"
    groups: dict[int, list[int]] = {}
    for i, own in enumerate(asked):
        groups.setdefault(len(own.question.examples) if fixed else 0, []).append(i)
    for group in groups.values():
        prompts = [asked[i].tree.prompt for i in group]
        # What the first and the last in their order begin with, all between them do. A token of
        # each prompt is left, from which its completions are predicted.
        pairs = zip(min(prompts), max(prompts), strict=False)
        begin = [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
        begin = begin[: min(map(len, prompts)) - 1]
        yield group, begin if len(group) > 1 and len(begin) >= WORTH_SHARING else []


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
    render = renderer.letter if of_letters else renderer.alternatives
    asked = [_ask(question, render, config.fewshot_overflow) for question in questions]
    answers: dict[int, Answer] = {}
    with policy.evaluating(), torch.inference_mode(), machine.autocast():
        for group, begin in _alike(asked, config):
            prefix = policy.prefix(begin) if begin else None
            found: list[float] = []
            trees = (asked[i].tree for i in group)
            rests = (Tree(tree.prompt[len(begin) :], tree.completions) for tree in trees)
            for few in within(rests, config.max_tokens):
                batch = pack(few).to(policy.device)
                logps = policy.logps(batch, prefix=prefix).double()
                found += (batch.sums(logps) / (1 if of_letters else batch.lengths())).tolist()
            scored = iter(found)
            for i in group:
                scores = {letter: next(scored) for letter in asked[i].question.alternatives}
                best = max(scores, key=scores.__getitem__)  # of equal ones the first
                answers[i] = _answer(asked[i], best, len(begin), scores=scores)
    return [answers[i] for i in range(len(asked))]


def _by_pseudo_likelihood(
    policy: Policy,
    renderer: Renderer,
    questions: Sequence[Question],
    config: BenchmarkConfig,
    machine: Machine,
) -> list[Answer]:
    """The alternative whose tokens an encoder finds most probable in the mean, each masked alone.

    Salazar et al. 2020; a pass for every token of every alternative, all of which count.
    """
    rendered = [renderer.pseudo(question) for question in questions]
    sequences = [
        (tree.prompt + own.ids, [len(tree.prompt) + i for i, s in enumerate(own.supervised) if s])
        for row in rendered
        for tree in row.trees
        for own in tree.completions
    ]
    with machine.autocast():
        found = iter(pseudo_logps(policy, sequences, config.max_tokens))
    answers = []
    for question, row in zip(questions, rendered, strict=True):
        means = {letter: sum(own := next(found)) / len(own) for letter in question.alternatives}
        best = max(means, key=means.__getitem__)  # of equal ones the first
        tokens = sum(tree.supervised * tree.tokens for tree in row.trees)
        answers.append(Answer(question, best, row.cut, means, tokens=tokens))
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
    layout = renderer.chapter if of_chapter else renderer.generate
    render = partial(layout, max_new_tokens=limit)
    asked = [_ask(question, render, config.fewshot_overflow) for question in questions]
    answers: dict[int, Answer] = {}
    for group, begin in _alike(asked, config):
        with machine.autocast():
            written = generate(
                policy,
                [asked[i].tree.prompt[len(begin) :] for i in group],
                end=renderer.turn_end[1],
                max_new_tokens=limit,
                max_tokens=config.max_tokens,
                prefix=policy.prefix(begin) if begin else None,
            )
        for i, own in zip(group, written, strict=True):
            offered = asked[i].question.alternatives
            ids = own.ids[:-1] if own.ended else own.ids
            text = policy.tokenizer.decode(ids, skip_special_tokens=True)
            letter = first_letter(text) if of_chapter else stated_letter(text, offered)
            answer = _answer(asked[i], letter, len(begin), written=text, stopped=own.ended)
            answers[i] = replace(answer, tokens=answer.tokens + len(own.ids))
    return [answers[i] for i in range(len(asked))]


def _answer(asked: Asked, letter: str | None, shared: int, **found: Any) -> Answer:
    return Answer(
        asked.question,
        letter,
        asked.cut,
        dropped=asked.dropped,
        tokens=asked.tree.tokens,
        shared=shared,
        **found,
    )


def cost(answers: Sequence[Answer]) -> dict[str, float]:
    """What a question took in the mean, to stand beside accuracy."""
    return {
        "seconds_per_question": sum(a.seconds for a in answers) / len(answers),
        "tokens_per_question": sum(a.tokens for a in answers) / len(answers),
        "shared_tokens_per_question": sum(a.shared for a in answers) / len(answers),
    }


def summarise(answers: Sequence[Answer], unclean: Set[str] = frozenset()) -> dict[str, Any]:
    """Accuracy with Wilson's interval, whole and by part, calibration, and the floors.

    No answer is a wrong answer. Calibration is None where nothing was scored. `unclean` says where
    the questions stand that were trained on; `clean` is accuracy on the others, None where all or
    none were.
    """
    questions = [a.question for a in answers]
    longest = [max(q.alternatives, key=lambda k: len(q.alternatives[k])) for q in questions]
    return {
        **_accuracy(answers),
        "parts": {
            name: _accuracy([answers[i] for i in own]) for name, own in _parts(questions).items()
        },
        "clean": _accuracy([answers[i] for i in own])
        if (own := _clean(answers, unclean))
        else None,
        **_calibration(answers),
        "prompts_cut": sum(a.cut for a in answers),
        "examples_dropped": _examples_dropped(answers),
        "floor_longest": sum(
            letter == q.answer for letter, q in zip(longest, questions, strict=True)
        )
        / len(answers),
    }


def _clean(answers: Sequence[Answer], unclean: Set[str]) -> list[int]:
    """Indices of the answers to questions that were not trained on, where some were."""
    found = [i for i, answer in enumerate(answers) if answer.question.where not in unclean]
    return found if len(found) < len(answers) else []


def _examples_dropped(answers: Sequence[Answer]) -> dict[str, int]:
    """How many questions lost how many of their examples; those that lost none are left out."""
    return {str(n): count for n, count in sorted(Counter(a.dropped for a in answers).items()) if n}


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


def compare(
    before: Sequence[Answer], after: Sequence[Answer], unclean: Set[str] = frozenset()
) -> dict[str, Any]:
    """Two models on the same questions: difference with interval and McNemar, whole and by part."""
    chosen = {"all": list(range(len(after))), **_parts([a.question for a in after])}
    if clean := _clean(after, unclean):
        chosen[CLEAN] = clean
    return {
        name: paired([before[i].correct for i in own], [after[i].correct for i in own])._asdict()
        for name, own in chosen.items()
    }
