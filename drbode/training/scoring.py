"""What scores the answers of stage `ppo`: a reward model or a function of the user's."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from drbode.config import OWN_REWARD, BadInput, is_function, load_function
from drbode.models.base import Policy
from drbode.models.heads import RewardModel, load_reward_model
from drbode.training.rollouts import Answers
from drbode.trees import pack, within

Score = Callable[[Sequence[str], Sequence[str]], Sequence[float]]  # of prompts and answers


def score_of(reward: str, policy: Policy, of_run: RewardModel | None) -> RewardModel | Score:
    """What rollouts are scored by: the run's reward model, one in a folder, or a function.

    A function is called with a list of prompts, as the model sees them, and a list of answers.
    Raises BadInput where it is not to be had.
    """
    if reward == OWN_REWARD:
        assert of_run is not None, "one of the rules"
        return of_run
    if is_function(reward):
        expected = "reward, a folder that a stage reward left, or module:function"
        return load_function(reward, "ppo.reward", expected)
    return load_reward_model(policy, Path(reward), "ppo.reward")


@torch.no_grad()
def scores(
    reward: RewardModel | Score, policy: Policy, answers: Answers, max_tokens: int
) -> Tensor:
    """A score for each answer, on the policy's device. Raises BadInput for what is no score."""
    if isinstance(reward, RewardModel):
        groups = within(answers.trees, max_tokens)
        each = [reward.scores(policy, pack(group).to(policy.device)) for group in groups]
        return torch.cat(each).float()
    prompts = [policy.tokenizer.decode(tree.prompt) for tree in answers.trees]
    return _checked(reward(prompts, answers.texts), len(prompts)).to(policy.device)


def _checked(each: Sequence[float], answers: int) -> Tensor:
    total = torch.as_tensor(each, dtype=torch.float32)
    if total.shape != (answers,) or not torch.isfinite(total).all():
        raise BadInput(
            f"ppo.reward: the function gave {list(total.shape)} scores for {answers} answers, or "
            "one that is no number; expected a finite number for each"
        )
    return total
