"""Rows of an encoder as optimizer steps: second parts exchanged, tokens masked, sequences packed.

A row is a tree whose prompt is the start token and whose completions are its one or two segments,
each with the separator at its end; those of its tokens that are `supervised` may be masked.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from drbode.config import MlmConfig
from drbode.data.steps import Step, StepLoader
from drbode.objectives.mlm import mask_tokens
from drbode.trees import Batch, Completion, Tree, pack, within

PAIR = 2  # segments


@dataclass(frozen=True)
class MaskedBatch:
    """Packed sequences with masked tokens: where they are, and what stood there.

    `follows` says of the sequences with two segments whether the second is another row's (0: it
    follows, 1: it does not), which is predicted from the start tokens `firsts`. `pair_weight` is
    the number of masked tokens to a pair in the whole step, or the whole validation.
    """

    batch: Batch
    segments: Int[Tensor, " tokens"]
    firsts: Int[Tensor, " pairs"]
    follows: Int[Tensor, " pairs"]
    pair_weight: float

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "MaskedBatch":
        segments, firsts, follows = (
            t.to(device, non_blocking=non_blocking)
            for t in (self.segments, self.firsts, self.follows)
        )
        batch = self.batch.to(device, non_blocking)
        return MaskedBatch(batch, segments, firsts, follows, self.pair_weight)


@dataclass(frozen=True)
class Masker:
    """Masks rows as the stage's config and the tokenizer say."""

    probability: float
    whole_words: bool
    mask: int
    ordinary: Int[Tensor, " vocabulary"]  # ids that are no special tokens
    goes_on: Int[Tensor, " ids"]  # 1 for a piece that goes on with the word before it

    def batches(
        self,
        rows: Sequence[tuple[Tree, int]],
        max_tokens: int,
        generator: torch.Generator,
    ) -> list[MaskedBatch]:
        """Rows, each with 0 or 1 for whether its second segment follows, masked and packed."""
        groups = iter(within([row for row, _ in rows], max_tokens))
        labels = iter(label for _, label in rows)
        packed = [self._pack([(t, next(labels)) for t in group], generator) for group in groups]
        targets = sum(len(masked.batch.targets) for masked in packed)
        pairs = sum(len(masked.follows) for masked in packed)
        return [replace(masked, pair_weight=targets / max(1, pairs)) for masked in packed]

    def _pack(self, rows: Sequence[tuple[Tree, int]], generator: torch.Generator) -> MaskedBatch:
        whole = pack([_joined(tree) for tree, _ in rows])
        segments: list[int] = []
        firsts: list[int] = []
        follows: list[int] = []
        corrupted, sources, owners = [], [], []
        for number, (tree, label) in enumerate(rows):
            start = len(segments)
            if len(tree.completions) == PAIR:
                firsts.append(start)
                follows.append(label)
            segments += [0] * len(tree.prompt)
            for segment, completion in enumerate(tree.completions):
                segments += [segment] * len(completion.ids)
            ids = whole.input_ids[start : len(segments)]
            units = self.units(ids, _maskable(tree))
            masked = mask_tokens(ids, units, self.probability, self.mask, self.ordinary, generator)
            corrupted.append(masked.ids)
            sources.append(start + masked.chosen)
            owners.append(torch.full_like(masked.chosen, number))
        chosen = torch.cat(sources)
        batch = replace(
            whole,
            input_ids=torch.cat(corrupted),
            sources=chosen,
            targets=whole.input_ids[chosen],
            owners=torch.cat(owners),
        )
        return MaskedBatch(
            batch,
            torch.tensor(segments, dtype=torch.long),
            torch.tensor(firsts, dtype=torch.long),
            torch.tensor(follows, dtype=torch.long),
            pair_weight=1.0,
        )

    def units(
        self, ids: Int[Tensor, " tokens"], maskable: Sequence[bool]
    ) -> Int[Tensor, " tokens"]:
        """The number of the token, or of the word, that each token belongs to; -1: never masked."""
        free = torch.tensor(maskable)
        begins = free.clone()
        if self.whole_words:
            follows = torch.cat([torch.tensor([False]), free[:-1]])  # a piece after no word is one
            begins &= ~(self.goes_on[ids].bool() & follows)
        return torch.where(free, begins.long().cumsum(0) - 1, -1)


def masker(tokenizer: Any, config: MlmConfig) -> Masker:
    """WordPiece writes a piece inside a word with ## before it."""
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = set(tokenizer.all_special_ids)
    return Masker(
        config.mask_probability,
        config.whole_words,
        tokenizer.mask_token_id,
        torch.tensor([i for i in range(len(names)) if i not in special]),
        torch.tensor([int(name.startswith("##")) for name in names]),
    )


class MaskedSteps(StepLoader):
    """Optimizer steps of masked rows, masked and paired anew every epoch.

    Both follow from the seed and the number of the step, so a run that is continued sees what an
    uninterrupted one does.
    """

    def __init__(self, trees: Sequence[Tree], config: MlmConfig, seed: int, masker: Masker) -> None:
        super().__init__(trees, config, seed)
        self.seed = seed
        self.masker = masker
        self.an_epoch = math.ceil(len(trees) / config.global_batch_size)  # steps

    def __iter__(self) -> Iterator[Step]:
        epoch, partners = -1, dict[int, int]()
        for number in range(self.start, len(self.plan)):
            if number // self.an_epoch != epoch:
                epoch = number // self.an_epoch
                partners = exchanged(self.trees, f"{self.seed} {epoch}")
            rows = [with_partner(self.trees, i, partners) for i in self.plan[number]]
            generator = torch.Generator().manual_seed(_drawn(f"{self.seed} step {number}"))
            batches = self.masker.batches(rows, self.max_tokens, generator)
            yield Step(
                batches,
                rows=len(rows),
                tokens=sum(row.tokens for row, _ in rows),
                supervised=sum(len(masked.batch.targets) for masked in batches),
            )


def held_out_batches(
    trees: Sequence[Tree], max_tokens: int, masker: Masker, seed: int
) -> list[MaskedBatch]:
    """Validation rows, masked and paired once, the same at every validation."""
    partners = exchanged(trees, f"{seed} held out")
    rows = [with_partner(trees, i, partners) for i in range(len(trees))]
    generator = torch.Generator().manual_seed(_drawn(f"{seed} held out"))
    return masker.batches(rows, max_tokens, generator)


def exchanged(trees: Sequence[Tree], seed: str) -> dict[int, int]:
    """For half of the rows with two segments, drawn at random, the row whose second they get.

    Each second part is somebody's: over an epoch every token is seen once, as without exchange.
    """
    pairs = [i for i in range(len(trees)) if len(trees[i].completions) == PAIR]
    chosen = random.Random(seed).sample(pairs, len(pairs) // 2)
    if len(chosen) < PAIR:
        return {}
    return dict(zip(chosen, [*chosen[1:], chosen[0]], strict=True))


def with_partner(trees: Sequence[Tree], index: int, partners: dict[int, int]) -> tuple[Tree, int]:
    """A row as it is trained on, and 0 where its second segment follows, 1 where it does not."""
    tree = trees[index]
    if index not in partners:
        return tree, 0
    second = trees[partners[index]].completions[1]
    return tree._replace(completions=[tree.completions[0], second]), 1


def plain(tree: Tree) -> list[int]:
    """A row's ids as one segment: start token, text, separator."""
    *segments, last = tree.completions
    inner = [token for segment in segments for token in segment.ids[:-1]]
    return [*tree.prompt, *inner, *last.ids]


def _joined(tree: Tree) -> Tree:
    """The same tokens as one sequence, each of which sees all of them."""
    ids = [*tree.prompt, *(token for c in tree.completions for token in c.ids)]
    return Tree([], [Completion(ids, [False] * len(ids))])


def _maskable(tree: Tree) -> list[bool]:
    return [*([False] * len(tree.prompt)), *(s for c in tree.completions for s in c.supervised)]


def _drawn(words: str) -> int:
    return random.Random(words).getrandbits(63)
