"""Stage `mlm`: masked language modelling of an encoder, with next sentence prediction."""

import math
from typing import Any

from drbode.config import MlmConfig
from drbode.data.masking import MaskedBatch, MaskedSteps, held_out_batches, masker, plain
from drbode.models.heads import next_sentence_logits
from drbode.models.pseudo import pseudo_logps
from drbode.objectives.mlm import mlm_loss, nsp_loss
from drbode.training.context import StageContext, Training, in_order
from drbode.training.module import Sums, TrainingModule


class MLMModule(TrainingModule):
    """Minimises the mean loss of the masked tokens, with `nsp` plus the mean loss of the pairs."""

    config: MlmConfig

    def __init__(self, *common: Any, texts: list[list[int]], **named: Any) -> None:
        """`texts` are held-out rows whose pseudo-perplexity is taken at each validation."""
        super().__init__(*common, **named)
        self.texts = texts

    def units(self, masked: MaskedBatch) -> int:
        return len(masked.batch.targets)

    def sums(self, masked: MaskedBatch) -> Sums:
        batch = masked.batch
        hidden = self.policy.hidden(batch, segments=masked.segments)
        mlm = mlm_loss(self.policy.predicted(hidden[batch.sources], batch.targets))
        if not self.config.nsp:
            return Sums(mlm)
        logits = next_sentence_logits(self.policy, hidden[masked.firsts])
        # A step divides by its masked tokens: so weighted, the mean of the pairs comes out.
        nsp = masked.pair_weight * nsp_loss(logits, masked.follows)
        right = masked.pair_weight * (logits.argmax(-1) == masked.follows).float().sum()
        return Sums(mlm + nsp, {"mlm": mlm, "nsp": nsp, "nsp_accuracy": right})

    def held_out_metrics(self) -> dict[str, float]:
        """exp of the mean negative logp of each token of the texts given all the others."""
        if not self.texts:
            return {}
        scored = [(ids, range(1, len(ids) - 1)) for ids in self.texts]
        with self.machine.autocast():
            scores = pseudo_logps(self.policy, scored, self.config.max_tokens)
        logps = [logp for of_text in scores for logp in of_text]
        return {"pseudo_perplexity": math.exp(-sum(logps) / len(logps))}


def build(context: StageContext[MlmConfig]) -> Training:
    config, seed = context.config, context.run.seed
    masks = masker(context.policy.tokenizer, config)
    loader = MaskedSteps(context.train.trees, config, seed, masks)
    rows = [] if context.validation is None else context.validation.trees
    texts = [plain(tree) for tree in rows[: config.pseudo_perplexity_rows]]
    module = MLMModule(texts=texts, **context.module_options(len(loader)))
    if not rows:
        return Training(loader, module, None)
    batches = held_out_batches(rows, config.max_tokens, masks, seed)
    return Training(loader, module, in_order(batches))
