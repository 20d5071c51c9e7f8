"""Multiple-choice questions: by the probability of alternatives, or by what is written."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any

import torch

from drbode.config import BadInput, BenchmarkConfig
from drbode.data import fewshot, sources
from drbode.data.bodinho import Conditions
from drbode.data.prompts import Rendered, Renderer
from drbode.data.rows import QUESTION, QUESTION_OPTIONAL, Question, parse_questions
from drbode.evaluation.benchmarks import Answer, Benchmark, Forecast
from drbode.evaluation.parser import first_letter, stated_letter
from drbode.models.base import Policy
from drbode.models.generation import generate
from drbode.models.machine import Machine
from drbode.models.pseudo import pseudo_logps
from drbode.trees import Tree, pack, within

WORTH_SHARING = 16  # tokens; running fewer of them once for all costs more than it saves


@dataclass(frozen=True)
class Choice(Answer):
    """The letter that a model chose: by the scores of the alternatives (nats), or in writing.

    `question` has the examples that stood before it; `dropped` is how many did not fit.
    """

    question: Question
    letter: str | None  # None: no answer
    scores: dict[str, float] | None = None

    @property
    def where(self) -> str:
        return self.question.where

    @property
    def correct(self) -> bool:
        return self.letter == self.question.answer

    @property
    def score(self) -> float:
        return float(self.correct)

    @property
    def answered(self) -> bool:
        return self.letter is not None

    @property
    def part(self) -> tuple[str, str]:
        return self.question.origin, self.question.exam

    @property
    def chance(self) -> float:
        return 1 / len(self.question.alternatives)

    @property
    def longest_score(self) -> float:
        offered = self.question.alternatives
        return float(max(offered, key=lambda k: len(offered[k])) == self.question.answer)

    @property
    def probabilities(self) -> dict[str, float] | None:
        """The softmax of the scores."""
        if self.scores is None:
            return None
        top = max(self.scores.values())
        weights = {letter: math.exp(score - top) for letter, score in self.scores.items()}
        return {letter: weight / sum(weights.values()) for letter, weight in weights.items()}

    @property
    def forecast(self) -> Forecast | None:
        probabilities = self.probabilities
        if probabilities is None:
            return None
        right = list(self.question.alternatives).index(self.question.answer)
        return Forecast(list(probabilities.values()), right)

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


def load_questions(
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
    questions, _ = parse_questions(records)
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


# --- the protocols, each by the prompt that it renders and by what is read of the model ----------


def by_alternatives(
    policy: Policy,
    renderer: Renderer,
    questions: Sequence[Question],
    config: BenchmarkConfig,
    machine: Machine,
) -> list[Choice]:
    """By the log-probability of each alternative's text, the mean of its tokens."""
    return _by_scores(policy, renderer.alternatives, questions, config, machine, mean=True)


def by_letter(
    policy: Policy,
    renderer: Renderer,
    questions: Sequence[Question],
    config: BenchmarkConfig,
    machine: Machine,
) -> list[Choice]:
    """By the log-probability of each letter, after a prompt that lists the alternatives."""
    return _by_scores(policy, renderer.letter, questions, config, machine, mean=False)


def by_stated_letter(
    policy: Policy,
    renderer: Renderer,
    questions: Sequence[Question],
    config: BenchmarkConfig,
    machine: Machine,
) -> list[Choice]:
    """By the letter that an answer states, read by a strict parser."""
    layout = partial(renderer.generate, max_new_tokens=config.answer_tokens)
    return _by_writing(policy, renderer, layout, stated_letter, questions, config, machine)


def by_first_letter(
    policy: Policy,
    renderer: Renderer,
    questions: Sequence[Question],
    config: BenchmarkConfig,
    machine: Machine,
) -> list[Choice]:
    """As the chapter does it: by the first of A to E in an answer to the chapter's prompt."""
    layout = partial(renderer.chapter, max_new_tokens=config.answer_tokens)

    def read(text: str, alternatives: Mapping[str, str]) -> str | None:
        return first_letter(text)

    return _by_writing(policy, renderer, layout, read, questions, config, machine)


def by_pseudo_likelihood(
    policy: Policy,
    renderer: Renderer,
    questions: Sequence[Question],
    config: BenchmarkConfig,
    machine: Machine,
) -> list[Choice]:
    """The alternative whose tokens an encoder finds most probable in the mean, each masked alone.

    Salazar et al. 2020; a pass for every token of every alternative, all of which count.
    """
    rendered = [renderer.pseudo(question) for question in questions]
    sequences = [
        (
            tree.prompt + completion.ids,
            [len(tree.prompt) + i for i, s in enumerate(completion.supervised) if s],
        )
        for row in rendered
        for tree in row.trees
        for completion in tree.completions
    ]
    with machine.autocast():
        logps = iter(pseudo_logps(policy, sequences, config.max_tokens))
    answers = []
    for question, row in zip(questions, rendered, strict=True):
        means = {
            letter: sum(values := next(logps)) / len(values) for letter in question.alternatives
        }
        best = _most_probable(question, means)
        tokens = sum(tree.supervised * tree.tokens for tree in row.trees)
        answers.append(Choice(question, best, means, cut=row.cut, tokens=tokens))
    return answers


# --- how they are carried out --------------------------------------------------------------------


@dataclass(frozen=True)
class RenderedQuestion:
    """A question as token ids for a model, with as many of its examples as fit its context."""

    question: Question
    tree: Tree
    cut: bool
    dropped: int


def fit_examples(
    question: Question, render: Callable[[Question], Rendered], overflow: str
) -> RenderedQuestion:
    """A question rendered with as many of its last examples as fit.

    Raises BadInput where some do not fit and `overflow` is `refuse`.
    """
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
    return RenderedQuestion(kept, rendered.trees[0], rendered.cut, dropped)


def _groups(
    rows: Sequence[RenderedQuestion], config: BenchmarkConfig
) -> Iterator[tuple[list[int], list[int]]]:
    """Indices of questions, and the tokens that all their prompts begin with, if worth sharing."""
    fixed = config.num_fewshot > 0 and config.fewshot_choice == "fixed"
    groups: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(len(row.question.examples) if fixed else 0, []).append(i)
    for group in groups.values():
        prompts = [rows[i].tree.prompt for i in group]
        # What the first and the last in their order begin with, all between them do. A token of
        # each prompt is left, from which its completions are predicted.
        pairs = zip(min(prompts), max(prompts), strict=False)
        begin = [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
        begin = begin[: min(map(len, prompts)) - 1]
        yield group, begin if len(group) > 1 and len(begin) >= WORTH_SHARING else []


def _by_scores(
    policy: Policy,
    render: Callable[[Question], Rendered],
    questions: Sequence[Question],
    config: BenchmarkConfig,
    machine: Machine,
    *,
    mean: bool,
) -> list[Choice]:
    """The completion of highest log-probability: its tokens' mean, or their sum.

    All alternatives of a question share their prompt in one tree; no end token is scored. What all
    prompts begin with is run once, and the rest of each goes on from its keys and values: so it is
    for `fixed` examples, and for the chapter's long opening. How many questions go into a batch
    changes no answer.
    """
    rows = [fit_examples(question, render, config.fewshot_overflow) for question in questions]
    answers: dict[int, Choice] = {}
    with policy.evaluating(), torch.inference_mode(), machine.autocast():
        for group, begin in _groups(rows, config):
            prefix = policy.prefix(begin) if begin else None
            values: list[float] = []
            trees = (rows[i].tree for i in group)
            rests = (Tree(tree.prompt[len(begin) :], tree.completions) for tree in trees)
            for few in within(rests, config.max_tokens):
                batch = pack(few).to(policy.device)
                logps = policy.logps(batch, prefix=prefix).double()
                values += (batch.sums(logps) / (batch.lengths() if mean else 1)).tolist()
            remaining = iter(values)
            for i in group:
                scores = {letter: next(remaining) for letter in rows[i].question.alternatives}
                best = _most_probable(rows[i].question, scores)
                answers[i] = _answer(rows[i], best, len(begin), scores=scores)
    return [answers[i] for i in range(len(rows))]


def _most_probable(question: Question, scores: Mapping[str, float]) -> str:
    """The letter of the highest score, of equal ones the first.

    Raises BadInput for a score that is no finite number: the first letter would always win, and a
    key that stands first would be counted as right.
    """
    if not all(map(math.isfinite, scores.values())):
        raise BadInput(
            f"{question.where}: the model gives an alternative the log-probability "
            f"{next(s for s in scores.values() if not math.isfinite(s))}; its weights or its "
            "precision are broken, use another model.path or model.dtype=fp32"
        )
    return max(scores, key=scores.__getitem__)


def _by_writing(
    policy: Policy,
    renderer: Renderer,
    render: Callable[[Question], Rendered],
    read: Callable[[str, Mapping[str, str]], str | None],
    questions: Sequence[Question],
    config: BenchmarkConfig,
    machine: Machine,
) -> list[Choice]:
    """What is written after the question; `read` finds a letter of the alternatives in it."""
    rows = [fit_examples(question, render, config.fewshot_overflow) for question in questions]
    answers: dict[int, Choice] = {}
    for group, begin in _groups(rows, config):
        with machine.autocast():
            written = generate(
                policy,
                [rows[i].tree.prompt[len(begin) :] for i in group],
                end=renderer.turn_end[1],
                max_new_tokens=config.answer_tokens,
                max_tokens=config.max_tokens,
                prefix=policy.prefix(begin) if begin else None,
            )
        for i, output in zip(group, written, strict=True):
            alternatives = rows[i].question.alternatives
            ids = output.ids[:-1] if output.ended else output.ids
            text = policy.tokenizer.decode(ids, skip_special_tokens=True)
            letter = read(text, alternatives)
            answer = _answer(rows[i], letter, len(begin), written=text, stopped=output.ended)
            answers[i] = replace(answer, tokens=answer.tokens + len(output.ids))
    return [answers[i] for i in range(len(rows))]


def _answer(row: RenderedQuestion, letter: str | None, shared: int, **result: Any) -> Choice:
    return Choice(
        row.question,
        letter,
        cut=row.cut,
        dropped=row.dropped,
        tokens=row.tree.tokens,
        shared=shared,
        **result,
    )
