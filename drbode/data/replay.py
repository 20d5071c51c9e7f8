"""Texts as optimizer steps: general text mixed in, and an end at exactly the tokens asked for."""

import itertools
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from drbode.config import BadInput, CptConfig
from drbode.data.corpus import Pieces
from drbode.data.splits import Split
from drbode.data.steps import Loader, planned, rows_wanted, shuffled
from drbode.trees import Completion, Tree


class Mixed(Sequence[Tree]):
    """A stage's pieces of text, and after them the general ones that are replayed."""

    def __init__(self, pieces: Sequence[Tree], general: Sequence[Tree]) -> None:
        self.pieces = pieces
        self.general = general

    def __len__(self) -> int:
        return len(self.pieces) + len(self.general)

    @overload
    def __getitem__(self, index: int) -> Tree: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tree]: ...
    def __getitem__(self, index: int | slice) -> Tree | list[Tree]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        source, at = self._place(index)
        return source[at]

    def tokens(self, index: int) -> int:
        """Of a piece; of one that lies in a corpus without reading it."""
        source, at = self._place(index)
        return source.tokens(at) if isinstance(source, Pieces) else source[at].tokens

    def _place(self, index: int) -> tuple[Sequence[Tree], int]:
        before = len(self.pieces)
        return (self.pieces, index) if index < before else (self.general, index - before)


class TextSteps(Loader):
    """Optimizer steps of text, which ends at exactly `tokens` where they are asked for.

    Of the steps' tokens `replay.share` are general text, to within a piece at every moment; an
    epoch is a pass over the stage's own.
    """

    def __init__(self, train: Split, config: CptConfig, seed: int) -> None:
        texts = Mixed(train.trees, train.replay)
        orders = shuffled(len(train.trees), rows_wanted(len(train.trees), config), seed)
        if config.replay.share:
            orders = with_general(orders, texts, config.replay.share, seed)
        plan = planned(orders, texts.tokens, config)
        self.left_off = 0  # tokens of the very last piece that are not trained on
        if config.tokens is not None:
            self.left_off = end_at(plan, texts, config.tokens)
        super().__init__(texts, plan, config.max_tokens)

    def rows(self, number: int) -> list[Tree]:
        trees = super().rows(number)
        if self.left_off and number == len(self.plan) - 1:
            trees[-1] = shortened(trees[-1], self.left_off)
        return trees


def with_general(
    orders: "Iterable[array[int]]", texts: Mixed, share: float, seed: int
) -> "Iterator[array[int]]":
    """The indices of each epoch with general pieces among them, `share` of all tokens."""
    before, general = len(texts.pieces), len(texts.general)
    others = itertools.chain.from_iterable(shuffled(general, math.inf, f"{seed} replay"))
    seen = replayed = 0
    for order in orders:
        mixed = array("i")
        for index in order:
            mixed.append(index)
            seen += texts.tokens(index)
            while replayed < share * seen:
                mixed.append(before + next(others))
                replayed += texts.tokens(mixed[-1])
                seen += texts.tokens(mixed[-1])
        yield mixed


def end_at(plan: "list[array[int]]", texts: Mixed, tokens: int) -> int:
    """Shortens a plan to exactly so many tokens; those of the last piece that are left off.

    Raises BadInput where they hold nothing to predict.
    """
    last = plan[-1]
    over = sum(texts.tokens(i) for step in plan for i in step) - tokens
    while over >= texts.tokens(last[-1]):
        over -= texts.tokens(last.pop())
    trees = [texts[i] for i in last]
    if over:
        trees[-1] = shortened(trees[-1], over)
    if not sum(tree.supervised for tree in trees):
        if len(plan) == 1:
            raise BadInput(f"cpt.tokens: {tokens} hold no token to predict; raise it")
        # A step of its own has nothing to learn from: the tokens go with the step before.
        plan[-2].extend(plan.pop())
    return over


def shortened(tree: Tree, tokens: int) -> Tree:
    """A text's tree without its last tokens; nothing is predicted of what was context only."""
    (completion,) = tree.completions
    kept = len(completion.ids) - tokens
    if kept > 0:
        return Tree(
            tree.prompt,
            [Completion(completion.ids[:kept], completion.supervised[:kept], completion.label)],
        )
    ids = tree.prompt[: len(tree.prompt) + kept]
    return Tree([], [Completion(ids, [False] * len(ids))])
