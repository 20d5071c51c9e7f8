"""The central type: a prompt with its completions, and many of them packed as the one batch.

It imports nothing else of drbode: what makes trees and what runs them both build on it.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Completion(NamedTuple):
    """Tokens that follow a prompt; those where `supervised` is true are to be predicted.

    `label` says of an unpaired preference whether the completion is desirable; None: not known.
    """

    ids: list[int]
    supervised: list[bool]
    label: bool | None = None


class Tree(NamedTuple):
    """A prompt and the completions that branch off its end; the prompt may be empty.

    With an empty prompt a completion's first token follows nothing, and is not predicted. In
    `reference` lie the completions' logps under the reference policy, where a stage needs them.
    """

    prompt: list[int]
    completions: list[Completion]
    reference: tuple[float, ...] = ()

    @property
    def tokens(self) -> int:
        return len(self.prompt) + sum(len(c.ids) for c in self.completions)

    @property
    def supervised(self) -> int:
        """Tokens that are predicted."""
        first = 0 if self.prompt else 1
        return sum(sum(c.supervised[first:]) for c in self.completions)


# For each tree the length of its prompt, then of each of its completions, in the order they lie.
Layout = tuple[tuple[int, ...], ...]

UNLABELLED = -1  # in a forest, where a label is a byte


class Forest(Sequence[Tree]):
    """Trees in little memory: 5 bytes a token, where Python's int objects take about 50.

    Each tree is built anew at every access.
    """

    def __init__(self, trees: Iterable[Tree] = ()) -> None:
        self._ids = array("i")
        self._supervised = bytearray()
        self._starts = array("q")
        self._lengths: list[tuple[int, ...]] = []  # as in a layout
        self._references: list[tuple[float, ...]] = []
        self._labels = array("b")  # of every completion
        self._firsts = array("q")  # of each tree: which completion is its first
        self.extend(trees)

    def extend(self, trees: Iterable[Tree]) -> None:
        for tree in trees:
            self._starts.append(len(self._ids))
            self._lengths.append((len(tree.prompt), *(len(c.ids) for c in tree.completions)))
            self._references.append(tree.reference)
            self._firsts.append(len(self._labels))
            self._ids.extend(tree.prompt)
            self._supervised.extend(bytes(len(tree.prompt)))
            for completion in tree.completions:
                self._ids.extend(completion.ids)
                self._supervised.extend(completion.supervised)
                self._labels.append(UNLABELLED if completion.label is None else completion.label)

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Tree: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tree]: ...
    def __getitem__(self, index: int | slice) -> Tree | list[Tree]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        prompt, *lengths = self._lengths[index]
        start = self._starts[index]
        ids = self._ids[start : start + prompt].tolist()
        start += prompt
        completions = []
        for number, length in enumerate(lengths, self._firsts[index]):
            end = start + length
            supervised = [bool(s) for s in self._supervised[start:end]]
            label = None if self._labels[number] == UNLABELLED else bool(self._labels[number])
            completions.append(Completion(self._ids[start:end].tolist(), supervised, label))
            start = end
        return Tree(ids, completions, self._references[index])


@dataclass(frozen=True)
class Batch:
    """Packed prompts with their completions: the one batch type.

    All tokens lie in one row without padding; further tensors say which are predicted from where.
    """

    input_ids: Int[Tensor, " tokens"]
    positions: Int[Tensor, " tokens"]  # distance from the start of the token's own tree branch
    layout: Layout
    sources: Int[Tensor, " supervised"]  # index of the token whose hidden state predicts
    targets: Int[Tensor, " supervised"]  # id of the token that is predicted
    owners: Int[Tensor, " supervised"]  # index of its completion, counted through all trees
    reference: Float[Tensor, " referred"]  # of the trees, for all completions or for none
    labels: Bool[Tensor, " labelled"]  # of the completions, for all or for none

    @property
    def tokens(self) -> int:
        return len(self.input_ids)

    @property
    def completions(self) -> int:
        return sum(len(lengths) - 1 for lengths in self.layout)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def sums(self, logps: Float[Tensor, " supervised"]) -> Float[Tensor, " completions"]:
        """Each completion's logp: the sum over its supervised tokens."""
        return logps.new_zeros(self.completions).index_add(0, self.owners, logps)

    def ends(self) -> Int[Tensor, " completions"]:
        """Index of each completion's last token."""
        at, ends = 0, []
        for prompt, *completions in self.layout:
            at += prompt
            for length in completions:
                at += length
                ends.append(at - 1)
        return torch.tensor(ends, dtype=torch.long, device=self.input_ids.device)

    def lengths(self) -> Int[Tensor, " completions"]:
        """Each completion's number of supervised tokens."""
        return torch.bincount(self.owners, minlength=self.completions)


def pack(trees: Sequence[Tree]) -> Batch:
    """Trees, one after the other in a row: each prompt, then its completions.

    Raises ValueError where some completions have a label and some have none.
    """
    ids: list[int] = []
    positions: list[int] = []
    sources: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    owner = 0
    for tree in trees:
        ids += tree.prompt
        positions += range(len(tree.prompt))
        last_of_prompt = len(ids) - 1
        for completion in tree.completions:
            start = len(ids)
            pairs = zip(completion.ids, completion.supervised, strict=True)
            for offset, (token, supervised) in enumerate(pairs):
                if supervised and (offset or tree.prompt):
                    sources.append(start + offset - 1 if offset else last_of_prompt)
                    targets.append(token)
                    owners.append(owner)
            ids += completion.ids
            positions += range(len(tree.prompt), len(tree.prompt) + len(completion.ids))
            owner += 1
    layout = tuple((len(t.prompt), *(len(c.ids) for c in t.completions)) for t in trees)
    return Batch(
        torch.tensor(ids, dtype=torch.long),
        torch.tensor(positions, dtype=torch.long),
        layout,
        torch.tensor(sources, dtype=torch.long),
        torch.tensor(targets, dtype=torch.long),
        torch.tensor(owners, dtype=torch.long),
        torch.tensor([logp for tree in trees for logp in tree.reference], dtype=torch.float32),
        torch.tensor(_labels(trees), dtype=torch.bool),
    )


def _labels(trees: Sequence[Tree]) -> list[bool]:
    completions = [completion for tree in trees for completion in tree.completions]
    known = [c.label for c in completions if c.label is not None]
    if known and len(known) < len(completions):
        raise ValueError(
            f"{len(known)} of {len(completions)} completions have a label; expected all or none"
        )
    return known


def within(trees: Iterable[Tree], max_tokens: int) -> Iterator[list[Tree]]:
    """Trees in their order, in groups of at most `max_tokens`; a longer tree goes alone."""
    group: list[Tree] = []
    tokens = 0
    for tree in trees:
        if group and tokens + tree.tokens > max_tokens:
            yield group
            group, tokens = [], 0
        group.append(tree)
        tokens += tree.tokens
    if group:
        yield group
