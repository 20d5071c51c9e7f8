"""Stage `ppo`: the policy is optimised on scores of its own answers, near a reference."""

import json
import math
import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from drbode.config import OWN_REWARD, BadInput, PpoConfig, is_function, load_function
from drbode.data.answers import gold_score, keeps_content, measures
from drbode.data.steps import Step, StepLoader
from drbode.models.base import Policy
from drbode.models.generation import Generated, generate
from drbode.models.heads import RewardModel, load_reward_model
from drbode.objectives.ppo import (
    Rollouts,
    adapted_beta,
    assign_credit,
    clipped_policy_loss,
    clipped_value_loss,
    kl_k1,
)
from drbode.record import append, whole
from drbode.training.context import StageContext, Training, in_order
from drbode.training.finite import all_finite, not_finite
from drbode.training.module import Sums, TrainingModule, own_draws
from drbode.trees import Batch, Completion, Tree, pack, within

Score = Callable[[Sequence[str], Sequence[str]], Sequence[float]]  # of prompts and answers


def updates(config: PpoConfig) -> int:
    """Optimizer steps an iteration."""
    return config.inner_epochs * math.ceil(config.rollouts / config.global_batch_size)


class Prompts(StepLoader):
    """Yields the prompts of an iteration, `rollouts` of them, shuffled anew every epoch."""

    def __init__(self, trees: Sequence[Tree], config: PpoConfig, seed: int) -> None:
        """`steps` of the config are optimizer steps, `tokens` those of prompts.

        Every iteration is whole: what is left at the end of an epoch waits for a later shuffle.
        """
        super().__init__(trees, config, seed)
        size = config.rollouts
        if len(trees) < size:
            raise BadInput(
                f"ppo.rollouts: an iteration asks {size} prompts and ppo.data.path has "
                f"{len(trees)}; lower it"
            )
        iterations: float = max(1, round(config.epochs * len(trees) / size))
        if config.steps is not None:
            iterations = math.ceil(config.steps / updates(config))
        if config.tokens is not None:
            iterations = math.inf
        order, tokens = random.Random(seed), 0
        self.plan = []
        while True:
            indices = array("i", range(len(trees)))
            order.shuffle(indices)
            for at in range(0, len(indices) - size + 1, size):
                self.plan.append(indices[at : at + size])
                tokens += sum(trees[i].tokens for i in self.plan[-1])
                enough = config.tokens is not None and tokens >= config.tokens
                if enough or len(self.plan) == iterations:
                    return

    def __iter__(self) -> Iterator[list[Tree]]:  # type: ignore[override]
        for indices in self.plan[self.start :]:
            yield [self.trees[i] for i in indices]


class Experience(NamedTuple):
    """An iteration's rollouts: their trees, texts, and what the policy is optimised on."""

    trees: list[Tree]
    answers: list[str]
    ended: list[bool]
    gold: list[float]
    keeps_content: list[bool]  # of those prompts whose right answer is known
    rollouts: Rollouts


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
        self.table = table
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
        if self.table.exists():  # of an interrupted run, which may have gone further than this one
            lines = self.table.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if json.loads(line)["iteration"] < self.iterations]
            with whole(self.table) as draft:
                draft.write_text("".join(kept), encoding="utf-8")

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
        trees = [experience.trees[i] for i in chosen]
        batches, at = [], 0
        for group in within(trees, self.config.max_tokens):
            own = chosen[at : at + len(group)]
            at += len(group)
            places = torch.cat(
                [torch.arange(ends[i] - rollouts.lengths[i], ends[i]) for i in own]
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
        answers = self._answer(prompts, temperature)
        trees = [_with(prompt, a) for prompt, a in zip(prompts, answers, strict=True)]
        texts = [self._text(a) for a in answers]
        logps, values, reference, scores = [], [], [], []
        for group in within(trees, self.config.max_tokens):
            batch = pack(group).to(self.device)
            old, value = self.logps_and_values(batch)
            logps.append(old)
            values.append(value)
            reference.append(self._reference(batch))
            if isinstance(self.reward, RewardModel):
                scores.append(self.reward.scores(self.policy, batch))
        if isinstance(self.reward, RewardModel):
            total = torch.cat(scores).float()
        else:
            asked = [self.policy.tokenizer.decode(tree.prompt) for tree in trees]
            total = _checked(self.reward(asked, texts), len(texts)).to(self.device)
        open_ended = torch.tensor([not a.ended for a in answers], device=self.device)
        total = total - self.config.missing_end_penalty * open_ended
        rollouts = assign_credit(
            torch.tensor([len(a.ids) for a in answers], device=self.device),
            total,
            torch.cat(logps),
            torch.cat(reference),
            torch.cat(values),
            beta=self.beta,
            gamma=self.config.gamma,
            lam=self.config.lam,
        )
        right = [self._right(prompt) for prompt in prompts]
        return Experience(
            trees,
            texts,
            [a.ended for a in answers],
            [gold_score(text, r) for text, r in zip(texts, right, strict=True)],
            [keeps_content(t, r) for t, r in zip(texts, right, strict=True) if r is not None],
            rollouts,
        )

    def _check_policy(self, prompt: Tree) -> None:
        """Raises BadInput where the policy gives no finite probability, which cannot be drawn from.

        Asked before answers are, for on a GPU a draw from NaN ends the process.
        """
        self.check_finite()
        batch = pack([Tree(prompt.prompt, [Completion([self.end], [True])])]).to(self.device)
        if not all_finite([self.policy.logps(batch)]):
            steps = self.progress.steps
            raise not_finite(self.stage, "policy's log-probability", steps, learned=steps > 0)

    def _right(self, prompt: Tree) -> str | None:
        """A right answer to the prompt, where its row had one."""
        if not prompt.completions:
            return None
        text: str = self.policy.tokenizer.decode(prompt.completions[0].ids)
        return text

    def _reference(self, batch: Batch) -> Tensor:
        return self.policy.under(self.start, lambda: self.policy.logps(batch))

    def _answer(self, prompts: list[Tree], temperature: float) -> list[Generated]:
        return generate(
            self.policy,
            [tree.prompt for tree in prompts],
            end=self.end,
            max_new_tokens=self.config.max_new_tokens,
            max_tokens=self.config.max_tokens,
            temperature=temperature,
        )

    def _text(self, answer: Generated) -> str:
        ids = answer.ids[:-1] if answer.ended else answer.ids
        text: str = self.policy.tokenizer.decode(ids)
        return text

    def _report(self, experience: Experience) -> None:
        """Logs the iteration and keeps its rollouts; adapts beta to the KL it had."""
        rollouts = experience.rollouts
        kls = rollouts.logps - rollouts.reference_logps
        owners = torch.arange(len(rollouts.lengths), device=kls.device)
        owners = owners.repeat_interleave(rollouts.lengths)
        kl = kls.new_zeros(len(rollouts.lengths)).index_add(0, owners, kls)
        gold = experience.gold
        self.write(
            "rollouts",
            {
                "proxy": float(rollouts.scores.mean()),
                "gold": sum(gold) / len(gold),
                "kl": float(kl.mean()),
                "beta": self.beta,
                "length": float(rollouts.lengths.float().mean()),
                "ended_share": sum(experience.ended) / len(gold),
                **_style(experience),
            },
        )
        rows = zip(
            experience.trees,
            experience.answers,
            rollouts.scores.tolist(),
            gold,
            kl.tolist(),
            experience.ended,
            strict=True,
        )
        lines = []
        for tree, answer, proxy, true, distance, ended in rows:
            row = {
                "iteration": self.iterations,
                "prompt": self.policy.tokenizer.decode(tree.prompt, skip_special_tokens=True),
                "answer": answer,
                "proxy": proxy,
                "gold": true,
                "kl": distance,
                "ended": ended,
            }
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        append(self.table, "".join(lines))
        if self.config.target_kl is not None:
            self.beta = adapted_beta(
                self.beta,
                float(kl.mean()),
                self.config.target_kl,
                float(self.config.horizon),
                len(gold),
            )

    def validation_step(self, prompts: list[Tree], _index: int) -> None:  # type: ignore[override]
        self._validation += prompts

    def on_validation_epoch_end(self) -> None:
        """Greedy answers to held-out prompts: proxy and gold score; the KL from sampled ones."""
        prompts, self._validation = self._validation, []
        with torch.no_grad(), self.machine.autocast(), own_draws():
            experience = self.experience(prompts, temperature=0.0)
            sampled = self.experience(prompts, self.config.temperature).rollouts
        rollouts = experience.rollouts
        gold = experience.gold
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
                **_style(experience),
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


def score_of(reward: str, policy: Policy, own: RewardModel | None) -> RewardModel | Score:
    """What rollouts are scored by: the run's own reward model, one in a folder, or a function.

    A function is called with a list of prompts, as the model sees them, and a list of answers.
    Raises BadInput where it is not to be had.
    """
    if reward == OWN_REWARD:
        assert own is not None, "one of the rules"
        return own
    if is_function(reward):
        expected = "reward, a folder that a stage reward left, or module:function"
        return load_function(reward, "ppo.reward", expected)
    return load_reward_model(policy, Path(reward), "ppo.reward")


def check(policy: Policy, config: PpoConfig) -> None:
    """Raises BadInput, before any stage is trained, where what scores rollouts is not to be had."""
    if config.reward != OWN_REWARD:
        score_of(config.reward, policy, None)


def _checked(scores: Sequence[float], answers: int) -> Tensor:
    total = torch.as_tensor(scores, dtype=torch.float32)
    if total.shape != (answers,) or not torch.isfinite(total).all():
        raise BadInput(
            f"ppo.reward: the function gave {list(total.shape)} scores for {answers} answers, or "
            "one that is no number; expected a finite number for each"
        )
    return total


def _with(prompt: Tree, answer: Generated) -> Tree:
    return Tree(prompt.prompt, [Completion(answer.ids, [True] * len(answer.ids))])


def _style(experience: Experience) -> dict[str, float]:
    """Means of what the rules see in the answers."""
    rows = [measures(answer) for answer in experience.answers]
    found = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    if kept := experience.keeps_content:
        found["keeps_content"] = sum(kept) / len(kept)
    return found
