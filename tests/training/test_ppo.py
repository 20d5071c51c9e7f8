"""The prompts of PPO's iterations, and how many optimizer steps they make."""

from dataclasses import replace

import pytest

from drbode.config import BadInput
from drbode.data.trees import Tree
from drbode.training.ppo import Prompts, updates
from tests.conftest import asked

TREES = [Tree([1, 2, n], []) for n in range(10)]
PPO = replace(asked().ppo, rollouts=4, global_batch_size=2, inner_epochs=3)


def test_every_iteration_is_whole_and_the_steps_are_those_asked_for() -> None:
    assert updates(PPO) == 6
    plan = Prompts(TREES, replace(PPO, steps=30), seed=0).plan
    assert len(plan) * updates(PPO) == 30
    assert all(len(set(indices)) == 4 for indices in plan)
    assert len(Prompts(TREES, replace(PPO, epochs=2.0), seed=0).plan) == 5
    assert len(Prompts(TREES, replace(PPO, tokens=13), seed=0).plan) == 2
    assert plan == Prompts(TREES, replace(PPO, steps=30), seed=0).plan
    assert plan != Prompts(TREES, replace(PPO, steps=30), seed=1).plan


def test_more_rollouts_than_prompts_are_refused() -> None:
    with pytest.raises(BadInput, match=r"ppo.rollouts: an iteration asks 11 prompts"):
        Prompts(TREES, replace(PPO, rollouts=11), seed=0)
