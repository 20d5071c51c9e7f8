"""Causal language modelling: what the stages `cpt` and `sft` have in common."""

from drbode.objectives.clm import clm_loss
from drbode.training.module import Sums, TrainingModule
from drbode.trees import Batch


class CLMModule(TrainingModule):
    """Minimises the negative log-likelihood of the supervised tokens."""

    def sums(self, batch: Batch) -> Sums:
        return Sums(clm_loss(self.policy.logps(batch)))

    def units(self, batch: Batch) -> int:
        return len(batch.targets)
