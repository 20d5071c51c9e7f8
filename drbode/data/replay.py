"""Texts as optimizer steps: general text mixed in, and an end at exactly the tokens asked for."""

import itertools
import math
from array import array
from collections.abc import Iterator

from drbode.config import BadInput, CptConfig
from drbode.data.corpus import Pieces
from drbode.data.splits import Split
from drbode.data.steps import StepLoader, shuffled
from drbode.trees import Completion, Tree


class TextSteps(StepLoader):
    """Optimizer steps of text, which ends at exactly `tokens` where they are asked for.

    Of the steps' tokens `replay.share` are general text, to within a piece at every moment; an
    epoch is a pass over the stage's own. Trees are numbered: first its own, then the general ones.
    """

    def __init__(self, train: Split, config: CptConfig, seed: int) -> None:
        self.sources = [source for source in (train.trees, train.replay) if source]
        self.share = config.replay.share
        self.left_off = 0  # tokens of the very last piece that are not trained on
        super().__init__(train.trees, config, seed)
        if config.tokens is not None:
            self._end_at(config.tokens)

    def tree(self, index: int) -> Tree:
        own = len(self.sources[0])
        return self.sources[0][index] if index < own else self.sources[1][index - own]

    def tokens(self, index: int) -> int:
        own = len(self.sources[0])
        source, at = (self.sources[0], index) if index < own else (self.sources[1], index - own)
        return source.tokens(at) if isinstance(source, Pieces) else source[at].tokens

    def orders(self, rows: float, seed: int) -> "Iterator[array[int]]":
        orders = super().orders(rows, seed)
        if self.share == 0:
            yield from orders
            return
        own, general = map(len, self.sources)
        others = itertools.chain.from_iterable(shuffled(general, math.inf, f"{seed} replay"))
        seen = replayed = 0
        for order in orders:
            mixed = array("i")
            for index in order:
                mixed.append(index)
                seen += self.tokens(index)
                while replayed < self.share * seen:
                    mixed.append(own + next(others))
                    replayed += self.tokens(mixed[-1])
                    seen += self.tokens(mixed[-1])
            yield mixed

    def rows(self, number: int) -> list[Tree]:
        trees = super().rows(number)
        if self.left_off and number == len(self.plan) - 1:
            trees[-1] = shortened(trees[-1], self.left_off)
        return trees

    def _end_at(self, tokens: int) -> None:
        last = self.plan[-1]
        over = sum(self.tokens(i) for step in self.plan for i in step) - tokens
        while over >= self.tokens(last[-1]):
            over -= self.tokens(last.pop())
        self.left_off = over
        if sum(tree.supervised for tree in self.rows(len(self.plan) - 1)):
            return
        if len(self.plan) == 1:
            raise BadInput(f"cpt.tokens: {tokens} hold no token to predict; raise it")
        # A step of its own has nothing to learn from: the tokens go with the step before.
        self.plan[-2].extend(self.plan.pop())


def shortened(tree: Tree, tokens: int) -> Tree:
    """A text's tree without its last tokens; nothing is predicted of what was context only."""
    (own,) = tree.completions
    kept = len(own.ids) - tokens
    if kept > 0:
        return Tree(tree.prompt, [Completion(own.ids[:kept], own.supervised[:kept], own.label)])
    ids = tree.prompt[: len(tree.prompt) + kept]
    return Tree([], [Completion(ids, [False] * len(ids))])
