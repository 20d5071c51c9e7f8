"""How much of its general knowledge training costs a model: questions, and text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import stdev
from typing import Any, NamedTuple

import torch

from drbode.config import BenchmarkConfig, ForgettingConfig
from drbode.data import sources
from drbode.data.bodinho import Conditions
from drbode.data.corpus import Cut
from drbode.data.prompts import Renderer
from drbode.data.rows import Text, parse_text
from drbode.evaluation import benchmarks
from drbode.evaluation.benchmarks import Answer, Benchmark
from drbode.evaluation.statistics import Z95, Interval
from drbode.models.base import Policy
from drbode.models.machine import Machine
from drbode.trees import Tree, pack, within


class Document(NamedTuple):
    """General text: its trees, and the bytes that its predicted tokens stand for."""

    trees: list[Tree]
    bytes: int


@dataclass(frozen=True)
class General:
    """What is measured of a model's general knowledge; either part may be left out."""

    questions: Benchmark | None
    documents: list[Document]
    settings: BenchmarkConfig  # of the protocol by which questions are answered
    machine: Machine

    def as_dict(self) -> dict[str, int]:
        return {
            "questions": len(self.questions.rows) if self.questions else 0,
            "documents": len(self.documents),
            "bytes": sum(document.bytes for document in self.documents),
        }


@dataclass(frozen=True)
class Known:
    """A model's results on it: answers, and the bits of each document (negative log2 of p)."""

    answers: list[Answer]
    bits: list[float]
    bytes: list[int]

    @property
    def bits_per_byte(self) -> float | None:
        return sum(self.bits) / sum(self.bytes) if self.bytes else None


def load_general(
    config: ForgettingConfig,
    settings: BenchmarkConfig,
    renderer: Renderer,
    machine: Machine,
    conditions: Conditions,
) -> General:
    """Raises BadInput where a source cannot be read or is malformed."""
    # Without examples, so that what is forgotten compares whatever the benchmark shows.
    general = replace(
        settings,
        protocol=settings.question_protocol,
        questions=None,
        split=config.split,
        revision=None,
        num_fewshot=0,
    )
    questions = None
    if config.questions_path is not None:
        questions = benchmarks.load_benchmark(
            replace(general, path=config.questions_path), conditions, "forgetting.questions_path"
        )
    documents = []
    if config.text_path is not None:
        records = sources.read(
            "text", config.text_path, config.split, None, "forgetting.text_path", conditions
        )
        documents = [document(parse_text(row, where), renderer) for where, row in records]
    return General(questions, documents, general, machine)


def document(row: Text, renderer: Renderer) -> Document:
    """A text without the token that ends it, and without the first, which nothing predicts.

    The bytes are those of the tokens that are predicted, so that bits per byte compare between
    tokenizers.
    """
    (ids,) = renderer.texts([row.text])
    cut = Cut(renderer.max_length)
    unpredicted = cut.unpredicted_bytes(renderer.tokenizer, ids)
    return Document(cut.trees(ids[:-1]), len(row.text.encode()) - unpredicted)


def measure(policy: Policy, renderer: Renderer, general: General) -> Known:
    """The policy's present results."""
    answers: list[Answer] = []
    if general.questions is not None:
        answers = benchmarks.answer(
            policy, renderer, general.questions.rows, general.settings, general.machine
        )
    bits = text_bits(policy, general.documents, general.settings.max_tokens, general.machine)
    return Known(answers, bits, [document.bytes for document in general.documents])


def text_bits(
    policy: Policy, documents: Sequence[Document], max_tokens: int, machine: Machine
) -> list[float]:
    """Bits of each document: the sum over its predicted tokens of -log2 p."""
    bits: list[float] = []
    with policy.evaluating(), torch.inference_mode(), machine.autocast():
        for group in within((tree for d in documents for tree in d.trees), max_tokens):
            batch = pack(group).to(policy.device)
            sums = batch.sums(policy.logps(batch).double())
            bits += (sums / -math.log(2)).tolist()
    tree_bits = iter(bits)
    return [sum(next(tree_bits) for _ in document.trees) for document in documents]


def summarise(before: Known, after: Known) -> dict[str, Any]:
    """The results after training and the losses against before: accuracy and bits per byte.

    `forgetting` is a share of the questions; intervals are over questions and over documents.
    """
    summary: dict[str, Any] = {}
    if after.answers:
        summary["questions"] = benchmarks.summarise(after.answers)
        summary["against_base"] = benchmarks.compare(before.answers, after.answers)["all"]
        summary["forgetting"] = -summary["against_base"]["difference"]
    if after.bytes:
        summary["bits_per_byte"] = after.bits_per_byte
        rise = ratio_change(before.bits, after.bits, after.bytes)
        summary["bits_per_byte_rise"] = {"difference": rise[0], "interval": list(rise[1])}
    return summary


def ratio_change(
    before: Sequence[float], after: Sequence[float], size: Sequence[int]
) -> tuple[float, Interval]:
    """The change of sum(bits) / sum(bytes) on the same documents, with its 95 % interval.

    The ratio's standard error is that of its linearisation (Cochran 1977, equation 2.39): documents
    differ in length, so their own ratios do not average to it. Two documents of 10 bytes that rise
    by 1 and 3 bits: 0.2, and 1.96 x 0.1 to either side.
    """
    gains = [b - a for a, b in zip(before, after, strict=True)]
    change = sum(gains) / sum(size)
    if len(gains) < 2:
        return change, Interval(-math.inf, math.inf)
    left = [gain - change * n for gain, n in zip(gains, size, strict=True)]
    half = Z95 * stdev(left) * math.sqrt(len(gains)) / sum(size)
    return change, Interval(change - half, change + half)
