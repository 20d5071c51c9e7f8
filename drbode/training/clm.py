"""Stages `cpt` and `sft`: causal language modelling on documents, or on assistant turns."""

from torch import Tensor

from drbode.data.trees import Trees
from drbode.objectives.clm import clm_loss
from drbode.training.module import TrainingModule


class CLMModule(TrainingModule):
    """Minimises the negative log-likelihood of the supervised tokens (T1, T4)."""

    def loss_sum(self, batch: Trees) -> Tensor:
        return clm_loss(self.policy.logps(**batch.inputs()))
