"""Rows as optimizer steps: which sequences a step is made of, and in which order."""

import math
import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
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


class Loader:
    """Yields the optimizer steps of a plan. `start` is the first one, for a run that goes on."""

    def __init__(self, trees: Sequence[Tree], plan: "list[array[int]]", max_tokens: int) -> None:
        self.trees = trees
        self.plan = plan
        self.max_tokens = max_tokens
        self.start = 0

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Any]:
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
        return [self.trees[i] for i in self.plan[number]]

    def state_dict(self) -> dict[str, int]:
        """Nothing of its own: what Lightning asks of a loader that can be continued."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """`start` was set before."""


class StepLoader(Loader):
    """Yields optimizer steps: `global_batch_size` sequences each, shuffled anew every epoch.

    A step never spans two epochs, so the last step of an epoch may be smaller. The order follows
    from the seed alone.
    """

    def __init__(self, trees: Sequence[Tree], config: StageConfig, seed: int) -> None:
        orders = shuffled(len(trees), rows_wanted(len(trees), config), seed)
        plan = planned(orders, lambda index: trees[index].tokens, config)
        super().__init__(trees, plan, config.max_tokens)


def rows_wanted(count: int, config: StageConfig) -> float:
    """Rows that a stage goes through of so many; without end where steps or tokens end it."""
    if config.steps is not None or config.tokens is not None:
        return math.inf
    return max(1, round(config.epochs * count))


def planned(
    orders: "Iterable[array[int]]", tokens: Callable[[int], int], config: StageConfig
) -> "list[array[int]]":
    """The steps of a stage: the indices of each epoch in turn, cut into steps.

    `tokens` gives those of a sequence by its index, for a stage that ends by tokens.
    """
    size, seen = config.global_batch_size, 0
    steps: list[array[int]] = []
    for order in orders:
        for at in range(0, len(order), size):
            steps.append(order[at : at + size])
            if len(steps) == config.steps:
                return steps
            if config.tokens is not None:
                seen += sum(map(tokens, steps[-1]))
                if seen >= config.tokens:
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
