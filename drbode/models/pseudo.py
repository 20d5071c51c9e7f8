"""Pseudo-log-likelihood: what an encoder makes of tokens that are masked one at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from drbode.models.base import Policy
from drbode.trees import Batch, Completion, Tree, pack

Scored = tuple[list[int], Sequence[int]]  # a sequence's ids, and the places that are scored


def pseudo_logps(policy: Policy, sequences: Sequence[Scored], max_tokens: int) -> list[list[float]]:
    """Log-probability (nats) of each scored token given all others of its sequence.

    Salazar et al. 2020, equation 1: a copy of the sequence for each, with that token alone masked,
    so the cost is that of as many sequences as there are scored tokens. Copies are packed, at most
    `max_tokens` at once; how many changes nothing. No dropout, no gradient.
    """
    mask = policy.tokenizer.mask_token_id
    logps: list[float] = []
    with policy.evaluating(), torch.no_grad():
        for group in _groups(sequences, max_tokens):
            batch = _masked(group, mask).to(policy.device)
            logps += policy.logps(batch).double().tolist()
    each = iter(logps)
    return [[next(each) for _ in places] for _, places in sequences]


def _masked(group: Sequence[tuple[list[int], int]], mask: int) -> Batch:
    """Sequences, of each of which the token at one place is masked, and predicted from there."""
    trees, sources, targets, at = [], [], [], 0
    for sequence, place in group:
        ids = [*sequence[:place], mask, *sequence[place + 1 :]]
        trees.append(Tree([], [Completion(ids, [False] * len(ids))]))
        sources.append(at + place)
        targets.append(sequence[place])
        at += len(ids)
    return replace(
        pack(trees),
        sources=torch.tensor(sources),
        targets=torch.tensor(targets),
        owners=torch.arange(len(group)),
    )


def _groups(sequences: Sequence[Scored], max_tokens: int) -> Iterator[list[tuple[list[int], int]]]:
    """A sequence and one of its scored places each, as many as fit."""
    group: list[tuple[list[int], int]] = []
    tokens = 0
    for ids, places in sequences:
        for place in places:
            if group and tokens + len(ids) > max_tokens:
                yield group
                group, tokens = [], 0
            group.append((ids, place))
            tokens += len(ids)
    if group:
        yield group
