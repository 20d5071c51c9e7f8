"""Rows as optimizer steps: which sequences a step is made of, and in which order."""

import math
import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from drbode.config import StageConfig
from drbode.trees import Tree, pack, within


@dataclass(frozen=True)
class Step:
    """What one optimizer step is made of: micro-batches, and the tokens its loss is divided by."""

    batches: list[Any]  # Batch, or what an objective makes of them
    rows: int
    tokens: int
    supervised: int

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Step":
        moved = [batch.to(device, non_blocking) for batch in self.batches]
        return Step(moved, self.rows, self.tokens, self.supervised)


class StepLoader:
    """Yields optimizer steps: `global_batch_size` sequences each, shuffled anew every epoch.

    A step never spans two epochs, so the last step of an epoch may be smaller. The order follows
    from the seed alone. `start` is the first step to yield, for a run that is continued.
    """

    def __init__(self, trees: Sequence[Tree], config: StageConfig, seed: int) -> None:
        self.trees = trees
        self.max_tokens = config.max_tokens
        self.start = 0
        self.plan = self._plan(config, seed)

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Step]:
        for number in range(self.start, len(self.plan)):
            trees = self.rows(number)
            yield Step(
                [pack(group) for group in within(trees, self.max_tokens)],
                rows=len(trees),
                tokens=sum(t.tokens for t in trees),
                supervised=sum(t.supervised for t in trees),
            )

    def rows(self, number: int) -> list[Tree]:
        """The trees of a step."""
        return [self.tree(i) for i in self.plan[number]]

    def tree(self, index: int) -> Tree:
        return self.trees[index]

    def tokens(self, index: int) -> int:
        """Of a tree."""
        return self.tree(index).tokens

    def orders(self, rows: float, seed: int) -> "Iterator[array[int]]":
        """The indices of the trees of each epoch, as many in all as `rows` of the stage ask."""
        return shuffled(len(self.trees), rows, seed)

    def state_dict(self) -> dict[str, int]:
        """Nothing of its own: what Lightning asks of a loader that can be continued."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """`start` was set before."""

    def _plan(self, config: StageConfig, seed: int) -> "list[array[int]]":
        """The indices of the sequences of every step of the stage."""
        size, tokens = config.global_batch_size, 0
        steps: list[array[int]] = []
        rows = math.inf
        if config.steps is None and config.tokens is None:
            rows = max(1, round(config.epochs * len(self.trees)))
        for order in self.orders(rows, seed):
            for at in range(0, len(order), size):
                steps.append(order[at : at + size])
                if len(steps) == config.steps:
                    return steps
                if config.tokens is not None:
                    tokens += sum(self.tokens(i) for i in steps[-1])
                    if tokens >= config.tokens:
                        return steps
        return steps


def shuffled(count: int, rows: float, seed: int | str) -> "Iterator[array[int]]":
    """So many indices as `rows`, every epoch of them in a new order, 4 bytes an index."""
    order = random.Random(seed)
    while rows > 0:
        indices = array("i", range(count))
        order.shuffle(indices)
        yield indices[: int(min(rows, count))]
        rows -= count
