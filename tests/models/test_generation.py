"""Batched greedy generation, against one sequence at a time and no cache."""

import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoTokenizer

from drbode.models.attention import NAMES
from drbode.models.base import Policy, bodinho_folder
from drbode.models.generation import generate
from tests.conftest import VOCABULARY, tiny

END, NEW = 5, 12


def policy_of(network: nn.Module) -> Policy:
    return Policy(network, AutoTokenizer.from_pretrained(bodinho_folder()))


def prompts(count: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 40, (count,), generator=draw).tolist()
    return [torch.randint(VOCABULARY, (n,), generator=draw).tolist() for n in lengths]


def by_hand(policy: Policy, prompt: list[int], ends: set[int]) -> list[int]:
    """The most probable token after the whole sequence, computed anew for each."""
    ids = list(prompt)
    with policy.generating() as network, torch.no_grad():
        while len(ids) < len(prompt) + NEW:
            ids.append(int(network(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in ends:
                break
    return ids[len(prompt) :]


def test_it_writes_what_is_most_probable_whatever_the_batch(family: str) -> None:
    policy = policy_of(tiny(family))
    policy.model.generation_config.eos_token_id = None
    given = prompts(16)
    # An end that some of them reach, and some do not.
    end = by_hand(policy, given[0], set())[3]
    expected = [by_hand(policy, prompt, {end}) for prompt in given]
    assert {ids[-1] == end for ids in expected} == {True, False}
    for max_tokens in (1, 150, 10_000):
        found = generate(policy, given, end=end, max_new_tokens=NEW, max_tokens=max_tokens)
        assert [own.ids for own in found] == expected
        assert [own.ended for own in found] == [ids[-1] == end for ids in expected]


def test_a_prefix_stands_before_every_prompt_whatever_the_batch(family: str) -> None:
    policy = policy_of(tiny(family))
    policy.model.generation_config.eos_token_id = None
    before, *given = [[7] * 20 + ids for ids in prompts(8)]
    expected = [by_hand(policy, before + prompt, {END}) for prompt in given]
    prefix = policy.prefix(before)
    for max_tokens in (1, 300, 10_000):
        options = {"end": END, "max_new_tokens": NEW, "max_tokens": max_tokens}
        found = generate(policy, given, **options, prefix=prefix)
        assert [own.ids for own in found] == expected
    assert prefix.get_seq_length() == len(before)


def test_nothing_of_the_models_generation_config_is_used_but_its_ends() -> None:
    policy = policy_of(tiny("qwen3"))
    given = prompts(4)
    plain = [by_hand(policy, prompt, set()) for prompt in given]
    own_end = plain[0][2]
    kept = policy.model.generation_config
    kept.update(do_sample=True, temperature=9.0, top_k=3, top_p=0.5, repetition_penalty=5.0)
    kept.eos_token_id = [own_end]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = generate(policy, given, end=VOCABULARY - 1, max_new_tokens=NEW, max_tokens=999)
    assert [own.ids for own in found] == [
        by_hand(policy, prompt, {own_end, VOCABULARY - 1}) for prompt in given
    ]
    assert found[0].ids[-1] == own_end
    assert not found[0].ended  # it ended, but not its turn
    assert policy.model.generation_config is kept


def test_an_adapter_writes_too_and_the_policy_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    policy = policy_of(get_peft_model(tiny("qwen3"), config))
    policy.network.generation_config.do_sample = True  # peft would bring its own copy back
    policy.network.train()
    given = prompts(5)
    found = generate(policy, given, end=END, max_new_tokens=NEW, max_tokens=999)
    assert policy.network.training
    assert policy.model.config._attn_implementation == NAMES["sdpa"]
    expected = [by_hand(policy, prompt, {END}) for prompt in given]
    assert [own.ids for own in found] == expected
    plain = policy_of(tiny("qwen3"))
    assert expected != [by_hand(plain, prompt, {END}) for prompt in given]


@pytest.mark.parametrize("limit", [1, 3])
def test_the_limit_holds(limit: int) -> None:
    policy = policy_of(tiny("qwen3"))
    found = generate(policy, prompts(3), end=END, max_new_tokens=limit, max_tokens=999)
    assert max(len(own.ids) for own in found) == limit
