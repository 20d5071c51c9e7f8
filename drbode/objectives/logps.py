"""Log-probabilities of tokens from hidden states, without `[tokens, vocabulary]` in memory."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

# Tokens of the vocabulary in a block: on a CPU what a cache holds, on a GPU what keeps it busy.
BLOCK = {"cpu": 1024, "cuda": 8192}


def token_logps(
    hidden: Float[Tensor, "tokens width"],
    head: Float[Tensor, "vocabulary width"],
    targets: Int[Tensor, " tokens"],
    bias: Float[Tensor, " vocabulary"] | None = None,
    *,
    scale: float = 1.0,
    cap: float | None = None,
) -> Float[Tensor, " tokens"]:
    """Log-probability (nats, fp32 or wider) of each target under softmax(hidden @ head.T + bias).

    Logits are multiplied by `scale`, then bounded softly: cap * tanh(logit / cap), as Gemma 2 has
    it.

    Works through the vocabulary in blocks, with all tokens in each, so that the head, which is
    large, is read once. The normaliser is kept as a running maximum and a sum relative to it, as in
    FlashAttention (Dao et al. 2022). With a frozen head and bias the gradient of a token's logp
    with respect to its hidden state, W[y] - sum_v p_v W[v], needs nothing that is known later than
    the forward pass, so it is stored there, `[tokens, width]`, and the backward pass multiplies;
    with a trained one the logits are computed a second time. Equals
    `log_softmax(logits).gather(targets)`.
    """
    if scale != 1.0:
        hidden = hidden * scale
        bias = None if bias is None else bias * scale
    logps: Tensor = _TokenLogps.apply(hidden, head, targets, bias, cap)  # type: ignore[no-untyped-call]
    return logps


def _blocks(head: Tensor) -> Iterator[slice]:
    """The vocabulary in parts."""
    size = BLOCK[head.device.type]
    for start in range(0, len(head), size):
        yield slice(start, min(start + size, len(head)))


def _within(targets: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """`[tokens, 1]` each: whether a target lies in the block, and where in it, or anywhere."""
    here = (targets >= block.start) & (targets < block.stop)
    return here[:, None], (targets - block.start).clamp(0, block.stop - block.start - 1)[:, None]


def _logits(hidden: Tensor, head: Tensor, bias: Tensor | None, block: slice) -> Tensor:
    rows = head[block].T
    logits = hidden @ rows if bias is None else torch.addmm(bias[block], hidden, rows)
    return logits.to(_wide(logits))


def _capped(logits: Tensor, cap: float | None) -> tuple[Tensor, Tensor | None]:
    """The logits under the cap, and their derivative by those without; None: it is 1."""
    if cap is None:
        return logits, None
    bounded = torch.tanh(logits / cap)
    return cap * bounded, 1 - bounded.square()


def _wide(tensor: Tensor) -> torch.dtype:
    """The precision of sums."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, whose precision may be lower than the sum's."""
    if b.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a.to(b.dtype) @ b)


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        targets: Tensor,
        bias: Tensor | None,
        cap: float | None,
    ) -> Tensor:
        if torch.is_autocast_enabled(hidden.device.type):
            lower = torch.get_autocast_dtype(hidden.device.type)
            hidden_used, head_used = hidden.to(lower), head.to(lower)
        else:
            hidden_used, head_used = hidden, head.to(hidden.dtype)
        bias_used = None if bias is None else bias.to(head_used.dtype)
        ctx.head_is_trained = ctx.needs_input_grad[1] or ctx.needs_input_grad[3]
        wide = _wide(hidden_used)
        store = ctx.needs_input_grad[0] and not ctx.head_is_trained
        direction = torch.zeros_like(hidden_used, dtype=wide) if store else None
        chosen = hidden.new_zeros(len(targets), 1, dtype=wide)
        total, largest = torch.zeros_like(chosen), torch.full_like(chosen, -torch.inf)
        slope_chosen = torch.ones_like(chosen)
        for block in _blocks(head):
            logits, slopes = _capped(_logits(hidden_used, head_used, bias_used, block), cap)
            here, at = _within(targets, block)
            chosen = torch.where(here, logits.gather(-1, at), chosen)
            if slopes is not None:
                slope_chosen = torch.where(here, slopes.gather(-1, at), slope_chosen)
            larger = torch.maximum(largest, logits.amax(-1, keepdim=True))
            # exp(logit - largest) serves the normaliser and the gradient, which is divided by the
            # sum afterwards; what was summed up so far is brought to the new maximum.
            weights = logits.sub_(larger).exp_()
            shrunk = (largest - larger).exp_()
            total = total * shrunk + weights.sum(-1, keepdim=True)
            if direction is not None:
                sloped = weights if slopes is None else weights * slopes
                _add_product(direction.mul_(shrunk), sloped, head_used[block])
            largest = larger
        normaliser = largest + total.log()
        ctx.hidden_dtype = hidden.dtype
        ctx.head_dtype = head.dtype
        ctx.cap = cap
        if direction is not None:
            rows = head_used[targets] if cap is None else head_used[targets] * slope_chosen
            direction.div_(-total).add_(rows)
        if ctx.head_is_trained:
            ctx.save_for_backward(hidden_used, head_used, targets, bias_used, normaliser)
        else:
            ctx.save_for_backward(None if direction is None else direction.to(hidden_used.dtype))
        return (chosen - normaliser).squeeze(-1)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, Tensor | None, None]:
        if not ctx.head_is_trained:
            (direction,) = ctx.saved_tensors
            scaled = direction * gradient[:, None].to(direction.dtype)
            return scaled.to(ctx.hidden_dtype), None, None, None, None
        hidden, head, targets, bias, normaliser = ctx.saved_tensors
        grad_hidden = torch.zeros_like(hidden, dtype=normaliser.dtype)
        grad_head = torch.empty_like(head)
        grad_bias = None if bias is None else torch.empty_like(bias)
        for block in _blocks(head):
            logits, slopes = _capped(_logits(hidden, head, bias, block), ctx.cap)
            delta = logits.sub_(normaliser).exp_().neg_()
            here, at = _within(targets, block)
            delta.scatter_add_(-1, at, here.to(delta.dtype))
            delta *= gradient[:, None]
            if slopes is not None:
                delta *= slopes
            if grad_bias is not None:
                grad_bias[block] = delta.sum(0)
            delta = delta.to(head.dtype)
            _add_product(grad_hidden, delta, head[block])
            torch.mm(delta.T, hidden, out=grad_head[block])
        if grad_bias is not None:
            grad_bias = grad_bias.to(ctx.head_dtype)
        return (
            grad_hidden.to(ctx.hidden_dtype),
            grad_head.to(ctx.head_dtype),
            None,
            grad_bias,
            None,
        )
