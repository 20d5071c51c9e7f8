"""Stages `cpt` and `sft`: causal language modelling on documents, or on assistant turns."""

import math
from typing import Any

from drbode.data.trees import Trees
from drbode.objectives.clm import clm_loss
from drbode.training.module import Sums, TrainingModule


class CLMModule(TrainingModule):
    """Minimises the negative log-likelihood of the supervised tokens (T1, T4)."""

    def sums(self, batch: Trees) -> Sums:
        return Sums(clm_loss(self.policy.logps(**batch.inputs())))

    def units(self, batch: Trees) -> int:
        return len(batch.targets)


class TextModule(CLMModule):
    """Also takes bits per byte of held-out text, which compare between tokenizers.

    They are the negative log2 of the probability of all predicted tokens over the UTF-8 bytes that
    these stand for, without the token that ends a document, as in what a run forgets.
    """

    def __init__(
        self, *common: Any, document_end: int, predicted_bytes: int | None, **named: Any
    ) -> None:
        """`predicted_bytes` are those of the held-out text, None where there is none."""
        super().__init__(*common, **named)
        self.document_end = document_end
        self.predicted_bytes = predicted_bytes
        self._nats = 0.0

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._nats = 0.0

    def validation_step(self, batch: Trees, _index: int) -> None:
        logps = self.policy.logps(**batch.inputs())
        self._held_out.add(Sums(clm_loss(logps)), self.units(batch))
        of_text = logps.double()[batch.targets != self.document_end]
        self._nats -= float(of_text.sum())

    def held_out_metrics(self) -> dict[str, float]:
        assert self.predicted_bytes is not None, "there is a validation"
        return {"bits_per_byte": self._nats / math.log(2) / self.predicted_bytes}
