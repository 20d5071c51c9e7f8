"""Prompts that are answered in writing: each answer gets a score from 0 to 1.

A row has a prompt (a string, or a list of messages that ends in a user's turn) and, where one is
known, a reference answer: the column `reference`, or `chosen` where rows are preferences.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from drbode.config import BadInput, BenchmarkConfig
from drbode.data import sources
from drbode.data.bodinho import Conditions
from drbode.data.prompts import Renderer
from drbode.data.rows import Message, Prompt, parse_prompt
from drbode.evaluation.benchmarks import Answer, Benchmark
from drbode.evaluation.scorers import BUILT_IN, CONTAINS, load_scorer, scores_of
from drbode.models.base import Policy
from drbode.models.generation import generate
from drbode.models.machine import Machine

KEY = "benchmark.scorer"
COLUMNS = sources.Columns(("prompt",), ("reference", "chosen"))


@dataclass(frozen=True)
class ScoredAnswer(Answer):
    """What a model wrote to a prompt, and the score that the scorer gave it."""

    prompt: Prompt
    given: float  # from 0 to 1

    @property
    def where(self) -> str:
        return self.prompt.where

    @property
    def score(self) -> float:
        return self.given

    @property
    def answered(self) -> bool:
        return bool(self.written and self.written.strip())

    def as_row(self) -> dict[str, Any]:
        """The answer as a line of JSON."""
        return {
            "where": self.where,
            "prompt": prompt_text(self.prompt),
            "reference": self.prompt.right,
            "written": self.written,
            "stopped": self.stopped,
            "score": self.score,
        }


class Written(NamedTuple):
    """What a model wrote after a prompt."""

    text: str
    stopped: bool  # it ended its turn before the limit
    tokens: int  # of the prompt, and of what was written after it


def scorer_of(config: BenchmarkConfig) -> str:
    """The function that scores the answers; `contains_reference` where the config names none."""
    return config.scorer or CONTAINS


def load_prompts(
    config: BenchmarkConfig, conditions: Conditions = "default", key: str = "benchmark.path"
) -> Benchmark:
    """The prompts of `config.path`, which stands under `key`.

    Raises BadInput for a prompt that stands twice, one without the reference that the scorer needs,
    and a scorer that cannot be loaded.
    """
    scorer = load_scorer(scorer_of(config), KEY)
    records = sources.read(
        "reference", config.path, config.split, config.revision, key, conditions, COLUMNS
    )
    records = sources.sample(records, config.questions, seed=0)
    prompts = [parse_reference(fields, where) for where, fields in records]
    seen: dict[tuple[Message, ...], Prompt] = {}
    for prompt in prompts:
        if prompt.messages in seen:
            other = seen[prompt.messages].where
            raise BadInput(f"{prompt.where}: is the same prompt as {other}; leave one out")
        seen[prompt.messages] = prompt
        if prompt.right is None and scorer in BUILT_IN:
            raise BadInput(
                f"{prompt.where}: reference: there is none to hold an answer against; add it, or "
                f"set {KEY}=module:function to a scorer that needs none"
            )
    return Benchmark(prompts, sources.digest(records))


def parse_reference(record: Mapping[str, Any], where: str) -> Prompt:
    """A prompt, and the reference answer where its row has one."""
    if record.get("reference") is None:
        return parse_prompt(record, where)
    return parse_prompt({**record, "chosen": record["reference"]}, where)


def by_scorer(
    policy: Policy,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    config: BenchmarkConfig,
    machine: Machine,
) -> list[ScoredAnswer]:
    """By the scorer's score of an answer; answers take the most probable token each time."""
    answers = write(policy, renderer, prompts, config.answer_tokens, config.max_tokens, machine)
    scorer = scorer_of(config)
    scores = scores_of(
        scorer,
        KEY,
        [prompt_text(prompt) for prompt in prompts],
        [answer.text for answer in answers],
        [prompt.right for prompt in prompts],
        highest=1,
    )
    return [
        ScoredAnswer(
            prompt,
            score,
            written=answer.text,
            stopped=answer.stopped,
            tokens=answer.tokens,
            scorer=scorer,
        )
        for prompt, answer, score in zip(prompts, answers, scores, strict=True)
    ]


def write(
    policy: Policy,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    max_tokens: int,
    machine: Machine,
) -> list[Written]:
    """Answers to prompts, the most probable token each time.

    How many prompts go into a batch changes no answer. Raises BadInput for a prompt that leaves no
    room for `max_new_tokens`.
    """
    rendered = []
    for prompt in prompts:
        rendered.append(renderer.prompt(prompt.messages))
        if len(rendered[-1]) + max_new_tokens > renderer.max_length:
            raise BadInput(
                f"{prompt.where}: prompt: {len(rendered[-1])} tokens are too long for the "
                f"model's {renderer.max_length}, of which the answer may take {max_new_tokens}; "
                "leave the row out, or lower benchmark.max_new_tokens"
            )
    with machine.autocast():
        generated = generate(
            policy,
            rendered,
            end=renderer.turn_end[1],
            max_new_tokens=max_new_tokens,
            max_tokens=max_tokens,
        )
    answers = []
    for ids, one in zip(rendered, generated, strict=True):
        text_ids = one.ids[:-1] if one.ended else one.ids
        text = policy.tokenizer.decode(text_ids, skip_special_tokens=True)
        answers.append(Written(text, one.ended, len(ids) + len(one.ids)))
    return answers


def prompt_text(prompt: Prompt) -> str:
    """What the user said last, after the turns before it by their roles."""
    *before, last = prompt.messages
    return "\n".join([*(f"{m.role}: {m.content}" for m in before), last.content])
