"""Causal language modelling: the loss of continued pre-training and of supervised fine-tuning."""

from jaxtyping import Float
from torch import Tensor


def clm_loss(logps: Float[Tensor, " tokens"]) -> Float[Tensor, ""]:
    """Negative log-likelihood, summed over the supervised tokens (nats).

    A sum and no mean: the optimizer step divides once, by the supervised tokens of all its
    micro-batches, so that how rows are split into micro-batches changes nothing. Chapter, section
    3.2.1 (CLM) and 3.3 (SFT). A uniform guess over V tokens costs ln V a token.
    """
    return -logps.sum()
