"""How hard a stage's rows are to the model that is about to learn them."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from drbode.data.curation import Difficulty
from drbode.models.base import Policy
from drbode.models.machine import Machine
from drbode.trees import Tree, pack, within

STATES = 256  # of which all logits are held at once


@torch.no_grad()
def difficulty(
    policy: Policy, rows: Iterable[Sequence[Tree]], max_tokens: int, machine: Machine
) -> list[Difficulty]:
    """Of each row the mean loss (nats) of its supervised tokens, and whether it is answered.

    It is where every supervised token is the most probable one, for then the model, which takes
    the most probable token each time, writes this answer. One pass, without dropout.
    """
    owners: list[int] = []  # of each tree its row

    def trees() -> Iterator[Tree]:
        for number, trees_of_row in enumerate(rows):
            owners.extend([number] * len(trees_of_row))
            yield from trees_of_row

    losses: list[float] = []
    missed: list[int] = []
    lengths: list[int] = []
    with policy.evaluating(), machine.autocast():
        for group in within(trees(), max_tokens):
            batch = pack(group).to(policy.device)
            states = policy.hidden(batch)[batch.sources]
            losses += batch.sums(-policy.predicted(states, batch.targets).double()).tolist()
            wrong = _most_probable(policy, states) != batch.targets
            missed += batch.sums(wrong.double()).int().tolist()
            lengths += batch.lengths().tolist()
    return [
        Difficulty(
            sum(losses[i] for i in members) / sum(lengths[i] for i in members),
            not any(missed[i] for i in members),
        )
        for members in _of_rows(owners)
    ]


def _most_probable(policy: Policy, states: Tensor) -> Tensor:
    """The token that the head gives most to at each state, some states at a time."""
    head = policy.model.get_output_embeddings()
    parts = states.to(head.weight.dtype).split(STATES)
    return torch.cat([head(part).argmax(-1) for part in parts])


def _of_rows(owners: Sequence[int]) -> Iterator[list[int]]:
    """The numbers of each row's trees; every row has one."""
    members: list[int] = []
    for tree, row in enumerate(owners):
        if members and row != owners[tree - 1]:
            yield members
            members = []
        members.append(tree)
    if members:
        yield members
