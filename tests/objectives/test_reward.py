import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from trl import RewardTrainer

from drbode.objectives.reward import (
    bradley_terry_loss,
    preference_accuracy,
    preference_probability,
)


def scores(count: int = 5, trained: bool = False) -> list[Tensor]:
    torch.manual_seed(4)
    return [torch.randn(count, dtype=torch.float64, requires_grad=trained) for _ in range(2)]


def test_by_hand() -> None:
    # The difference is ln 3, so the probabilities are 3/4 and, the other way round, 1/4.
    chosen, rejected = torch.tensor([math.log(6), 0.0]), torch.tensor([math.log(2), math.log(3)])
    probability = preference_probability(chosen, rejected)
    torch.testing.assert_close(probability, torch.tensor([3 / 4, 1 / 4]))
    loss = bradley_terry_loss(chosen, rejected)
    torch.testing.assert_close(loss, torch.tensor([math.log(4 / 3), math.log(4)]))
    centred = bradley_terry_loss(chosen, rejected, centring=0.5)  # sums ln 12 and ln 3
    added = torch.tensor([0.5 * math.log(12) ** 2, 0.5 * math.log(3) ** 2])
    torch.testing.assert_close(centred, loss + added)
    assert preference_accuracy(chosen, rejected).tolist() == [True, False]


def test_equal_scores_cost_ln_2_and_are_no_hit() -> None:
    score = torch.zeros(1)
    torch.testing.assert_close(bradley_terry_loss(score, score, 0.01), torch.tensor([math.log(2)]))
    assert not preference_accuracy(score, score)


def test_centring_alone_sees_the_level_of_the_scores() -> None:
    chosen, rejected = scores()
    loss = bradley_terry_loss(chosen, rejected)
    torch.testing.assert_close(bradley_terry_loss(chosen + 3, rejected + 3), loss)
    level = torch.zeros((), dtype=torch.float64, requires_grad=True)
    raised = bradley_terry_loss(chosen + 3 + level, rejected + 3 + level, centring=0.01)
    (gradient,) = torch.autograd.grad(raised.sum(), level)
    assert gradient > 0  # a step lowers the level


def test_a_step_raises_the_chosen_and_lowers_the_rejected() -> None:
    chosen, rejected = scores(trained=True)
    bradley_terry_loss(chosen, rejected).sum().backward()
    assert (chosen.grad < 0).all()
    torch.testing.assert_close(rejected.grad, -chosen.grad)


def test_gradcheck_in_float64() -> None:
    chosen, rejected = scores(trained=True)
    assert torch.autograd.gradcheck(
        lambda c, r: bradley_terry_loss(c, r, centring=0.1), (chosen, rejected)
    )


@pytest.mark.parametrize("centring", [None, 0.01])
def test_equals_trl(centring: float | None) -> None:
    chosen, rejected = scores(trained=True)
    logits = torch.cat([chosen, rejected])[:, None]
    metrics: dict[str, list[float]] = defaultdict(list)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(gather=Tensor.detach, gather_for_metrics=Tensor.detach),
        args=SimpleNamespace(center_rewards_coefficient=centring),
        _metrics={"train": metrics},
        _total_train_tokens=0,
        _tp_size=1,
    )
    theirs = RewardTrainer.compute_loss(
        trainer, lambda **_: SimpleNamespace(logits=logits), {"attention_mask": torch.ones(10, 3)}
    )
    ours = bradley_terry_loss(chosen, rejected, centring or 0.0).mean()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (chosen, rejected)),
        torch.autograd.grad(theirs, (chosen, rejected)),
    )
    hits = preference_accuracy(chosen, rejected).double()
    assert metrics["accuracy"] == [pytest.approx(float(hits.mean()))]
