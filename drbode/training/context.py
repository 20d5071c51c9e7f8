"""What a stage of training is given, and what it makes of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torch.utils.data import DataLoader

from drbode.config import STAGES, Stage, StageConfig, StageTraits, TrainerConfig
from drbode.data.splits import Split
from drbode.data.steps import Loader
from drbode.models.base import Policy
from drbode.models.heads import RewardModel
from drbode.models.machine import Machine
from drbode.training.module import TrainingModule
from drbode.trees import Batch, Tree, pack, within

Block = TypeVar("Block", bound=StageConfig)


@dataclass(frozen=True)
class RunContext:
    """What all stages of a run share."""

    seed: int
    machine: Machine
    trainer: TrainerConfig
    loggers: Sequence[Logger]
    end: int  # id of the token that ends an answer
    folder: Path  # of the run
    cache: Path  # folder of what other runs may use again
    base: Mapping[str, Tensor]  # the trainable tensors as the run began, where a stage needs them
    probe: Callable[[], float]  # the policy's accuracy on the benchmark, now
    reward: RewardModel | None  # that a stage of this run left, once it is done


@dataclass(frozen=True)
class StageContext(Generic[Block]):
    """What one stage is given: the policy, its block of the config, its rows, and the run."""

    policy: Policy
    stage: Stage
    config: Block
    train: Split
    validation: Split | None
    run: RunContext
    folder: Path  # of its checkpoints
    step_offset: int  # optimizer steps of the run's earlier stages

    @property
    def traits(self) -> StageTraits:
        return STAGES[self.stage]

    def module_options(self, steps: int) -> dict[str, Any]:
        """What every TrainingModule is made with; `steps` are optimizer steps."""
        return {
            "policy": self.policy,
            "stage": self.stage,
            "config": self.config,
            "steps": steps,
            "step_offset": self.step_offset,
            "machine": self.run.machine,
            "end": self.run.end,
        }


class Training(NamedTuple):
    """What a stage's `build(context)` returns: its steps, its objective, what it validates on."""

    loader: Loader
    module: TrainingModule
    held_out: DataLoader[Any] | None


def packed(split: Split | None, max_tokens: int) -> DataLoader[Any] | None:
    """Held-out rows in batches of at most `max_tokens`, in their order."""
    return None if split is None else in_order(_Packed(split.trees, max_tokens))


def in_order(batches: Sequence[Any]) -> DataLoader[Any]:
    """A loader that gives the batches as they are."""
    # A generator of its own: a DataLoader draws, though nothing is shuffled, and the training's
    # draws are not to depend on how often it is validated.
    return DataLoader(batches, batch_size=None, generator=torch.Generator())  # type: ignore[arg-type]


class _Packed(Sequence[Batch]):
    """Trees in batches, packed as they are come to: all at once may not fit into memory."""

    def __init__(self, trees: Sequence[Tree], max_tokens: int) -> None:
        self.trees = trees
        self.ends = list(accumulate(len(group) for group in within(trees, max_tokens)))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        return pack(self.trees[self.ends[index - 1] if index else 0 : self.ends[index]])
