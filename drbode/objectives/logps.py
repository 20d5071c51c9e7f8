"""Log-probabilities of tokens from hidden states, without `[tokens, vocabulary]` in memory."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_LOGITS = 1 << 23  # logits held at once, 32 MiB in fp32: fewer rows make slow matrix products


def token_logps(
    hidden: Float[Tensor, "tokens width"],
    head: Float[Tensor, "vocabulary width"],
    targets: Int[Tensor, " tokens"],
    bias: Float[Tensor, " vocabulary"] | None = None,
) -> Float[Tensor, " tokens"]:
    """Log-probability (nats, fp32 or wider) of each target under softmax(hidden @ head.T + bias).

    Works through the tokens in chunks. With a frozen head and bias the gradient of a token's logp
    with respect to its hidden state, W[y] - sum_v p_v W[v], needs nothing that is known later than
    the forward pass, so it is stored there, `[tokens, width]`, and the backward pass multiplies;
    with a trained one the logits are computed a second time. Equals
    `log_softmax(logits).gather(targets)`.
    """
    logps: Tensor = _TokenLogps.apply(hidden, head, targets, bias)  # type: ignore[no-untyped-call]
    return logps


def _chunk_rows(vocabulary: int) -> int:
    return max(16, CHUNK_LOGITS // vocabulary)


def _logits(hidden: Tensor, head: Tensor, bias: Tensor | None) -> Tensor:
    logits = hidden @ head.T if bias is None else torch.addmm(bias, hidden, head.T)
    return logits if logits.dtype == torch.float64 else logits.float()


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, bias: Tensor | None
    ) -> Tensor:
        if torch.is_autocast_enabled(hidden.device.type):
            lower = torch.get_autocast_dtype(hidden.device.type)
            hidden_used, head_used = hidden.to(lower), head.to(lower)
        else:
            hidden_used, head_used = hidden, head.to(hidden.dtype)
        bias_used = None if bias is None else bias.to(head_used.dtype)
        ctx.head_is_trained = ctx.needs_input_grad[1] or ctx.needs_input_grad[3]
        store = ctx.needs_input_grad[0] and not ctx.head_is_trained
        direction = torch.empty_like(hidden_used) if store else None
        pieces = []
        rows = _chunk_rows(head.shape[0])
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            logits = _logits(hidden_used[part], head_used, bias_used)
            chosen = logits.gather(-1, targets[part, None]).squeeze(-1)
            largest = logits.amax(-1)
            # exp(logit - largest), once for the normaliser and for the gradient: a pass over the
            # chunk less than logsumexp and softmax; the gradient is divided by the sum afterwards.
            weights = logits.sub_(largest[:, None]).exp_()
            total = weights.sum(-1)
            pieces.append(chosen - largest - total.log())
            if direction is not None:
                torch.mm(weights.to(head_used.dtype), head_used, out=direction[part])
                direction[part].div_(-total[:, None]).add_(head_used[targets[part]])
        ctx.hidden_dtype = hidden.dtype
        ctx.head_dtype = head.dtype
        if ctx.head_is_trained:
            ctx.save_for_backward(hidden_used, head_used, targets, bias_used)
        else:
            ctx.save_for_backward(direction)
        return torch.cat(pieces) if pieces else hidden.new_zeros(0, dtype=torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, Any]:
        if not ctx.head_is_trained:
            (direction,) = ctx.saved_tensors
            scaled = direction * gradient[:, None].to(direction.dtype)
            return scaled.to(ctx.hidden_dtype), None, None, None
        hidden, head, targets, bias = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        # Summed over the chunks in fp32, for a bf16 sum would lose the small ones.
        wide = torch.float64 if head.dtype == torch.float64 else torch.float32
        grad_head = torch.zeros(head.shape, dtype=wide, device=head.device)
        grad_bias = None if bias is None else grad_head.new_zeros(len(bias))
        rows = _chunk_rows(head.shape[0])
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            delta = _logits(hidden[part], head, bias).softmax(-1).neg_()
            delta[torch.arange(len(delta), device=delta.device), targets[part]] += 1
            delta *= gradient[part, None]
            if grad_bias is not None:
                grad_bias += delta.sum(0)
            delta = delta.to(head.dtype)
            torch.mm(delta, head, out=grad_hidden[part])
            if head.dtype == wide:
                grad_head.addmm_(delta.T, hidden[part])
            else:
                grad_head += delta.T @ hidden[part]
        if grad_bias is not None:
            grad_bias = grad_bias.to(ctx.head_dtype)
        return grad_hidden.to(ctx.hidden_dtype), grad_head.to(ctx.head_dtype), None, grad_bias
