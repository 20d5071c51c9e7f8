import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from drbode.objectives.ppo import (
    adapted_beta,
    assign_credit,
    clipped_policy_loss,
    clipped_value_loss,
    gae,
    kl_k1,
    kl_k3,
    shaped_rewards,
    whiten,
)

LENGTHS = torch.tensor([3, 1, 7, 2])
GAMMA, LAM = 0.9, 0.7


def tokens(*, seed: int = 5, trained: bool = False) -> Tensor:
    """A number for each token of the rollouts."""
    torch.manual_seed(seed)
    return torch.randn(int(LENGTHS.sum()), dtype=torch.float64, requires_grad=trained)


def rollouts(flat: Tensor) -> tuple[Tensor, ...]:
    return flat.split(LENGTHS.tolist())


def test_shaped_rewards_by_hand() -> None:
    # Rollouts of 2 and 1 tokens; log(p/q) is 1, -2 and 3, each times -0.5; the scores come last.
    found = shaped_rewards(
        scores=torch.tensor([10.0, 20.0]),
        logps=torch.tensor([-1.0, -3.0, -1.0]),
        reference_logps=torch.tensor([-2.0, -1.0, -4.0]),
        lengths=torch.tensor([2, 1]),
        beta=0.5,
    )
    assert found.tolist() == [-0.5, 11.0, 18.5]


def test_a_rollouts_rewards_sum_to_its_penalised_score() -> None:
    scores, logps, reference = torch.arange(4.0).double(), tokens(), tokens(seed=6)
    rewards = shaped_rewards(scores, logps, reference, LENGTHS, 0.3)
    found = torch.stack([part.sum() for part in rollouts(rewards)])
    kl = torch.stack([part.sum() for part in rollouts(logps - reference)])
    torch.testing.assert_close(found, scores - 0.3 * kl)


def test_a_rollout_without_tokens_is_refused() -> None:
    one = torch.zeros(1)
    with pytest.raises(ValueError, match="at least one token"):
        shaped_rewards(torch.ones(2), one, one, torch.tensor([1, 0]), 0.1)


def test_gae_by_hand() -> None:
    # Deltas 1 + 0.5 - 0.5 = 1 and 2 + 0 - 1 = 1 of the first rollout, 3 - 1 = 2 of the second;
    # the first advantage is 1 + 0.25, gamma lam being 0.25.
    advantages, returns = gae(
        rewards=torch.tensor([1.0, 2.0, 3.0]),
        values=torch.tensor([0.5, 1.0, 1.0]),
        lengths=torch.tensor([2, 1]),
        gamma=0.5,
        lam=0.5,
    )
    assert advantages.tolist() == [1.25, 1.0, 2.0]
    assert returns.tolist() == [1.75, 2.0, 3.0]


def plain_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Equation 16 of Schulman et al. 2016 as it stands, for one rollout."""
    ahead = [*values[1:], 0.0]
    deltas = [r + gamma * later - v for r, later, v in zip(rewards, ahead, values, strict=True)]
    return [
        sum((gamma * lam) ** (later - t) * deltas[later] for later in range(t, len(deltas)))
        for t in range(len(deltas))
    ]


@pytest.mark.parametrize(("gamma", "lam"), [(GAMMA, LAM), (1.0, 0.95), (1.0, 1.0), (0.9, 0.0)])
def test_gae_equals_plain_python(gamma: float, lam: float) -> None:
    rewards, values = tokens(), tokens(seed=6)
    advantages, returns = gae(rewards, values, LENGTHS, gamma, lam)
    expected: list[float] = []
    for reward, value in zip(rollouts(rewards), rollouts(values), strict=True):
        expected += plain_gae(reward.tolist(), value.tolist(), gamma, lam)
    torch.testing.assert_close(advantages, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(returns, advantages + values)


def test_with_lam_1_the_return_is_the_discounted_sum_of_rewards() -> None:
    rewards = tokens()
    _, returns = gae(rewards, tokens(seed=6), LENGTHS, GAMMA, 1.0)
    for found, part in zip(rollouts(returns), rollouts(rewards), strict=True):
        discounts = GAMMA ** torch.arange(len(part), dtype=torch.float64)
        torch.testing.assert_close(found[0], (discounts * part).sum())


def test_a_rollout_does_not_see_its_neighbours() -> None:
    rewards, values = tokens(), tokens(seed=6)
    together, _ = gae(rewards, values, LENGTHS, GAMMA, LAM)
    for found, reward, value in zip(*map(rollouts, (together, rewards, values)), strict=True):
        alone, _ = gae(reward, value, torch.tensor([len(reward)]), GAMMA, LAM)
        assert torch.equal(found, alone)


def test_whitened_by_hand() -> None:
    # Mean 3, biased variance 4; a shift and a scale of all change nothing.
    found = whiten(torch.tensor([1.0, 5.0, 5.0, 1.0]))
    torch.testing.assert_close(found, torch.tensor([-1.0, 1.0, 1.0, -1.0]))
    advantages = tokens()
    torch.testing.assert_close(whiten(3 * advantages + 2), whiten(advantages))
    assert not whiten(torch.full((3,), 2.0)).any()


def test_credit_is_composed_of_its_parts() -> None:
    scores, logps = torch.arange(4.0).double(), tokens(trained=True)
    reference, values = tokens(seed=6), tokens(seed=7)
    found = assign_credit(LENGTHS, scores, logps, reference, values, beta=0.3, gamma=GAMMA, lam=LAM)
    rewards = shaped_rewards(scores, logps, reference, LENGTHS, 0.3)
    advantages, returns = gae(rewards, values, LENGTHS, GAMMA, LAM)
    assert torch.equal(found.rewards, rewards)
    assert torch.equal(found.returns, returns)
    assert torch.equal(found.advantages, whiten(advantages))
    assert not found.advantages.requires_grad
    assert not found.returns.requires_grad


# Ratio, advantage, loss and whether the clip at 0.2 holds.
POLICY_CASES = [
    (1.5, 1.0, -1.2, True),  # far enough up
    (1.5, -1.0, 1.5, False),  # up, though it should go down
    (0.5, 1.0, -0.5, False),  # down, though it should go up
    (0.5, -1.0, 0.8, True),  # far enough down
    (1.1, 2.0, -2.2, False),
    (0.9, -2.0, 1.8, False),
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "clipped"), POLICY_CASES)
def test_the_policy_loss_by_hand(
    ratio: float, advantage: float, loss: float, clipped: bool
) -> None:
    logps = torch.tensor([math.log(ratio) - 3], requires_grad=True)
    found, held = clipped_policy_loss(logps, torch.tensor([-3.0]), torch.tensor([advantage]), 0.2)
    torch.testing.assert_close(found, torch.tensor([loss]))
    assert held.tolist() == [clipped]
    (gradient,) = torch.autograd.grad(found, logps)
    # d ratio / d logp is the ratio; none where the clip holds.
    torch.testing.assert_close(gradient, torch.tensor([0.0 if clipped else -advantage * ratio]))


def test_the_first_gradient_is_that_of_the_plain_policy_gradient() -> None:
    logps, advantages = tokens(trained=True), tokens(seed=6)
    loss, clipped = clipped_policy_loss(logps, logps.detach(), advantages, 0.2)
    (gradient,) = torch.autograd.grad(loss.sum(), logps)
    torch.testing.assert_close(gradient, -advantages)
    assert not clipped.any()


@pytest.mark.parametrize(
    ("value", "loss", "clipped"),
    [
        # The old value is 1, epsilon 0.5, the return 3.
        (1.2, 1.62, False),  # 1.8^2 / 2
        (2.0, 1.125, True),  # held at 1.5, 1.5^2 / 2, for that is the larger error
        (0.0, 4.5, False),  # held at 0.5 the error would be the smaller
    ],
)
def test_the_value_loss_by_hand(value: float, loss: float, clipped: bool) -> None:
    values = torch.tensor([value], requires_grad=True)
    found, held = clipped_value_loss(values, torch.tensor([1.0]), torch.tensor([3.0]), 0.5)
    torch.testing.assert_close(found, torch.tensor([loss]))
    assert held.tolist() == [clipped]
    (gradient,) = torch.autograd.grad(found, values)
    torch.testing.assert_close(gradient, torch.tensor([0.0 if clipped else value - 3]))


def test_losses_equal_plain_python() -> None:
    new, old, weights, epsilon = tokens(), tokens(seed=6), tokens(seed=7), 0.3
    policy, policy_clipped = clipped_policy_loss(new, old, weights, epsilon)
    value, value_clipped = clipped_value_loss(new, old, weights, epsilon)
    held = 0
    for i, (n, o, w) in enumerate(zip(new.tolist(), old.tolist(), weights.tolist(), strict=True)):
        ratio = math.exp(n) / math.exp(o)
        bounded = min(max(ratio, 1 - epsilon), 1 + epsilon)
        assert float(policy[i]) == pytest.approx(-min(ratio * w, bounded * w))
        assert bool(policy_clipped[i]) == (bounded * w < ratio * w)
        near = min(max(n, o - epsilon), o + epsilon)
        assert float(value[i]) == pytest.approx(max((n - w) ** 2, (near - w) ** 2) / 2)
        assert bool(value_clipped[i]) == (abs(near - w) > abs(n - w))
        held += bool(policy_clipped[i]) + bool(value_clipped[i])
    assert 0 < held < 2 * len(new)


@pytest.mark.parametrize("loss", [clipped_policy_loss, clipped_value_loss])
def test_gradcheck_in_float64(loss: Callable[..., tuple[Tensor, Tensor]]) -> None:
    new = tokens(trained=True)
    assert torch.autograd.gradcheck(lambda n: loss(n, tokens(seed=6), tokens(seed=7), 0.3)[0], new)


@pytest.mark.parametrize("estimator", [kl_k1, kl_k3])
def test_kl_estimators_have_the_kl_as_their_mean(
    estimator: Callable[[Tensor, Tensor], Tensor],
) -> None:
    p = torch.tensor([0.5, 0.3, 0.2])
    q = torch.tensor([0.2, 0.2, 0.6])
    exact = 0.5 * math.log(0.5 / 0.2) + 0.3 * math.log(0.3 / 0.2) + 0.2 * math.log(0.2 / 0.6)
    found = estimator(p.log(), q.log())
    assert float((p * found).sum()) == pytest.approx(exact)
    assert bool((found < 0).any()) == (estimator is kl_k1)
    assert not estimator(p.log(), p.log()).any()


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.2),
        (6.6, 0.201),  # error 0.1, of which a twentieth
        (60.0, 0.202),  # held at 0.2
        (0.0, 0.198),
    ],
)
def test_adapted_beta_by_hand(kl: float, expected: float) -> None:
    found = adapted_beta(0.2, kl, target=6.0, horizon=10_000.0, rollouts=500)
    assert found == pytest.approx(expected)
