"""One table of properties that every method has on every family."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn

from drbode.config import BadInput, LoraConfig, Method
from drbode.data.trees import Completion, Tree, pack
from drbode.models.base import Policy
from drbode.models.methods import wrap
from tests.conftest import VOCABULARY, tiny

LORA = LoraConfig(r=4, alpha=8.0, dropout=0.0, target_modules="all-linear")
METHODS: list[Method] = ["full", "lora"]
BATCH = pack([Tree([1, 2, 3], [Completion([4, 5], [True, True]), Completion([6], [True])])])


class NoTokenizer:
    def save_pretrained(self, folder: str) -> None:
        pass


def wrapped(family: str, method: Method) -> Policy:
    policy = Policy(tiny(family), NoTokenizer())
    wrap(policy, method, LORA, seed=0)
    policy.network.eval()  # GPT-2 has dropout of its own
    return policy


def logits(network: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = network(torch.arange(VOCABULARY)[None]).logits
    return found


def trained(policy: Policy) -> None:
    """A few steps that move every trainable tensor."""
    optimizer = torch.optim.SGD(policy.trainable().values(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (-policy.logps(**BATCH.inputs()).sum()).backward()
        optimizer.step()


@pytest.mark.parametrize("method", METHODS)
def test_logits_at_the_start_equal_the_base_exactly(family: str, method: Method) -> None:
    with wrapped(family, method).generating() as network:
        found = logits(network)
    base = Policy(tiny(family), None)
    with base.generating() as network:
        assert torch.equal(found, logits(network))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_trains_gets_a_gradient_and_what_is_frozen_stays(
    family: str, method: Method, checkpointing: bool
) -> None:
    policy = wrapped(family, method)
    if checkpointing:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        policy.network.train()
    frozen = {n: p.clone() for n, p in policy.network.named_parameters() if not p.requires_grad}
    before = policy.state()
    names = set(before)
    if method == "lora":
        assert all("lora_" in name for name in names)
        assert not any("lm_head" in name for name in names)
    else:
        assert not frozen
    trained(policy)
    (-policy.logps(**BATCH.inputs()).sum()).backward()
    for name, parameter in policy.network.named_parameters():
        if name in names:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
            assert not torch.equal(parameter.detach(), before[name]), name
        else:
            assert parameter.grad is None, name
            assert torch.equal(parameter, frozen[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_saved_it_loads_in_plain_peft_and_transformers(
    family: str, method: Method, tmp_path: Path
) -> None:
    policy = wrapped(family, method)
    trained(policy)
    policy.save(tmp_path)
    if method == "full":
        plain = type(policy.model).from_pretrained(tmp_path)
    else:
        plain = PeftModel.from_pretrained(tiny(family), tmp_path)
    with policy.generating() as network:
        expected = logits(network)
    assert plain.config._attn_implementation == "sdpa"
    torch.testing.assert_close(logits(plain.eval()), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_state_taken_out_and_in_is_the_same_policy(family: str, method: Method) -> None:
    policy, other = wrapped(family, method), wrapped(family, method)
    trained(policy)
    other.load_state(policy.state())
    with torch.no_grad():
        for one, two in zip(
            policy.logps(**BATCH.inputs()), other.logps(**BATCH.inputs()), strict=True
        ):
            assert one == two
    with pytest.raises(BadInput, match="does not fit"):
        other.load_state({"another": torch.zeros(1)})


def test_counts_are_true() -> None:
    policy = wrapped("qwen3", "lora")
    # r (in + out) over q, o (32x32), k, v (32x16), gate, up (32x48), down (48x32), two layers.
    expected = 2 * 4 * (2 * 64 + 2 * 48 + 3 * 80)
    trainable, total = policy.count()
    assert trainable == expected
    assert total == sum(p.numel() for p in tiny("qwen3").parameters()) + expected


def test_the_adapter_start_follows_the_seed() -> None:
    states = []
    for seed in (0, 0, 1):
        policy = Policy(tiny("qwen3"), None)
        wrap(policy, "lora", LORA, seed)
        states.append(torch.cat([t.flatten() for t in policy.state().values()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_a_target_that_is_not_there_is_named() -> None:
    policy = Policy(tiny("llama"), None)
    lora = LoraConfig(r=4, alpha=8.0, dropout=0.0, target_modules=["q_prj"])
    with pytest.raises(BadInput, match=r"lora.target_modules: the model has no linear layer q_prj"):
        wrap(policy, "lora", lora, 0)


def test_an_adapter_is_trained_further_and_only_at_its_rank() -> None:
    policy = wrapped("qwen3", "lora")
    policy.network.requires_grad_(False)
    with pytest.raises(BadInput, match="adapter of rank 4, got 8"):
        wrap(policy, "lora", LoraConfig(8, 16.0, 0.0, "all-linear"), 0)
    with pytest.raises(BadInput, match="is an adapter"):
        wrap(policy, "full", LORA, 0)
    wrap(policy, "lora", LORA, 0)
    assert len(policy.trainable()) == 2 * 2 * 7
