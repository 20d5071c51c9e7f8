"""Answers written by a policy: batched, with cached keys and values, greedy or sampled."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig

from drbode.models.attention import Prefix
from drbode.models.base import Policy


class Generated(NamedTuple):
    """The tokens after a prompt, its end token among them; `ended`: that is `end`, not another."""

    ids: list[int]
    ended: bool


@torch.no_grad()
def generate(
    policy: Policy,
    prompts: Sequence[list[int]],
    *,
    end: int,
    max_new_tokens: int,
    max_tokens: int,
    temperature: float = 0.0,
    prefix: Prefix | None = None,
) -> list[Generated]:
    """Continues each prompt until the token `end` or `max_new_tokens`; in the order they came.

    A prefix stands before every prompt.

    Of the model's own generation config only its end tokens count: some bring sampling along.
    Temperature 0 takes the most probable token each time; above it tokens are drawn from the whole
    distribution, by torch's own generator. Prompts of like length go together, as many as fit into
    `max_tokens` tokens with the prefix and what they may grow by, for that much keys and values
    take; which go together changes no greedy answer.
    """
    also = policy.model.generation_config.eos_token_id
    ends = {end, *(also if isinstance(also, list) else [also])} - {None}
    options = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        temperature=temperature or None,
        top_k=0 if temperature else None,
        top_p=1.0 if temperature else None,
        eos_token_id=sorted(ends),
        pad_token_id=end,  # what stands left of a prompt is masked, right of an end it is cut off
    )
    answers: list[Generated] = [Generated([], False)] * len(prompts)
    start = 0 if prefix is None else prefix.get_seq_length()
    with policy.generating(), _generation_config(policy.model, options):
        # What pads a prompt stands after the prefix, where transformers' windows would count it.
        equal = prefix is not None and policy.windowed
        for group in _alike(prompts, start + max_new_tokens, max_tokens, equal):
            width = max(len(prompts[i]) for i in group)
            pads = [width - len(prompts[i]) for i in group]
            ids = [[end] * pad + prompts[i] for pad, i in zip(pads, group, strict=True)]
            mask = [[1] * start + [0] * pad + [1] * (width - pad) for pad in pads]
            # Not the peft model's `generate`, which puts the model's own config back.
            written = policy.model.generate(
                input_ids=torch.tensor(ids, device=policy.device),
                attention_mask=torch.tensor(mask, device=policy.device),
                past_key_values=None if prefix is None else prefix.repeated(len(group)),
            )
            for i, row in zip(group, written[:, width:].tolist(), strict=True):
                stop = next((n for n, token in enumerate(row, 1) if token in ends), len(row))
                answers[i] = Generated(row[:stop], row[stop - 1] == end)
    return answers


@contextmanager
def _generation_config(model: Any, config: GenerationConfig) -> Iterator[None]:
    """`config` in place of the model's own, which would fill in what `config` leaves open."""
    kept = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = kept


def _alike(
    prompts: Sequence[list[int]], grow: int, max_tokens: int, equal: bool = False
) -> list[list[int]]:
    """Indices of prompts in groups of like length (`equal`: the same), the longest first."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    groups: list[list[int]] = []
    for i in order:
        widest = len(prompts[groups[-1][0]]) if groups else 0
        fits = groups and (len(groups[-1]) + 1) * (widest + grow) <= max_tokens
        if fits and not (equal and len(prompts[i]) < widest):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
