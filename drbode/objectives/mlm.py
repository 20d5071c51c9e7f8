"""Masked language modelling and next sentence prediction: masks, and losses."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

REPLACED, DRAWN = 0.8, 0.1  # shares of the chosen tokens: by the mask token, by a random one


class Masked(NamedTuple):
    """Tokens with some of them corrupted, and the places of those that are to be predicted."""

    ids: Int[Tensor, " tokens"]
    chosen: Int[Tensor, " chosen"]


def mask_tokens(
    ids: Int[Tensor, " tokens"],
    units: Int[Tensor, " tokens"],
    probability: float,
    mask: int,
    ordinary: Int[Tensor, " vocabulary"],
    generator: torch.Generator,
) -> Masked:
    """Chooses units of a sequence and corrupts their tokens (Devlin et al. 2019, section 3.1).

    `units` numbers from 0 what is chosen as a whole, a token or a word; -1 is never chosen. Of n
    units n x `probability` are, rounded up or down at random so that this is their mean, and one at
    least. A token is replaced by `mask` (80 %), by one of the `ordinary` ids (10 %), or stays.
    Raises ValueError where there is nothing to choose.
    """
    count = int(units.max()) + 1
    if count < 1:
        raise ValueError("the sequence has no token that may be masked")
    wanted = max(1, int(count * probability + float(torch.rand((), generator=generator))))
    picked = torch.zeros(count + 1, dtype=torch.bool)  # the last one stands for -1
    picked[torch.randperm(count, generator=generator)[:wanted]] = True
    chosen = picked[units].nonzero().squeeze(1)
    draws = torch.rand(len(chosen), generator=generator)
    drawn = torch.randint(len(ordinary), (len(chosen),), generator=generator)
    corrupted = ids.clone()
    replaced = draws < REPLACED
    random = ~replaced & (draws < REPLACED + DRAWN)
    corrupted[chosen[replaced]] = mask
    corrupted[chosen[random]] = ordinary[drawn[random]]
    return Masked(corrupted, chosen)


def mlm_loss(logps: Float[Tensor, " chosen"]) -> Float[Tensor, ""]:
    """Negative log-likelihood of the chosen tokens, summed (nats).

    Chapter, section 3.2.1: the loss of the corrupted positions alone. A uniform guess over V tokens
    costs ln V a token.
    """
    return -logps.sum()


def nsp_loss(logits: Float[Tensor, "pairs 2"], labels: Int[Tensor, " pairs"]) -> Float[Tensor, ""]:
    """Cross entropy of whether the second part follows the first, summed (nats).

    0: it follows, 1: it is another document's, as in BERT. ln 2 a pair where nothing is known.
    """
    return cross_entropy(logits, labels, reduction="sum")
