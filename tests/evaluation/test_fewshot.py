"""Questions with examples before them: what is shared changes no answer, and is told."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from drbode import config
from drbode.config import BadInput, BenchmarkConfig, names
from drbode.data.prompts import Renderer
from drbode.evaluation import multiple_choice
from drbode.evaluation.benchmarks import answer, cost, load_benchmark, summarise
from drbode.models.base import Policy, bodinho_folder
from drbode.models.machine import Machine

CPU = Machine("cpu", "32-true", "fp32", "sdpa", 1)
PROTOCOLS = names(config.PROTOCOLS, reads="question")
QUESTIONS = 16


def settings(**changes: Any) -> BenchmarkConfig:
    words = ["benchmark.num_fewshot=3", f"benchmark.questions={QUESTIONS}"]
    tree = config.build(config.EvaluateConfig, config.compose("evaluate", words))
    return replace(tree.benchmark, max_new_tokens=4, **changes)


@pytest.fixture(scope="module", params=["qwen3", "llama", "gpt2"])
def policy(request: pytest.FixtureRequest) -> Policy:
    """A network of each family with bodinho's vocabulary."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(bodinho_folder())
    size = len(tokenizer)
    if request.param == "gpt2":
        shape = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=1024, vocab_size=size)
        return Policy(GPT2LMHeadModel(shape).eval(), tokenizer)
    known = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}
    shape, network = known[request.param]
    config = shape(
        vocab_size=size,
        max_position_embeddings=1024,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    return Policy(network(config).eval(), tokenizer)


def answered(policy: Policy, length: int = 1024, **changes: Any) -> list[Any]:
    config = settings(**changes)
    renderer = Renderer(policy.tokenizer, length)
    return answer(policy, renderer, load_benchmark(config).rows, config, CPU)


def same(some: list[Any], others: list[Any]) -> None:
    assert [a.letter for a in some] == [a.letter for a in others]
    assert [a.written for a in some] == [a.written for a in others]
    for one, other in zip(some, others, strict=True):
        assert one.scores == (other.scores and pytest.approx(other.scores, abs=1e-5))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_shared_prefix_changes_no_answer_whatever_the_batch(
    policy: Policy, protocol: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = answered(policy, protocol=protocol)
    alone = answered(policy, protocol=protocol, max_tokens=1)
    assert all(a.shared > 60 for a in together)
    assert len({a.shared for a in together}) == 1
    monkeypatch.setattr(multiple_choice, "WORTH_SHARING", 10**6)
    unshared = answered(policy, protocol=protocol)
    assert not any(a.shared for a in unshared)
    same(together, unshared)
    same(alone, unshared)
    assert [a.tokens for a in together] == [a.tokens for a in unshared]


@pytest.mark.parametrize("policy", ["qwen3"], indirect=True)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_prefix_is_run_once_and_each_question_without_it(
    policy: Policy, protocol: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []
    forward = policy.model.base_model.forward

    def counted(**given: Any) -> Any:
        runs.append(given["input_ids"].numel())
        return forward(**given)

    monkeypatch.setattr(policy.model.base_model, "forward", counted)
    answers = answered(policy, protocol=protocol, max_tokens=100_000)
    shared = answers[0].shared
    assert runs[0] == shared
    if protocol in ("alternatives", "letter"):
        assert runs == [shared, sum(a.tokens - shared for a in answers)]
    else:  # all prompts in one batch, padded, then a token of each at a time
        assert runs[1] < QUESTIONS * 150
        assert set(runs[2:]) == {QUESTIONS}


@pytest.mark.parametrize("policy", ["qwen3"], indirect=True)
def test_whole_examples_are_dropped_as_told_and_counted(policy: Policy) -> None:
    with pytest.raises(BadInput, match=r"its 8 examples do not fit .*fewshot_overflow=drop"):
        answered(policy, length=404, protocol="letter", num_fewshot=8)
    answers = answered(
        policy, length=404, protocol="letter", num_fewshot=8, fewshot_overflow="drop"
    )
    told = summarise(answers)["examples_dropped"]
    assert told == {
        str(n): count for n, count in sorted(Counter(a.dropped for a in answers).items())
    }
    assert len(told) > 1  # questions of different lengths lose different numbers
    for one in answers:
        assert len(one.question.examples) == 8 - one.dropped
        assert len(one.as_row()["examples"]) == 8 - one.dropped
        assert one.tokens <= 404 + 4
        assert not one.cut
    # Those that are kept are the last ones: those that a smaller num_fewshot gives.
    for count in {8 - a.dropped for a in answers}:
        group = [a for a in answers if len(a.question.examples) == count]
        fewer = answered(policy, protocol="letter", num_fewshot=count)
        numbers = {a.question.number for a in group}
        alike = [a for a in fewer if a.question.number in numbers]
        same(group, alike)
        assert [a.as_row()["examples"] for a in group] == [a.as_row()["examples"] for a in alike]


@pytest.mark.parametrize("policy", ["qwen3"], indirect=True)
def test_a_question_without_room_for_any_example_is_asked_without(policy: Policy) -> None:
    answers = answered(policy, length=130, protocol="letter", fewshot_overflow="drop")
    assert {a.dropped for a in answers} == {3}
    same(answers, answered(policy, length=130, protocol="letter", num_fewshot=0))


@pytest.mark.parametrize("policy", ["qwen3"], indirect=True)
def test_the_cost_is_the_mean_over_the_questions(policy: Policy) -> None:
    few, none = answered(policy), answered(policy, num_fewshot=0)
    means = cost(few)
    assert means["tokens_per_question"] == sum(a.tokens for a in few) / QUESTIONS
    assert means["shared_tokens_per_question"] == few[0].shared
    assert means["seconds_per_question"] == pytest.approx(few[0].seconds)
    assert means["seconds_per_question"] > 0
    assert cost(none)["tokens_per_question"] < means["tokens_per_question"]
    assert cost(none)["shared_tokens_per_question"] == 0
