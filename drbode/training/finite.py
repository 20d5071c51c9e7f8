"""Losses, gradients and weights that are NaN or infinite stop a stage before anything is kept."""

from collections.abc import Iterable

import torch
from torch import Tensor

from drbode.config import BadInput, Stage
from drbode.models.base import Policy
from drbode.trees import Completion, Tree, pack


class FiniteWatch:
    """Remembers the first steps at which a loss and a gradient norm were not finite.

    They stay on the device, so that looking at every step makes nothing wait.
    """

    def __init__(self) -> None:
        self._first: Tensor | None = None  # steps of the loss and of the norm; 0: all were finite

    def add(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """`step` counts from 1."""
        finite = torch.isfinite(torch.stack([loss.detach().float(), norm.float()]))
        now = torch.where(finite, 0, step)
        self._first = now if self._first is None else torch.where(self._first > 0, self._first, now)

    def refuse(self, stage: Stage) -> None:
        """Raises BadInput where one was not finite; waits for the device."""
        loss, norm = (0, 0) if self._first is None else self._first.tolist()
        if loss and (not norm or loss <= norm):
            raise not_finite(stage, "the loss", loss, learned=loss > 1)
        if norm:
            raise not_finite(stage, "the gradient norm", norm, learned=norm > 1)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every element of the tensors of floating-point numbers is a finite number."""
    each = [torch.isfinite(tensor).all() for tensor in tensors if tensor.is_floating_point()]
    return not each or bool(torch.stack(each).all())


@torch.no_grad()
def computes_finite(policy: Policy, ids: list[int]) -> bool:
    """Whether a policy's weights and its hidden states of these tokens are finite numbers."""
    batch = pack([Tree([], [Completion(ids, [True] * len(ids))])]).to(policy.device)
    with policy.evaluating():
        return all_finite(policy.network.parameters()) and all_finite([policy.hidden(batch)])


def not_finite(stage: Stage, what: str, step: int, learned: bool = True) -> BadInput:
    """The error of a stage whose numbers are not finite; `learned`: after a step of its optimizer.

    Before the first step nothing but the weights that the stage began with, and what the method
    adds to them, can be the cause.
    """
    where = f"at step {step}" if step else "before the first step"
    remedy = (
        f"lower {stage}.learning_rate, or set or lower {stage}.max_grad_norm"
        if learned
        else "look for such numbers in the weights of model.path, and for a value that is too "
        "large in the settings of the method (such as lora.alpha) or of the stage's loss"
    )
    return BadInput(
        f"{stage}: {what} {where} is NaN or infinite, so the stage stops and is not kept; {remedy}"
    )
