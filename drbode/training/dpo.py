"""Stage `dpo`: direct preference optimization against the policy as it was."""

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor

from drbode.config import (
    LOSSES,
    BadInput,
    DpoConfig,
    failure,
    load_function,
    loss_traits,
    one_of,
)
from drbode.data.splits import Split
from drbode.data.steps import StepLoader
from drbode.models.generation import generate
from drbode.models.policy import Policy
from drbode.objectives.dpo import Loss, Pairs, dpo_loss, mean_nll, pair_metrics
from drbode.training.context import StageContext, Training, packed
from drbode.training.module import Sums, TrainingModule, own_draws
from drbode.training.reference import with_reference
from drbode.trees import Batch, Completion, Tree, pack, within

# Nats a token that the chosen answers may lose since the stage began before it is said.
FAR = 0.5
KL_TOKENS = 64  # an answer may have where the KL is estimated


class DPOModule(TrainingModule):
    """Minimises a DPO loss over pairs whose trees carry their reference's logps."""

    config: DpoConfig

    def __init__(self, *common: Any, prompts: list[list[int]], **named: Any) -> None:
        """`prompts` are answered at each validation, to estimate the KL.

        Raises BadInput where the loss is a function that cannot be imported or takes other options.
        """
        super().__init__(*common, **named)
        self.prompts = prompts
        self.loss = preference_loss(self.config)
        self.start = {n: p.detach().clone() for n, p in self.policy.trainable().items()}

    def units(self, batch: Batch) -> int:
        return batch.completions // 2

    def sums(self, batch: Batch) -> Sums:
        pairs = _pairs(batch, self.policy.logps(batch))
        config = self.config
        loss = dpo_loss(self.loss, pairs, config.beta, config.label_smoothing, config.options or {})
        if config.nll_weight:
            loss = loss + config.nll_weight * mean_nll(pairs.policy_chosen, pairs.chosen_tokens)
        metrics = pair_metrics(pairs, config.beta)
        watched = {name: value.float().sum() for name, value in vars(metrics).items()}
        watched["tokens_chosen"] = pairs.chosen_tokens.sum()
        watched["tokens_rejected"] = pairs.rejected_tokens.sum()
        if len(batch.reference):
            watched["chosen_gain_a_token"] = (pairs.logratio_chosen / pairs.chosen_tokens).sum()
        return Sums(loss.sum(), watched)

    def held_out_metrics(self) -> dict[str, float]:
        """The KL to the policy at the stage's start, in nats an answer, from sampled answers."""
        if not self.prompts:
            return {}
        with self.machine.autocast(), own_draws():
            return {"kl": self._kl()}

    def warnings(self) -> list[str]:
        """Whether the chosen answers themselves have become far less probable.

        A margin grows as well while both answers fall, the rejected one faster (Pal et al. 2024,
        "Smaug", section 3; Razin et al. 2024, "Unintentional unalignment").
        """
        seen = self.progress.validation or self.progress.train
        if "chosen_gain_a_token" not in seen:  # the loss has no reference
            return []
        lost, accuracy = -seen["chosen_gain_a_token"], 100 * seen["reward_accuracy"]
        if lost <= FAR:
            return []
        where = "held-out" if self.progress.validation else "training"
        return [
            f"on {where} pairs the chosen answers are {lost:.2f} nats a token less probable than "
            f"when the stage began. Reward accuracy ({accuracy:.1f} %) does not see it: a margin "
            "grows as well while both sides fall and the rejected one faster, and a policy that "
            "ranks every pair rightly may write word salad. Read its answers, and raise "
            "dpo.nll_weight or dpo.beta or lower dpo.learning_rate"
        ]

    @torch.no_grad()
    def _kl(self) -> float:
        answers = generate(
            self.policy,
            self.prompts,
            end=self.end,
            max_new_tokens=KL_TOKENS,
            max_tokens=self.config.max_tokens,
            temperature=1.0,
        )
        trees = [
            Tree(prompt, [Completion(a.ids, [True] * len(a.ids))])
            for prompt, a in zip(self.prompts, answers, strict=True)
        ]
        total = 0.0
        for group in within(trees, self.config.max_tokens):
            batch = pack(group).to(self.policy.device)
            now = self.policy.logps(batch)
            before = self.policy.under(self.start, partial(self.policy.logps, batch))
            total += float((now - before).sum())
        return total / len(trees)


def build(context: StageContext[DpoConfig]) -> Training:
    """The reference's logps are computed here, once, where the loss reads them."""
    config = context.config
    train, validation = context.train, context.validation
    if config.needs_reference:
        train = _with_reference(context, train)
        validation = None if validation is None else _with_reference(context, validation)
    loader = StepLoader(train.trees, config, context.run.seed)
    prompted = [] if validation is None else validation.trees[: config.kl_prompts]
    module = DPOModule(prompts=[t.prompt for t in prompted], **context.module_options(len(loader)))
    return Training(loader, module, packed(validation, config.max_tokens))


def _with_reference(context: StageContext[DpoConfig], split: Split) -> Split:
    run = context.run
    base = run.base if context.config.reference == "base" else None
    return with_reference(
        context.policy, split, context.config.max_tokens, run.machine, run.cache, base
    )


def preference_loss(config: DpoConfig) -> Loss:
    """The function of `dpo.loss`. Raises BadInput where it is not to be had or refuses options."""
    expected, options = f"{one_of(LOSSES)} or module:function", config.options or {}
    loss = load_function(loss_traits(config.loss).function, "dpo.loss", expected)
    try:
        inspect.signature(loss).bind(None, config.beta, **options)
    except TypeError as error:
        raise BadInput(
            f"dpo.options: {config.loss} is called as (pairs, beta, **options) with the options "
            f"{sorted(options)}, which its signature does not take ({error}); give those "
            "that it takes"
        ) from None
    return loss


def check(_policy: Policy, config: DpoConfig) -> None:
    """Raises BadInput, before any stage is trained, where the loss gives no loss of each pair."""
    loss, options = preference_loss(config), config.options or {}
    logps = (-torch.arange(1.0, 13.0)).view(4, 3).requires_grad_()
    tried = Pairs(
        policy_chosen=logps[0],
        policy_rejected=logps[1],
        reference_chosen=logps[2].detach(),
        reference_rejected=logps[3].detach(),
        chosen_tokens=torch.tensor([1, 2, 3]),
        rejected_tokens=torch.tensor([3, 2, 1]),
    )
    try:
        values = loss(tried, config.beta, **options)
    except Exception as error:  # of the user's code, which raises what it likes
        raise BadInput(
            f"dpo.loss: {config.loss} raised {failure(error)}; it is handed a Pairs of "
            "drbode/objectives/dpo.py, mend it"
        ) from None
    what = None
    if not isinstance(values, Tensor) or values.shape != (3,):
        shape = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        what = f"{shape} for three pairs; expected one value for each pair, not their mean or sum"
    elif not values.requires_grad:
        what = "values that do not depend on the policy's logps; expected a tensor with a gradient"
    elif not values.isfinite().all():
        what = f"{values.tolist()} for three pairs; expected finite numbers"
    if what is not None:
        raise BadInput(f"dpo.loss: {config.loss} gave {what}")


def _pairs(batch: Batch, logps: Tensor) -> Pairs:
    sums, tokens = batch.sums(logps).view(-1, 2), batch.lengths().view(-1, 2)
    reference = batch.reference.view(-1, 2) if len(batch.reference) else torch.zeros_like(sums)
    return Pairs(
        policy_chosen=sums[:, 0],
        policy_rejected=sums[:, 1],
        reference_chosen=reference[:, 0],
        reference_rejected=reference[:, 1],
        chosen_tokens=tokens[:, 0],
        rejected_tokens=tokens[:, 1],
    )
