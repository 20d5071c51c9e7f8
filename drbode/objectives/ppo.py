"""Proximal policy optimisation of a policy against a reward model, near a reference.

Rollouts of different lengths lie one after the other without padding: `[tokens]`, with the number
of tokens of each in `lengths`. Every rollout has at least one token.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence, unpad_sequence


@dataclass(frozen=True)
class Rollouts:
    """What the rollouts of one iteration hold while the policy is optimised on them."""

    lengths: Int[Tensor, " rollouts"]  # in tokens
    scores: Float[Tensor, " rollouts"]  # of the reward model
    logps: Float[Tensor, " tokens"]  # under the policy that drew the tokens
    reference_logps: Float[Tensor, " tokens"]
    values: Float[Tensor, " tokens"]  # expected return, judged before the token was drawn
    rewards: Float[Tensor, " tokens"]
    advantages: Float[Tensor, " tokens"]  # whitened
    returns: Float[Tensor, " tokens"]  # what the values are trained towards


@torch.no_grad()
def assign_credit(
    lengths: Int[Tensor, " rollouts"],
    scores: Float[Tensor, " rollouts"],
    logps: Float[Tensor, " tokens"],
    reference_logps: Float[Tensor, " tokens"],
    values: Float[Tensor, " tokens"],
    *,
    beta: float,
    gamma: float,
    lam: float,
) -> Rollouts:
    """Shares each rollout's score and its distance to the reference out among its tokens."""
    rewards = shaped_rewards(scores, logps, reference_logps, lengths, beta)
    advantages, returns = gae(rewards, values, lengths, gamma, lam)
    return Rollouts(
        lengths=lengths,
        scores=scores,
        logps=logps,
        reference_logps=reference_logps,
        values=values,
        rewards=rewards,
        advantages=whiten(advantages),
        returns=returns,
    )


def shaped_rewards(
    scores: Float[Tensor, " rollouts"],
    logps: Float[Tensor, " tokens"],
    reference_logps: Float[Tensor, " tokens"],
    lengths: Int[Tensor, " rollouts"],
    beta: float,
) -> Float[Tensor, " tokens"]:
    """-beta (logp - reference logp) for each token, and the score on a rollout's last one.

    Summed over a rollout this is r(x, y) - beta log(policy / reference), chapter, equations 3.6
    and 3.7; Ziegler et al. 2019, equation 2; Ouyang et al. 2022 (InstructGPT), equation 2.
    """
    return (-beta * (logps - reference_logps)).index_add(0, _ends(lengths), scores)


def gae(
    rewards: Float[Tensor, " tokens"],
    values: Float[Tensor, " tokens"],
    lengths: Int[Tensor, " rollouts"],
    gamma: float,
    lam: float,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """Advantages and returns of each token by generalised advantage estimation.

    A_t = delta_t + gamma lam A_{t+1} with delta_t = r_t + gamma V_{t+1} - V_t, and A and V zero
    past a rollout's end; the return is A_t + V_t. Schulman et al. 2016, equation 16; Schulman et
    al. 2017, equations 11 and 12. With lam = 1 the return is the discounted sum of the rewards
    still to come, whatever the values are.
    """
    next_values = values.roll(-1).index_fill(0, _ends(lengths), 0.0)
    deltas = rewards + gamma * next_values - values
    advantages = pad_sequence(list(deltas.split(lengths.tolist())))  # [time, rollouts]
    for time in reversed(range(len(advantages) - 1)):
        advantages[time] += gamma * lam * advantages[time + 1]
    flat = torch.cat(unpad_sequence(advantages, lengths))
    return flat, flat + values


def whiten(advantages: Float[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
    """Shifted and scaled to mean 0 and variance 1 over all tokens given.

    The variance is the biased one with 1e-8 added, as in the code of Ziegler et al. 2019 (Huang et
    al. 2023, "The N implementation details of RLHF with PPO").
    """
    variance, mean = torch.var_mean(advantages, correction=0)
    return (advantages - mean) * torch.rsqrt(variance + 1e-8)


def clipped_policy_loss(
    logps: Float[Tensor, " tokens"],
    old_logps: Float[Tensor, " tokens"],
    advantages: Float[Tensor, " tokens"],
    epsilon: float,
) -> tuple[Float[Tensor, " tokens"], Bool[Tensor, " tokens"]]:
    """-min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon) A), and where the clip holds.

    The ratio is that of the token's probability now to when it was drawn. Schulman et al. 2017,
    equation 7. Where the clip holds the policy has gone far enough, and there is no gradient; where
    the ratio is 1 the gradient is -A, that of the plain policy gradient.
    """
    ratio = (logps - old_logps).exp()
    free = -advantages * ratio
    held = -advantages * ratio.clamp(1 - epsilon, 1 + epsilon)
    return torch.maximum(free, held), held > free


def clipped_value_loss(
    values: Float[Tensor, " tokens"],
    old_values: Float[Tensor, " tokens"],
    returns: Float[Tensor, " tokens"],
    epsilon: float,
) -> tuple[Float[Tensor, " tokens"], Bool[Tensor, " tokens"]]:
    """max((V - R)^2, (clip(V, old V - epsilon, old V + epsilon) - R)^2) / 2, and where it holds.

    In no paper's equations, but in the code of Schulman et al. 2017 and of Ziegler et al. 2019.
    """
    free = (values - returns) ** 2
    held = (old_values + (values - old_values).clamp(-epsilon, epsilon) - returns) ** 2
    return 0.5 * torch.maximum(free, held), held > free


def kl_k1(
    logps: Float[Tensor, " tokens"], reference_logps: Float[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """log(p / q): estimates KL(p || q) (nats) from tokens drawn from p; unbiased, of either sign.

    Schulman 2020, "Approximating KL divergence", k1.
    """
    return logps - reference_logps


def kl_k3(
    logps: Float[Tensor, " tokens"], reference_logps: Float[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """(q / p - 1) - log(q / p): as unbiased as k1, never negative, and mostly of less variance.

    Schulman 2020, "Approximating KL divergence", k3.
    """
    logratio = reference_logps - logps
    return logratio.expm1() - logratio


def adapted_beta(beta: float, kl: float, target: float, horizon: float, rollouts: int) -> float:
    """The KL penalty's weight for the next rollouts: raised while the KL is above its target.

    `kl` and `target` are a rollout's, summed over its tokens (nats); over `horizon` rollouts an
    error of 20 % or more changes beta by about a fifth. Ziegler et al. 2019, section 2.2, where
    rollouts / horizon is called K_beta.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * rollouts / horizon)


def _ends(lengths: Int[Tensor, " rollouts"]) -> Int[Tensor, " rollouts"]:
    """Index of each rollout's last token."""
    if (lengths < 1).any():  # its score would fall on the rollout before it
        raise ValueError(f"lengths: every rollout has at least one token, got {lengths.tolist()}")
    return lengths.cumsum(0) - 1
