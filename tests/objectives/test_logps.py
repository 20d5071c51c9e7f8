import math

import pytest
import torch

from drbode.objectives import logps as module
from drbode.objectives.clm import clm_loss
from drbode.objectives.logps import token_logps


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vocabulary of 11 in blocks of 4, 4 and 3."""
    monkeypatch.setattr(module, "BLOCK", {"cpu": 4})


def case(tokens: int = 37, trained_head: bool = False, bias: bool = False) -> list[torch.Tensor]:
    torch.manual_seed(1)
    hidden = torch.randn(tokens, 6, dtype=torch.float64, requires_grad=True)
    head = torch.randn(11, 6, dtype=torch.float64, requires_grad=trained_head)
    targets = torch.randint(11, (tokens,))
    offset = torch.randn(11, dtype=torch.float64, requires_grad=trained_head) if bias else None
    return [hidden, head, targets, offset]


def test_by_hand() -> None:
    # Logits 0 and ln 3, so probabilities 1/4 and 3/4.
    hidden = torch.tensor([[1.0], [1.0]])
    head = torch.tensor([[0.0], [math.log(3)]])
    found = token_logps(hidden, head, torch.tensor([0, 1]))
    torch.testing.assert_close(found, torch.tensor([math.log(1 / 4), math.log(3 / 4)]))
    torch.testing.assert_close(clm_loss(found), torch.tensor(math.log(16 / 3)))


def test_a_uniform_guess_costs_ln_v_a_token() -> None:
    logps = token_logps(torch.zeros(5, 3), torch.randn(8, 3), torch.arange(5))
    torch.testing.assert_close(clm_loss(logps) / 5, torch.tensor(math.log(8)))


@pytest.mark.parametrize("trained_head", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_log_softmax_with_its_gradients(trained_head: bool, bias: bool) -> None:
    hidden, head, targets, offset = case(trained_head=trained_head, bias=bias)
    weights = torch.randn(len(targets), dtype=torch.float64)
    leaves = [t for t in (hidden, head, offset) if t is not None and t.requires_grad]

    logits = hidden @ head.T + (0 if offset is None else offset)
    expected = logits.log_softmax(-1)[torch.arange(len(targets)), targets]
    found = token_logps(hidden, head, targets, offset)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad((found * weights).sum(), leaves),
        torch.autograd.grad((expected * weights).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("trained_head", [False, True])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.3, None), (1.0, 1.5), (2.0, 0.7)])
def test_gradcheck_in_float64(trained_head: bool, scale: float, cap: float | None) -> None:
    hidden, head, targets, offset = case(tokens=19, trained_head=trained_head, bias=True)
    assert torch.autograd.gradcheck(
        lambda *tensors: token_logps(*tensors, scale=scale, cap=cap),
        (hidden, head, targets, offset),
    )


@pytest.mark.parametrize("bias", [False, True])
def test_logits_are_scaled_and_then_capped(bias: bool) -> None:
    hidden, head, targets, offset = case(bias=bias)
    logits = 2.5 * (hidden @ head.T + (0 if offset is None else offset))
    expected = (3 * torch.tanh(logits / 3)).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    assert logits.abs().max() > 3
    torch.testing.assert_close(
        token_logps(hidden, head, targets, offset, scale=2.5, cap=3.0), expected
    )


def test_bf16_stays_near_fp32() -> None:
    hidden, head, targets, _ = (None if t is None else t.detach() for t in case())
    wide = token_logps(hidden.float(), head.float(), targets)
    narrow = token_logps(hidden.bfloat16(), head.bfloat16(), targets)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow, wide, atol=0.1, rtol=0)


@pytest.mark.parametrize("trained_head", [False, True])
def test_autocast_computes_in_bf16_and_gives_gradients_in_fp32(trained_head: bool) -> None:
    hidden, head, targets, _ = case(trained_head=trained_head)
    leaves = [t.detach().float().requires_grad_(t.requires_grad) for t in (hidden, head)]
    gradients = []
    for enabled in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found = token_logps(*leaves, targets)
        wanted = [t for t in leaves if t.requires_grad]
        gradients.append(torch.autograd.grad(found.sum(), wanted))
    for narrow, wide in zip(*gradients, strict=True):
        assert narrow.dtype == torch.float32
        assert not torch.equal(narrow, wide)
        torch.testing.assert_close(narrow, wide, atol=0.3, rtol=0.1)


def test_no_tokens_no_logps() -> None:
    assert token_logps(torch.zeros(0, 6), torch.zeros(11, 6), torch.zeros(0).long()).shape == (0,)
