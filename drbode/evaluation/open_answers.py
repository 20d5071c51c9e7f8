"""Open answers to held-out prompts: scored by rules, by a reward model, and side by side."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drbode import record
from drbode.config import BODINHO, BenchmarkConfig, OpenConfig, Stage, StageConfig
from drbode.data import sources
from drbode.data.answers import gold_score, keeps_content, measures
from drbode.data.bodinho import Conditions
from drbode.data.prompts import Renderer
from drbode.data.rows import Pair, Prompt, parse_pair, parse_prompt
from drbode.data.splits import prompt_columns, read_rows
from drbode.evaluation.free_text import prompt_text, write
from drbode.evaluation.scorers import load_scorer, scores_of
from drbode.evaluation.statistics import paired, wilson, win_rate
from drbode.models.base import Policy
from drbode.models.heads import RewardModel
from drbode.models.machine import Machine
from drbode.trees import Batch, Completion, Tree, pack, within

SIDE_BY_SIDE = "side_by_side.csv"
RULES = ("cautious", "advises", "overconfident", "ends", "repeats")  # of data/answers.py, 0 or 1


@dataclass(frozen=True)
class OpenPrompt:
    """A prompt, and the pair of answers with a preference that its row holds, if it does."""

    prompt: Prompt
    pair: Pair | None


@dataclass(frozen=True)
class OpenPrompts:
    """Different prompts, and the digest of the records they came from."""

    rows: list[OpenPrompt]
    digest: str
    left_out: int = 0  # too long to be answered


@dataclass(frozen=True)
class OpenAnswer:
    """What a model wrote, and which answer of the row's pair it finds more probable.

    `margin` is the logp of the chosen answer less that of the rejected one (nats, summed over
    tokens), of the model alone, without a reference; None where there is no pair.
    """

    source: OpenPrompt
    written: str
    stopped: bool  # it ended its turn before the limit
    margin: float | None
    score: float | None = None  # of a reward model, in no unit
    scores: Mapping[str, float] = field(default_factory=dict)  # of the user's functions, by name

    @property
    def preferred(self) -> bool | None:
        """Whether the chosen answer is the more probable one."""
        return None if self.margin is None else self.margin > 0

    @property
    def gold(self) -> float:
        return gold_score(self.written, self.source.prompt.right)

    @property
    def keeps_content(self) -> bool | None:
        """None where no right answer is known."""
        right = self.source.prompt.right
        return None if right is None else keeps_content(self.written, right)

    def as_row(self) -> dict[str, Any]:
        """The answer as a line of JSON."""
        prompt = self.source.prompt
        return {
            "where": prompt.where,
            "prompt": prompt_text(prompt),
            "right": prompt.right,
            "answer": self.written,
            "stopped": self.stopped,
            "gold": self.gold,
            **measures(self.written),
            "keeps_content": self.keeps_content,
            "margin": self.margin,
            "score": self.score,
            "scores": dict(self.scores),
        }


def load_prompts(
    config: BenchmarkConfig, conditions: Conditions = "default", key: str = "benchmark.path"
) -> OpenPrompts:
    """The prompts of a source of preferences or of prompts alone, in the columns of pairs."""
    records = sources.read(
        "pair",
        config.path,
        config.split,
        config.revision,
        key,
        conditions,
        prompt_columns("prompt"),
    )
    return _prompts(records, "prompt", config.questions)


def held_out_prompts(
    stage: Stage,
    block: StageConfig,
    config: OpenConfig,
    seed: int,
    conditions: Conditions,
    renderer: Renderer,
) -> OpenPrompts | None:
    """The prompts that a run puts to its policy: rows of the stage's source held out of training.

    They are bodinho's test split, or the stage's validation rows of another source; those too long
    to be answered are left out. None where nothing is held out.
    """
    if block.data.path == BODINHO:
        rows = sources.read("pair", BODINHO, "test", None, "benchmark.path", conditions)
    else:
        columns = prompt_columns(block.data.column)
        _, rows = read_rows("prompt", columns, stage, block, seed, conditions)
    room = renderer.max_length - config.max_new_tokens
    prompts = _prompts(
        rows,
        block.data.column,
        config.prompts,
        lambda prompt: len(renderer.prompt(prompt.messages)) <= room,
    )
    return prompts if prompts.rows else None


def _prompts(
    records: Sequence[sources.Record],
    column: str,
    count: int | None,
    fits: Callable[[Prompt], bool] = lambda _: True,
) -> OpenPrompts:
    """A sample of the prompts that fit; one that stands in several rows is its first row's."""
    first: dict[Any, OpenPrompt] = {}
    for where, row in records:
        prompt = parse_prompt(row, where, column)
        stated = row.get("chosen") is not None and row.get("rejected") is not None
        pair = parse_pair(row, where, column) if stated else None
        first.setdefault(prompt.messages, OpenPrompt(prompt, pair))
    fitting = [row for row in first.values() if fits(row.prompt)]
    chosen = list(sources.sample(fitting, count, seed=0))
    return OpenPrompts(chosen, sources.digest(records), len(first) - len(fitting))


@dataclass
class Interview:
    """The same prompts put to one model after the other; what each answered, by its name."""

    prompts: OpenPrompts
    machine: Machine
    max_new_tokens: int
    max_tokens: int  # a batch
    scorer: str | None = None  # a function of the user's, as module:function
    key: str = "open.scorer"  # where it stands in the config
    answers: dict[str, list[OpenAnswer]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scorer is not None:
            load_scorer(self.scorer, self.key)

    def ask(self, name: str, policy: Policy) -> None:
        answers = answer(
            policy,
            self.prompts,
            self.machine,
            max_new_tokens=self.max_new_tokens,
            max_tokens=self.max_tokens,
        )
        if self.scorer is not None:
            answers = scored_by(self.scorer, self.key, answers)
        self.answers[name] = answers

    def score(self, reward: RewardModel, policy: Policy) -> None:
        """Lets a reward model score all answers so far; `policy` is the network it runs on."""
        for name, answers in self.answers.items():
            self.answers[name] = scored(answers, reward, policy, self.machine, self.max_tokens)

    def write(self, folder: Path) -> None:
        """Every answer with what was seen in it, a file a model, and all side by side."""
        for name, answers in self.answers.items():
            record.write_jsonl(folder / f"{name}.jsonl", [one.as_row() for one in answers])
        record.write_csv(folder / SIDE_BY_SIDE, side_by_side(self.answers))


def answer(
    policy: Policy,
    prompts: OpenPrompts,
    machine: Machine,
    *,
    max_new_tokens: int,
    max_tokens: int,
) -> list[OpenAnswer]:
    """The most probable token each time; how many prompts go into a batch changes no answer.

    Raises BadInput for a prompt that leaves no room for `max_new_tokens`.
    """
    renderer = Renderer(policy.tokenizer, policy.context)
    texts = [row.prompt for row in prompts.rows]
    written = write(policy, renderer, texts, max_new_tokens, max_tokens, machine)
    margins = _margins(policy, renderer, prompts.rows, machine, max_tokens)
    return [
        OpenAnswer(row, answer.text, answer.stopped, margin)
        for row, answer, margin in zip(prompts.rows, written, margins, strict=True)
    ]


def by_rules(
    policy: Policy,
    renderer: Renderer,
    prompts: Sequence[OpenPrompt],
    config: BenchmarkConfig,
    machine: Machine,
) -> list[OpenAnswer]:
    """The answers of one model, scored by rules; `Interview` compares those of several."""
    return answer(
        policy,
        OpenPrompts(list(prompts), ""),
        machine,
        max_new_tokens=config.answer_tokens,
        max_tokens=config.max_tokens,
    )


def _margins(
    policy: Policy,
    renderer: Renderer,
    rows: Sequence[OpenPrompt],
    machine: Machine,
    max_tokens: int,
) -> list[float | None]:
    """None also for a pair whose answers are the same as far as the model's context goes."""
    pairs = [[] if row.pair is None else renderer.pair(row.pair).trees for row in rows]

    def logps(batch: Batch) -> Tensor:
        return batch.sums(policy.logps(batch).double())

    trees = [tree for pair in pairs for tree in pair]
    sums = iter(_each(policy, trees, logps, machine, max_tokens))  # chosen, then rejected
    return [next(sums) - next(sums) if pair else None for pair in pairs]


def scored_by(scorer: str, key: str, answers: Sequence[OpenAnswer]) -> list[OpenAnswer]:
    """The same answers with the score that a function of the user gives them.

    The config names the function under `key`. Raises BadInput where it fails or gives a score that
    is not finite.
    """
    prompts = [one.source.prompt for one in answers]
    scores = scores_of(
        scorer,
        key,
        [prompt_text(prompt) for prompt in prompts],
        [one.written for one in answers],
        [prompt.right for prompt in prompts],
    )
    return [
        replace(one, scores={**one.scores, scorer: score})
        for one, score in zip(answers, scores, strict=True)
    ]


def scored(
    answers: Sequence[OpenAnswer],
    reward: RewardModel,
    policy: Policy,
    machine: Machine,
    max_tokens: int,
) -> list[OpenAnswer]:
    """The same answers with the reward model's score; `policy` is the network it runs on.

    Every answer is scored with a turn end behind it, because that is the token at which the reward
    model has learned to give its score.
    """
    renderer = Renderer(policy.tokenizer, policy.context)
    trees = []
    for one in answers:
        ids = renderer.tokenizer(one.written, add_special_tokens=False)["input_ids"]
        ids = [*ids, renderer.turn_end[1]]
        prompt = renderer.prompt(one.source.prompt.messages)
        trees.append(Tree(prompt, [Completion(ids, [True] * len(ids))]))

    def scores(batch: Batch) -> Tensor:
        return reward.scores(policy, batch)

    values = _each(policy, trees, scores, machine, max_tokens)
    return [replace(one, score=value) for one, value in zip(answers, values, strict=True)]


def _each(
    policy: Policy,
    trees: Iterable[Tree],
    compute: Callable[[Batch], Tensor],
    machine: Machine,
    max_tokens: int,
) -> list[float]:
    """What `compute` gives for each completion, in evaluation mode and without gradient."""
    values: list[float] = []
    with policy.evaluating(), torch.no_grad(), machine.autocast():
        for group in within(trees, max_tokens):
            values += compute(pack(group).to(policy.device)).tolist()
    return values


def summarise(answers: Sequence[OpenAnswer]) -> dict[str, Any]:
    """Shares of the answers by each rule, with Wilson's interval, and mean length and scores.

    A measure that is known of no answer (content, preference, a reward model's score) is None.
    `scores` are the means by the user's scorers, under their names.
    """
    seen = [measures(a.written) for a in answers]
    scores = [a.score for a in answers if a.score is not None]
    return {
        "prompts": len(answers),
        **{rule: _share([bool(row[rule]) for row in seen]) for rule in RULES},
        "stopped": _share([a.stopped for a in answers]),
        "keeps_content": _share([a.keeps_content for a in answers]),
        "preferred": _share([a.preferred for a in answers]),
        "words": _mean([row["words"] for row in seen]),
        "gold": _mean([a.gold for a in answers]),
        "score": _mean(scores) if scores else None,
        "scores": {name: _mean([a.scores[name] for a in answers]) for name in answers[0].scores},
    }


def _share(flags: Sequence[bool | None]) -> dict[str, Any] | None:
    known = [flag for flag in flags if flag is not None]
    if not known:
        return None
    count = sum(known)
    return {
        "share": count / len(known),
        "count": count,
        "of": len(known),
        "interval": list(wilson(count, len(known))),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def compare(before: Sequence[OpenAnswer], after: Sequence[OpenAnswer]) -> dict[str, Any]:
    """Two models' answers to the same prompts: caution, and how often the second's is better.

    Better by the gold score, by the reward model's where both were scored, and by each scorer of
    the user that scored both. `implicit` is the share of pairs whose margin is higher under the
    second: those whose chosen answer its implicit reward prefers, with the first as reference.
    """
    cautious = [
        [bool(measures(a.written)["cautious"]) for a in answers] for answers in (before, after)
    ]
    rates = {"gold": win_rate([a.gold for a in after], [a.gold for a in before])}
    scores = [[a.score for a in answers if a.score is not None] for answers in (after, before)]
    if len(scores[0]) == len(scores[1]) == len(after):
        rates["reward"] = win_rate(*scores)
    for name in before[0].scores.keys() & after[0].scores.keys():
        rates[name] = win_rate([a.scores[name] for a in after], [a.scores[name] for a in before])
    rises = [
        None if one.margin is None or two.margin is None else two.margin > one.margin
        for one, two in zip(before, after, strict=True)
    ]
    return {
        "cautious": paired(*cautious)._asdict(),
        "win_rate": {by: rate._asdict() for by, rate in rates.items()},
        "implicit": _share(rises),
    }


def progression(answers: Mapping[str, Sequence[OpenAnswer]]) -> dict[str, dict[str, Any]]:
    """Each model's summary, and its comparison with every model before it."""
    names = list(answers)
    return {
        name: {
            "summary": summarise(answers[name]),
            "against": {other: compare(answers[other], answers[name]) for other in names[:number]},
        }
        for number, name in enumerate(names)
    }


def side_by_side(answers: Mapping[str, Sequence[OpenAnswer]]) -> list[dict[str, Any]]:
    """One row per prompt: the right answer where it is known, and what each model wrote.

    The columns after these hold the scores by the user's scorers, as `MODEL, module:function`.
    """
    return [
        {
            "prompt": prompt_text(row[0].source.prompt),
            "right": row[0].source.prompt.right,
            **{name: one.written for name, one in zip(answers, row, strict=True)},
            **{
                f"{name}, {scorer}": score
                for name, one in zip(answers, row, strict=True)
                for scorer, score in one.scores.items()
            },
        }
        for row in zip(*answers.values(), strict=True)
    ]
