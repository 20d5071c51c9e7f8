"""Direct preference optimisation: losses on how much more the policy prefers the chosen one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid, relu


@dataclass(frozen=True)
class Pairs:
    """Logps of chosen and rejected completions under policy and reference, summed (nats).

    Without a reference its logps are 0, so that a logratio is the policy's logp.
    """

    policy_chosen: Float[Tensor, " pairs"]
    policy_rejected: Float[Tensor, " pairs"]
    reference_chosen: Float[Tensor, " pairs"]
    reference_rejected: Float[Tensor, " pairs"]
    chosen_tokens: Int[Tensor, " pairs"]  # that the logps were summed over
    rejected_tokens: Int[Tensor, " pairs"]

    @property
    def logratio_chosen(self) -> Float[Tensor, " pairs"]:
        return self.policy_chosen - self.reference_chosen

    @property
    def logratio_rejected(self) -> Float[Tensor, " pairs"]:
        return self.policy_rejected - self.reference_rejected

    @property
    def margin(self) -> Float[Tensor, " pairs"]:
        """How much further the policy moved towards the chosen completion (nats)."""
        return self.logratio_chosen - self.logratio_rejected

    @property
    def mean_margin(self) -> Float[Tensor, " pairs"]:
        """The margin of logratios averaged over each completion's tokens (nats a token)."""
        chosen = self.logratio_chosen / self.chosen_tokens
        rejected = self.logratio_rejected / self.rejected_tokens
        return chosen - rejected

    def flipped(self) -> "Pairs":
        """The same pairs with the rejected completion as the chosen one."""
        return Pairs(
            policy_chosen=self.policy_rejected,
            policy_rejected=self.policy_chosen,
            reference_chosen=self.reference_rejected,
            reference_rejected=self.reference_chosen,
            chosen_tokens=self.rejected_tokens,
            rejected_tokens=self.chosen_tokens,
        )


Loss = Callable[..., Float[Tensor, " pairs"]]  # of pairs, beta and a loss's options


def dpo_loss(
    loss: Loss,
    pairs: Pairs,
    beta: float,
    label_smoothing: float = 0.0,
    options: Mapping[str, float] = MappingProxyType({}),
) -> Float[Tensor, " pairs"]:
    """The value of a loss, one of those below or of the same form, for each pair.

    `label_smoothing`, in [0, 0.5), is the probability that a pair's label is flipped: the loss is
    its expectation over the flip. With `sigmoid_loss` this is conservative DPO (Mitchell 2023, "A
    note on DPO with noisy preferences"), least where sigmoid(beta margin) = 1 - label_smoothing;
    with `ipo_loss` it is how that paper treats uncertain preferences, least where
    mean margin = (1 - 2 label_smoothing) / (2 beta).
    """
    stated = loss(pairs, beta, **options)
    if not label_smoothing:
        return stated
    flipped = loss(pairs.flipped(), beta, **options)
    return (1 - label_smoothing) * stated + label_smoothing * flipped


def sigmoid_loss(pairs: Pairs, beta: float) -> Float[Tensor, " pairs"]:
    """-log sigmoid(beta margin).

    Rafailov et al. 2023, equation 7: the Bradley-Terry likelihood with beta x logratio as the
    implicit reward. Equals ln 2 when the policy is the reference, where its gradient with respect
    to the chosen logps is -beta / 2.
    """
    return -logsigmoid(beta * pairs.margin)


def reference_free_loss(pairs: Pairs, beta: float) -> Float[Tensor, " pairs"]:
    """-log sigmoid(beta (policy chosen - policy rejected)).

    Equation 3.9 of the chapter as it is printed: the logistic loss on the policy alone.
    """
    return -logsigmoid(beta * (pairs.policy_chosen - pairs.policy_rejected))


def simpo_loss(pairs: Pairs, beta: float, gamma: float = 0.5) -> Float[Tensor, " pairs"]:
    """-log sigmoid(beta (mean logp chosen - mean logp rejected) - gamma), of the policy alone.

    SimPO (Meng et al. 2024, equation 6): the mean over a completion's tokens is its implicit
    reward, and `gamma` the margin that the chosen one is to win by. Their beta lies between 2 and
    10, for a mean logp is far smaller than a sum. Equals -log sigmoid(-gamma) where the policy
    finds both as probable.
    """
    chosen = pairs.policy_chosen / pairs.chosen_tokens
    rejected = pairs.policy_rejected / pairs.rejected_tokens
    return -logsigmoid(beta * (chosen - rejected) - gamma)


def ipo_loss(pairs: Pairs, beta: float) -> Float[Tensor, " pairs"]:
    """(mean margin - 1 / (2 beta))^2.

    Azar et al. 2023, equation 17, where beta is called tau. The paper writes logratios of whole
    completions; its authors confirmed to trl that their results were got with averages over the
    tokens, as here. Equals 1 / (4 beta^2) when the policy is the reference.
    """
    return (pairs.mean_margin - 1 / (2 * beta)) ** 2


def hinge_loss(pairs: Pairs, beta: float) -> Float[Tensor, " pairs"]:
    """max(0, 1 - beta margin).

    SLiC (Zhao et al. 2023, equation 1) on logratios, as Liu et al. 2024 (RSO) norm it; 1 / beta is
    SLiC's margin delta. Equals 1 when the policy is the reference.
    """
    return relu(1 - beta * pairs.margin)


def mean_nll(
    logps: Float[Tensor, " completions"], tokens: Int[Tensor, " completions"]
) -> Float[Tensor, " completions"]:
    """Negative log-likelihood of a completion, averaged over its tokens (nats a token).

    Added with a weight on the chosen completions it keeps their probability from falling together
    with that of the rejected ones: Pang et al. 2024 (iterative RPO), equation 1.
    """
    return -logps / tokens


@dataclass(frozen=True)
class PairMetrics:
    """What is watched of each pair; without gradient."""

    reward_chosen: Float[Tensor, " pairs"]  # implicit reward, beta x logratio
    reward_rejected: Float[Tensor, " pairs"]
    reward_margin: Float[Tensor, " pairs"]
    reward_accuracy: Bool[Tensor, " pairs"]  # the chosen one's reward is the higher
    logp_accuracy: Bool[Tensor, " pairs"]  # the chosen one is the more probable
    logps_chosen: Float[Tensor, " pairs"]  # of the policy
    logps_rejected: Float[Tensor, " pairs"]


def pair_metrics(pairs: Pairs, beta: float) -> PairMetrics:
    """Implicit rewards and accuracies of each pair.

    A tie is no hit: while the policy is the reference every margin and the reward accuracy are 0.
    """
    chosen, rejected = pairs.policy_chosen.detach(), pairs.policy_rejected.detach()
    reward_chosen = beta * pairs.logratio_chosen.detach()
    reward_rejected = beta * pairs.logratio_rejected.detach()
    return PairMetrics(
        reward_chosen=reward_chosen,
        reward_rejected=reward_rejected,
        reward_margin=reward_chosen - reward_rejected,
        reward_accuracy=reward_chosen > reward_rejected,
        logp_accuracy=chosen > rejected,
        logps_chosen=chosen,
        logps_rejected=rejected,
    )
