"""Stage `reward`: a reward model on the policy's network."""

from typing import Any

import torch
from torch import Tensor, nn

from drbode.config import RewardConfig
from drbode.data.steps import StepLoader
from drbode.models.heads import RewardModel, score
from drbode.objectives.reward import (
    bradley_terry_loss,
    preference_accuracy,
    preference_probability,
)
from drbode.training.context import StageContext, Training, packed
from drbode.training.module import Sums, TrainingModule
from drbode.trees import Batch

BINS = 10  # of the calibration error, over probabilities from 0.5 to 1


class RewardModule(TrainingModule):
    """Minimises the Bradley-Terry loss of pairs, by the method's tensors and a scalar head.

    The head starts at zero: at step 0 every score is 0 and the loss is ln 2.
    """

    config: RewardConfig

    def __init__(self, *common: Any, **named: Any) -> None:
        super().__init__(*common, **named)
        width = self.policy.model.config.hidden_size
        self.head = nn.Parameter(torch.zeros(width, device=self.policy.device))
        self._calibration = torch.zeros(3, BINS, dtype=torch.float64)

    def trainable(self) -> dict[str, nn.Parameter]:
        return super().trainable() | {"head": self.head}

    def units(self, batch: Batch) -> int:
        return batch.completions // 2

    def sums(self, batch: Batch) -> Sums:
        scores = score(self.policy, self.head, batch)
        chosen, rejected = scores.view(-1, 2).unbind(1)
        if not self.training:
            self._calibrate(preference_probability(chosen, rejected))
        return Sums(
            bradley_terry_loss(chosen, rejected, self.config.centering).sum(),
            {
                "accuracy": preference_accuracy(chosen, rejected).sum(),
                "score_chosen": chosen.sum(),
                "score_rejected": rejected.sum(),
            },
        )

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._calibration.zero_()

    def _calibrate(self, probability: Tensor) -> None:
        """Counts pairs, confidence and hits, by confidence: the preferred side's probability."""
        confidence = torch.maximum(probability, 1 - probability).double().cpu()
        hit = (probability > 0.5).double().cpu()
        bins = ((confidence - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
        for row, value in enumerate((torch.ones_like(confidence), confidence, hit)):
            self._calibration[row].index_add_(0, bins, value)

    def held_out_metrics(self) -> dict[str, float]:
        """Mean gap between the confidence in a preference and how often it is right."""
        pairs, confidence, hits = self._calibration
        return {"calibration_error": float((confidence - hits).abs().sum() / pairs.sum())}

    def reward_model(self) -> RewardModel:
        """What was trained, apart from the policy, which trains on."""
        state = {n: p.detach().clone() for n, p in self.policy.trainable().items()}
        return RewardModel(state, self.head.detach().clone())


def build(context: StageContext[RewardConfig]) -> Training:
    loader = StepLoader(context.train.trees, context.config, context.run.seed)
    module = RewardModule(**context.module_options(len(loader)))
    return Training(loader, module, packed(context.validation, context.config.max_tokens))
