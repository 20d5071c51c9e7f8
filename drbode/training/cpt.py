"""Stage `cpt`: continued pre-training, causal language modelling on raw text."""

import math
from typing import Any

from drbode.config import CptConfig
from drbode.data.prompts import Renderer
from drbode.data.replay import TextSteps
from drbode.objectives.clm import clm_loss
from drbode.training.clm import CLMModule
from drbode.training.context import StageContext, Training, packed
from drbode.training.module import Sums
from drbode.trees import Batch


class CPTModule(CLMModule):
    """Also takes bits per byte of held-out text, which compare between tokenizers.

    They are the negative log2 of the probability of all predicted tokens over the UTF-8 bytes that
    these stand for, without the token that ends a document, as in what a run forgets.
    """

    validates_first = True

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

    def validation_step(self, batch: Batch, _index: int) -> None:
        logps = self.policy.logps(batch)
        self._held_out.add(Sums(clm_loss(logps)), self.units(batch))
        of_text = logps.double()[batch.targets != self.document_end]
        self._nats -= float(of_text.sum())

    def held_out_metrics(self) -> dict[str, float]:
        assert self.predicted_bytes is not None, "there is a validation"
        return {"bits_per_byte": self._nats / math.log(2) / self.predicted_bytes}


def build(context: StageContext[CptConfig]) -> Training:
    loader = TextSteps(context.train, context.config, context.run.seed)
    validation = context.validation
    module = CPTModule(
        document_end=Renderer(context.policy.tokenizer, context.policy.context).document_end,
        predicted_bytes=None if validation is None else validation.ledger.predicted_bytes,
        **context.module_options(len(loader)),
    )
    return Training(loader, module, packed(validation, context.config.max_tokens))
