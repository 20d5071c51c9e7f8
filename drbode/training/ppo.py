"""Stage `ppo`: the policy is optimised on scores of its own answers, near a reference."""

import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from drbode.config import OWN_REWARD, BadInput, PpoConfig
from drbode.data.steps import Loader, Step, shuffled
from drbode.models.base import Policy
from drbode.models.heads import RewardModel
from drbode.objectives.ppo import (
    Rollouts,
    adapted_beta,
    assign_credit,
    clipped_policy_loss,
    clipped_value_loss,
    kl_k1,
)
from drbode.training.context import StageContext, Training, in_order
from drbode.training.finite import computes_finite, not_finite
from drbode.training.module import Sums, TrainingModule, own_draws
from drbode.training.rollouts import Answers, Experience, RolloutTable, sample, style, summary
from drbode.training.scoring import Score, score_of, scores
from drbode.trees import Batch, Tree, pack, within


def updates(config: PpoConfig) -> int:
    """Optimizer steps an iteration."""
    return config.inner_epochs * math.ceil(config.rollouts / config.global_batch_size)


class Prompts(Loader):
    """Yields the prompts of an iteration, `rollouts` of them, shuffled anew every epoch."""

    def __init__(self, trees: Sequence[Tree], config: PpoConfig, seed: int) -> None:
        """Raises BadInput where an iteration asks more prompts than there are."""
        if len(trees) < config.rollouts:
            raise BadInput(
                f"ppo.rollouts: an iteration asks {config.rollouts} prompts and ppo.data.path has "
                f"{len(trees)}; lower it"
            )
        super().__init__(trees, iterations(trees, config, seed), config.max_tokens)

    def __iter__(self) -> Iterator[list[Tree]]:
        for number in range(self.start, len(self.plan)):
            yield self.rows(number)


def iterations(trees: Sequence[Tree], config: PpoConfig, seed: int) -> "list[array[int]]":
    """The indices of each iteration's prompts.

    `steps` of the config are optimizer steps, `tokens` those of prompts. Every iteration is whole:
    what is left at the end of an epoch waits for a later shuffle.
    """
    size = config.rollouts
    wanted: float = max(1, round(config.epochs * len(trees) / size))
    if config.steps is not None:
        wanted = math.ceil(config.steps / updates(config))
    if config.tokens is not None:
        wanted = math.inf
    plan: list[array[int]] = []
    tokens = 0
    for order in shuffled(len(trees), math.inf, seed):
        for at in range(0, len(order) - size + 1, size):
            plan.append(order[at : at + size])
            tokens += sum(trees[i].tokens for i in plan[-1])
            if len(plan) == wanted or (config.tokens is not None and tokens >= config.tokens):
                return plan
    return plan


class Minibatch(NamedTuple):
    """Some rollouts, and for each of their tokens what it was when it was drawn."""

    batch: Batch
    logps: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


class PPOModule(TrainingModule):
    """Samples answers, scores them, and takes `inner_epochs` passes of clipped steps on them.

    Policy and value share the network; the value head starts at zero. The old log-probabilities
    come from the same forward as the training's, so the first step of an iteration has ratio 1.
    Once an iteration is done, its rollouts are appended to `table`, a line each.
    """

    config: PpoConfig

    def __init__(
        self,
        *common: Any,
        reward: RewardModel | Score,
        probe: Callable[[], float],
        table: Path,
        **named: Any,
    ) -> None:
        """`probe` measures the policy's accuracy on the benchmark."""
        super().__init__(*common, **named)
        self.reward = reward
        self.probe = probe
        self.table = RolloutTable(table)
        self.start = {n: p.detach().clone() for n, p in self.policy.trainable().items()}
        width = self.policy.model.config.hidden_size
        self.value_head = nn.Parameter(torch.zeros(width + 1, device=self.policy.device))
        self.beta = self.config.beta
        self.iterations = 0
        self.best_gold, self.worse = -math.inf, 0
        self._validation: list[Tree] = []
        self._shuffle = torch.Generator().manual_seed(0)

    def trainable(self) -> dict[str, nn.Parameter]:
        return super().trainable() | {"value_head": self.value_head}

    def units(self, minibatch: Minibatch) -> int:
        return len(minibatch.logps)

    def on_train_start(self) -> None:
        super().on_train_start()
        self.table.keep_before(self.iterations)

    def training_step(self, prompts: list[Tree], _index: int) -> None:  # type: ignore[override]
        experience = self.experience(prompts, self.config.temperature)
        for _ in range(self.config.inner_epochs):
            order = torch.randperm(len(prompts), generator=self._shuffle).tolist()
            for at in range(0, len(order), self.config.global_batch_size):
                chosen = order[at : at + self.config.global_batch_size]
                super().training_step(self._step(experience, chosen), _index)
        self._report(experience)
        self.iterations += 1

    def _step(self, experience: Experience, chosen: list[int]) -> Step:
        """Some of an iteration's rollouts as one optimizer step."""
        rollouts = experience.rollouts
        ends = rollouts.lengths.cumsum(0).tolist()
        trees = [experience.answers.trees[i] for i in chosen]
        batches, at = [], 0
        for group in within(trees, self.config.max_tokens):
            members = chosen[at : at + len(group)]
            at += len(group)
            places = torch.cat(
                [torch.arange(ends[i] - rollouts.lengths[i], ends[i]) for i in members]
            ).to(self.device)
            batches.append(
                Minibatch(
                    pack(group).to(self.device),
                    rollouts.logps[places],
                    rollouts.values[places],
                    rollouts.advantages[places],
                    rollouts.returns[places],
                )
            )
        return Step(
            batches,
            rows=len(trees),
            tokens=sum(t.tokens for t in trees),
            supervised=sum(t.supervised for t in trees),
        )

    def sums(self, minibatch: Minibatch) -> Sums:
        logps, values = self.logps_and_values(minibatch.batch)
        config = self.config
        policy_loss, clipped = clipped_policy_loss(
            logps, minibatch.logps, minibatch.advantages, config.clip_range
        )
        value_loss, _ = clipped_value_loss(
            values, minibatch.values, minibatch.returns, config.value_clip_range
        )
        return Sums(
            (policy_loss + config.value_weight * value_loss).sum(),
            {
                "policy_loss": policy_loss.sum(),
                "value_loss": value_loss.sum(),
                "clipped_share": clipped.sum(),
                "ratio": (logps.detach() - minibatch.logps).exp().sum(),
                "kl_to_old": kl_k1(minibatch.logps, logps.detach()).sum(),
            },
        )

    def logps_and_values(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of each supervised token: its logp, and the return expected before it was drawn."""
        hidden = self.policy.hidden(batch)[batch.sources]
        logps = self.policy.predicted(hidden, batch.targets)
        values = hidden.to(self.value_head.dtype) @ self.value_head[:-1] + self.value_head[-1]
        return logps, values

    @torch.no_grad()
    def experience(self, prompts: list[Tree], temperature: float) -> Experience:
        """Answers to the prompts, and the credit of each of their tokens."""
        self._check_policy(prompts[0])
        answers = sample(self.policy, prompts, self.config, self.end, temperature)
        proxy = scores(self.reward, self.policy, answers, self.config.max_tokens)
        return Experience(answers, self._credit(answers, proxy))

    def _credit(self, answers: Answers, proxy: Tensor) -> Rollouts:
        """What each token of the answers is worth, given a score of each answer."""
        logps, values, reference = [], [], []
        for group in within(answers.trees, self.config.max_tokens):
            batch = pack(group).to(self.device)
            old, value = self.logps_and_values(batch)
            logps.append(old)
            values.append(value)
            reference.append(self.policy.under(self.start, partial(self.policy.logps, batch)))
        unfinished = torch.tensor([not ended for ended in answers.ended], device=self.device)
        lengths = [len(tree.completions[0].ids) for tree in answers.trees]
        return assign_credit(
            torch.tensor(lengths, device=self.device),
            proxy - self.config.missing_end_penalty * unfinished,
            torch.cat(logps),
            torch.cat(reference),
            torch.cat(values),
            beta=self.beta,
            gamma=self.config.gamma,
            lam=self.config.lam,
        )

    def _check_policy(self, prompt: Tree) -> None:
        """Raises BadInput where the policy gives no finite probability, which cannot be drawn from.

        Asked before answers are, for on a GPU a draw from NaN ends the process.
        """
        self.check_finite()
        if not computes_finite(self.policy, [*prompt.prompt, self.end]):
            step = self.progress.steps
            raise not_finite(self.stage, "what the policy computes", step, learned=step > 0)

    def _report(self, experience: Experience) -> None:
        """Logs the iteration and keeps its rollouts; adapts beta to the KL it had."""
        metrics = summary(experience, self.beta)
        self.write("rollouts", metrics)
        self.table.add(self.iterations, experience, self.policy)
        if self.config.target_kl is not None:
            self.beta = adapted_beta(
                self.beta,
                metrics["kl"],
                self.config.target_kl,
                float(self.config.horizon),
                len(experience.answers.gold),
            )

    def validation_step(self, prompts: list[Tree], _index: int) -> None:  # type: ignore[override]
        self._validation += prompts

    def on_validation_epoch_end(self) -> None:
        """Greedy answers to held-out prompts: proxy and gold score; the KL from sampled ones."""
        prompts, self._validation = self._validation, []
        with torch.no_grad(), self.machine.autocast(), own_draws():
            experience = self.experience(prompts, temperature=0.0)
            sampled = self.experience(prompts, self.config.temperature).rollouts
        answers, rollouts = experience
        gold = answers.gold
        proxy, true = float(rollouts.scores.mean()), sum(gold) / len(gold)
        self.check_validation(-proxy)
        self.close_validation(
            {
                "loss": -proxy,
                "proxy": proxy,
                "gold": true,
                "kl": float((sampled.logps - sampled.reference_logps).sum()) / len(gold),
                "benchmark_accuracy": self.probe(),
                "length": float(rollouts.lengths.float().mean()),
                **style(answers),
            }
        )
        self._stop_when_gold_turns(true)

    def _stop_when_gold_turns(self, gold: float) -> None:
        self.worse = 0 if gold > self.best_gold else self.worse + 1
        self.best_gold = max(gold, self.best_gold)
        patience = self.config.gold_patience
        if patience is not None and self.worse >= patience:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["drbode"] |= {
            "beta": self.beta,
            "iterations": self.iterations,
            "shuffle": self._shuffle.get_state(),
            "gold": (self.best_gold, self.worse),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        ours = checkpoint["drbode"]
        self.beta, self.iterations = ours["beta"], ours["iterations"]
        self.best_gold, self.worse = ours["gold"]
        self._shuffle.set_state(ours["shuffle"].cpu())


def build(context: StageContext[PpoConfig]) -> Training:
    config, validation = context.config, context.validation
    loader = Prompts(context.train.trees, config, context.run.seed)
    module = PPOModule(
        reward=score_of(config.reward, context.policy, context.run.reward),
        probe=context.run.probe,
        table=context.run.folder / "rollouts.jsonl",
        **context.module_options(len(loader) * updates(config)),
    )
    # The first prompts that are held out, as many as an iteration has.
    held_out = None if validation is None else in_order([validation.trees[: config.rollouts]])
    return Training(loader, module, held_out)


def check(policy: Policy, config: PpoConfig) -> None:
    """Raises BadInput, before any stage is trained, where what scores rollouts is not to be had."""
    if config.reward != OWN_REWARD:
        score_of(config.reward, policy, None)
