"""Causal language modelling: what the stages `cpt` and `sft` have in common."""

from drbode.data.trees import Trees
from drbode.objectives.clm import clm_loss
from drbode.training.module import Sums, TrainingModule


class CLMModule(TrainingModule):
    """Minimises the negative log-likelihood of the supervised tokens."""

    def sums(self, batch: Trees) -> Sums:
        return Sums(clm_loss(self.policy.logps(**batch.inputs())))

    def units(self, batch: Trees) -> int:
        return len(batch.targets)
