"""The reward model: scores whose differences say which completion people prefer."""

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry_loss(
    chosen: Float[Tensor, " pairs"], rejected: Float[Tensor, " pairs"], centring: float = 0.0
) -> Float[Tensor, " pairs"]:
    """-log sigmoid(chosen - rejected) + centring (chosen + rejected)^2, of each pair's scores.

    Chapter, equation 3.5, the negative log-likelihood of the Bradley-Terry model (equation 3.4).
    It leaves the scores' common level free; the second term draws it to zero (Eisenstein et al.
    2023, "Helping or herding?", equation 2, who take 0.01). Equals ln 2 when both scores are zero.
    """
    return -logsigmoid(chosen - rejected) + centring * (chosen + rejected) ** 2


def preference_probability(
    chosen: Float[Tensor, " pairs"], rejected: Float[Tensor, " pairs"]
) -> Float[Tensor, " pairs"]:
    """sigmoid(chosen - rejected): the probability given to the preference that was observed.

    Bradley-Terry, chapter, equation 3.4. Held against how often it comes true, it says whether the
    model is calibrated.
    """
    return (chosen - rejected).sigmoid()


def preference_accuracy(
    chosen: Float[Tensor, " pairs"], rejected: Float[Tensor, " pairs"]
) -> Bool[Tensor, " pairs"]:
    """Whether the chosen completion has the higher score; a tie is no hit."""
    return chosen > rejected
