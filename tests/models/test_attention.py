"""The one rule: a token sees its own prompt and its own completion before it, nothing else."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from drbode.models.attention import tree_attention_flex, tree_attention_sdpa
from drbode.models.base import Policy
from drbode.trees import Completion, Tree, pack
from tests.conftest import VOCABULARY, tiny


def ids(n: int) -> list[int]:
    return torch.randint(VOCABULARY, (n,)).tolist()


def forest() -> list[Tree]:
    torch.manual_seed(3)
    shapes = [(9, [4, 7, 1]), (0, [12]), (3, [5]), (6, [2, 2]), (1, [1, 9])]
    return [
        Tree(ids(p), [Completion(c := ids(n), [True] * len(c)) for n in ns]) for p, ns in shapes
    ]


def one_at_a_time(policy: Policy, trees: list[Tree]) -> torch.Tensor:
    """Logps of all supervised tokens by plain transformers, a sequence a forward pass."""
    found = []
    with policy.generating() as network:
        for tree in trees:
            for completion in tree.completions:
                sequence = torch.tensor([tree.prompt + completion.ids])
                logits = network(sequence).logits[0, :-1].log_softmax(-1)
                logps = logits.gather(-1, sequence[0, 1:, None]).squeeze(-1)
                found.append(logps[max(len(tree.prompt) - 1, 0) :])
    return torch.cat(found)


@pytest.mark.parametrize("backend", ["sdpa", "flex"])
def test_packed_trees_equal_one_sequence_at_a_time(family: str, backend: str) -> None:
    policy = Policy(tiny(family), None, backend)
    trees = forest()
    with torch.no_grad():
        found = policy.logps(pack(trees))
        expected = one_at_a_time(policy, trees)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_gradients_equal_one_sequence_at_a_time_with_and_without_checkpointing(family: str) -> None:
    trees = forest()
    gradients = []
    for way in ("plain", "checkpointed", "one at a time"):
        policy = Policy(tiny(family), None)
        if way == "checkpointed":
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})
            policy.network.train()
            for module in policy.network.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
        alone = way == "one at a time"
        logps = one_at_a_time(policy, trees) if alone else policy.logps(pack(trees))
        (logps * torch.arange(len(logps))).sum().backward()
        gradients.append({n: p.grad for n, p in policy.network.named_parameters()})
    for other in gradients[1:]:
        for name, expected in gradients[0].items():
            assert expected is not None, name
            scale = expected.abs().max()
            torch.testing.assert_close(
                other[name] / scale, expected / scale, atol=1e-5, rtol=0, msg=name
            )


def test_order_and_packing_change_nothing() -> None:
    policy = Policy(tiny("qwen3"), None)
    trees = forest()
    with torch.no_grad():
        together = policy.logps(pack(trees))
        apart = torch.cat([policy.logps(pack([tree])) for tree in trees])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", ["sdpa", "flex"])
def test_trees_after_a_prefix_equal_trees_that_hold_it(family: str, backend: str) -> None:
    """Positions go on from the prefix, every token sees it, and it serves again and again."""
    policy = Policy(tiny(family), None, backend)
    trees = [tree for tree in forest() if tree.prompt]
    before = ids(11)
    with torch.no_grad():
        prefix = policy.prefix(before)
        packs = [pack(trees), pack(trees[:1]), pack(trees)]
        found = [policy.logps(batch, prefix=prefix) for batch in packs]
        whole = [Tree(before + tree.prompt, tree.completions) for tree in trees]
        expected = one_at_a_time(policy, whole)
    for own in (found[0], found[2]):
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1], expected[: len(found[1])], atol=1e-5, rtol=0)
    assert prefix.get_seq_length() == 11


def test_a_prefix_is_run_without_dropout_or_gradient_and_leaves_the_mode() -> None:
    policy = Policy(tiny("gpt2"), None)  # the one with dropout
    before = ids(11)
    prefix = policy.prefix(before)
    policy.network.train()
    again = policy.prefix(before)
    assert policy.network.training
    for one, other in zip(prefix.layers, again.layers, strict=True):
        torch.testing.assert_close(one.keys, other.keys)
        assert not other.keys.requires_grad


def seen(layout: tuple[tuple[int, ...], ...]) -> torch.Tensor:
    """The rule without causality as a matrix, token by token."""
    owners = [(t, b) for t, tree in enumerate(layout) for b, n in enumerate(tree) for _ in range(n)]
    return torch.tensor([[kt == qt and kb in (0, qb) for kt, kb in owners] for qt, qb in owners])


@pytest.mark.parametrize("backend", ["sdpa", "flex"])
def test_an_encoder_sees_what_comes_after_in_its_own_prompt_and_completion(backend: str) -> None:
    policy = Policy(tiny("bert"), None, backend)
    batch = pack(forest())
    with torch.no_grad():
        found = policy.hidden(batch)
        with policy.generating() as network:
            expected = network.bert(
                batch.input_ids[None],
                attention_mask=seen(batch.layout)[None, None],
                position_ids=batch.positions[None],
            ).last_hidden_state[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", ["sdpa", "flex"])
def test_an_encoders_packed_sequences_equal_one_at_a_time(backend: str) -> None:
    policy = Policy(tiny("bert"), None, backend)
    torch.manual_seed(3)
    sequences = [ids(n) for n in (9, 1, 12, 4)]
    batch = pack([Tree([], [Completion(s, [False] * len(s))]) for s in sequences])
    with torch.no_grad():
        found = policy.hidden(batch)
        with policy.generating() as network:
            alone = [network.bert(torch.tensor([s])).last_hidden_state[0] for s in sequences]
    torch.testing.assert_close(found, torch.cat(alone), atol=1e-5, rtol=0)


def test_without_trees_it_raises() -> None:
    policy = Policy(tiny("qwen3"), None)
    with pytest.raises(ValueError, match="without a layout"):
        policy.network(torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="hold 3 tokens"):
        policy.hidden(replace(pack([Tree(ids(4), [])]), layout=((1, 2),)))


@pytest.mark.parametrize("backend", ["sdpa", "flex"])
@pytest.mark.parametrize("name", ["position_bias", "indexer_scores"])
def test_what_it_does_not_know_of_attention_is_refused(name: str, backend: str) -> None:
    attention = {"sdpa": tree_attention_sdpa, "flex": tree_attention_flex}[backend]
    module = torch.nn.Module()
    module.is_causal = True  # type: ignore[assignment]
    query, key, value = torch.randn(3, 1, 2, 4, 16)
    options = {"scaling": 0.25, "layout": ((1, 3),)}
    with pytest.raises(ValueError, match=f"does not know {name}"):
        attention(module, query, key, value, None, **options, **{name: 4})
    found, _ = attention(module, query, key, value, None, **options, **{name: None})
    expected = scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.25)
    torch.testing.assert_close(found, expected.transpose(1, 2))


@pytest.mark.parametrize("backend", ["sdpa", "flex"])
def test_a_window_that_is_not_causal_is_refused(backend: str) -> None:
    policy = Policy(tiny("bert"), None, backend)
    attention = {"sdpa": tree_attention_sdpa, "flex": tree_attention_flex}[backend]
    query = torch.randn(1, 2, 4, 16)
    module = policy.model.bert.encoder.layer[0].attention.self
    with pytest.raises(ValueError, match="sliding_window in decoders only"):
        attention(module, query, query, query, None, layout=((0, 4),), sliding_window=2)


def test_batched_generation_equals_single(family: str) -> None:
    policy = Policy(tiny(family), None)
    prompts = [ids(3), ids(9)]
    width = max(map(len, prompts))
    padded = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with policy.generating() as network:
        batched = network.generate(padded, attention_mask=mask, **options)[:, width:]
        for row, prompt in zip(batched, prompts, strict=True):
            alone = network.generate(torch.tensor([prompt]), **options)[0, len(prompt) :]
            assert row.tolist() == alone.tolist()
