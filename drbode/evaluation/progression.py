"""What a run measures of its policy: before the first stage and after each, on the same rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drbode import record
from drbode.config import BenchmarkConfig
from drbode.data.prompts import Renderer
from drbode.evaluation import benchmarks, forgetting, open_answers
from drbode.evaluation.benchmarks import Answer, Benchmark
from drbode.evaluation.forgetting import General, Known
from drbode.evaluation.open_answers import Interview
from drbode.models.base import Policy
from drbode.models.heads import RewardModel
from drbode.models.machine import Machine
from drbode.record import BASE, Measured


@dataclass
class Progression:
    """Evaluates a policy after each stage on the same rows, and compares with the stages before."""

    benchmark: Benchmark
    settings: BenchmarkConfig
    general: General
    interview: Interview | None  # open answers, where a stage learns from preferences
    renderer: Renderer
    machine: Machine
    folder: Path
    unclean: frozenset[str] = frozenset()  # where the questions stand that are trained on
    answers: dict[str, list[Answer]] = field(default_factory=dict)  # after a stage; base first
    known: dict[str, Known] = field(default_factory=dict)

    def answer(self, policy: Policy) -> list[Answer]:
        """The policy's present answers to the benchmark's rows."""
        return benchmarks.answer(
            policy, self.renderer, self.benchmark.rows, self.settings, self.machine
        )

    def accuracy(self, policy: Policy) -> float:
        return float(benchmarks.summarise(self.answer(policy))["accuracy"])

    def ask(self, after: str, policy: Policy, unchanged: bool = False) -> None:
        """Evaluates and writes all answers; `unchanged`: they are those of the stage before.

        `after` is a stage, or `BASE`.
        """
        if unchanged:
            self.answers[after] = next(reversed(self.answers.values()))
            self.known[after] = next(reversed(self.known.values()))
        else:
            self.answers[after] = self.answer(policy)
            self.known[after] = forgetting.measure(policy, self.renderer, self.general)
            if self.interview is not None:
                self.interview.ask(after, policy)
        rows = [answer.as_row() for answer in self.answers[after]]
        record.write_jsonl(self.folder / "benchmark" / f"{after}.jsonl", rows)

    def result(self, after: str) -> Measured:
        """The results on the questions after a stage, compared with base and stage before."""
        answers = self.answers[after]
        measured = Measured(
            summary=benchmarks.summarise(answers, self.unclean),
            cost=benchmarks.cost(answers),
            forgetting=forgetting.summarise(self.known[BASE], self.known[after]),
        )
        if after != BASE:
            names = list(self.answers)
            base, before = (self.answers[n] for n in (BASE, names[names.index(after) - 1]))
            measured.against_base = benchmarks.compare(base, answers, self.unclean)
            measured.against_before = benchmarks.compare(before, answers, self.unclean)
        return measured

    def opened(self, reward: RewardModel | None, policy: Policy) -> Mapping[str, dict[str, Any]]:
        """The results on the open answers of each stage so far; one reward model scores all."""
        if self.interview is None:
            return {}
        if reward is not None:
            self.interview.score(reward, policy)
        self.interview.write(self.folder / "open")
        return open_answers.progression(self.interview.answers)
