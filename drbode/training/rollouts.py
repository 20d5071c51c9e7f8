"""Rollouts of stage `ppo`: answers are sampled, summed up for metrics and kept as rows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from drbode.config import PpoConfig
from drbode.data.answers import gold_score, keeps_content, measures
from drbode.models.base import Policy
from drbode.models.generation import Generated, generate
from drbode.objectives.ppo import Rollouts
from drbode.record import append, whole
from drbode.trees import Completion, Tree


class Answers(NamedTuple):
    """Prompts with the answers that a policy wrote to them."""

    trees: list[Tree]
    texts: list[str]
    ended: list[bool]  # whether the answer came to its end within the limit
    gold: list[float]
    keeps_content: list[bool]  # of those prompts whose right answer is known


class Experience(NamedTuple):
    """An iteration's answers, and what the policy is optimised on."""

    answers: Answers
    rollouts: Rollouts


def sample(
    policy: Policy, prompts: list[Tree], config: PpoConfig, end: int, temperature: float
) -> Answers:
    """Answers to the prompts, the most probable ones at temperature 0."""
    written = generate(
        policy,
        [tree.prompt for tree in prompts],
        end=end,
        max_new_tokens=config.max_new_tokens,
        max_tokens=config.max_tokens,
        temperature=temperature,
    )
    texts = [_text(policy, answer) for answer in written]
    right = [_right(policy, prompt) for prompt in prompts]
    return Answers(
        trees=[
            Tree(prompt.prompt, [Completion(answer.ids, [True] * len(answer.ids))])
            for prompt, answer in zip(prompts, written, strict=True)
        ],
        texts=texts,
        ended=[answer.ended for answer in written],
        gold=[gold_score(text, r) for text, r in zip(texts, right, strict=True)],
        keeps_content=[
            keeps_content(text, r) for text, r in zip(texts, right, strict=True) if r is not None
        ],
    )


def _text(policy: Policy, answer: Generated) -> str:
    text: str = policy.tokenizer.decode(answer.ids[:-1] if answer.ended else answer.ids)
    return text


def _right(policy: Policy, prompt: Tree) -> str | None:
    """A right answer to the prompt, where its row had one."""
    if not prompt.completions:
        return None
    text: str = policy.tokenizer.decode(prompt.completions[0].ids)
    return text


def kl_of_each(rollouts: Rollouts) -> Tensor:
    """Of each answer: the sum of its tokens' log-ratios to the reference, in nats."""
    log_ratios = rollouts.logps - rollouts.reference_logps
    owners = torch.arange(len(rollouts.lengths), device=log_ratios.device)
    owners = owners.repeat_interleave(rollouts.lengths)
    return log_ratios.new_zeros(len(rollouts.lengths)).index_add(0, owners, log_ratios)


def summary(experience: Experience, beta: float) -> dict[str, float]:
    """What is logged of an iteration; `beta` is the weight of the KL that it had."""
    answers, rollouts = experience
    count = len(answers.gold)
    return {
        "proxy": float(rollouts.scores.mean()),
        "gold": sum(answers.gold) / count,
        "kl": float(kl_of_each(rollouts).mean()),
        "beta": beta,
        "length": float(rollouts.lengths.float().mean()),
        "ended_share": sum(answers.ended) / count,
        **style(answers),
    }


def style(answers: Answers) -> dict[str, float]:
    """Means of what the rules see in the answers."""
    rows = [measures(text) for text in answers.texts]
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    if kept := answers.keeps_content:
        means["keeps_content"] = sum(kept) / len(kept)
    return means


class RolloutTable:
    """The file `rollouts.jsonl`: a line for each answer of every iteration."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep_before(self, iteration: int) -> None:
        """Drops what an interrupted run wrote past the checkpoint that it goes on from."""
        if not self.path.exists():
            return
        # Split at line feeds alone: an answer may hold other separators, such as U+2028.
        lines = self.path.read_text(encoding="utf-8").split("\n")
        kept = [f"{line}\n" for line in lines if line and json.loads(line)["iteration"] < iteration]
        with whole(self.path) as draft:
            draft.write_text("".join(kept), encoding="utf-8")

    def add(self, iteration: int, experience: Experience, policy: Policy) -> None:
        """Appends the answers of an iteration."""
        append(self.path, "".join(_lines(iteration, experience, policy)))


def _lines(iteration: int, experience: Experience, policy: Policy) -> Iterator[str]:
    answers, rollouts = experience
    for tree, text, score, gold, kl, ended in zip(
        answers.trees,
        answers.texts,
        rollouts.scores.tolist(),
        answers.gold,
        kl_of_each(rollouts).tolist(),
        answers.ended,
        strict=True,
    ):
        row = {
            "iteration": iteration,
            "prompt": policy.tokenizer.decode(tree.prompt, skip_special_tokens=True),
            "answer": text,
            "proxy": score,
            "gold": gold,
            "kl": kl,
            "ended": ended,
        }
        yield json.dumps(row, ensure_ascii=False) + "\n"
