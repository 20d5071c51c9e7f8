"""Every protocol of the registry: its functions are there, and the shipped model answers by it."""

import pytest
import torch

from drbode import config
from drbode.config import (
    PROTOCOLS,
    BadInput,
    BenchmarkConfig,
    EvaluateConfig,
    load_function,
    names,
)
from drbode.data.prompts import Renderer
from drbode.evaluation import benchmarks
from drbode.models.base import Policy, load_policy
from drbode.models.machine import Machine
from tests.conftest import settings

CPU = Machine("cpu", "32-true", "fp32", "sdpa", 1)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(settings().model, torch.float32, "sdpa")


def benchmark_settings(protocol: str, *words: str) -> BenchmarkConfig:
    few = [f"benchmark={protocol}", "benchmark.questions=3", *words]
    return config.build(EvaluateConfig, config.compose("evaluate", few)).benchmark


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_each_protocol_has_its_yaml_and_answers_on_the_shipped_model(
    policy: Policy, protocol: str
) -> None:
    benchmark = benchmark_settings(protocol)
    assert benchmark.protocol == protocol
    traits = benchmark.traits
    loaded = load_function(traits.load, "", "")(benchmark, "default", "benchmark.path")
    rows = loaded.rows
    assert len(rows) == 3
    renderer = Renderer(policy.tokenizer, policy.context)
    answers = load_function(traits.function, "", "")(policy, renderer, rows, benchmark, CPU)
    assert len(answers) == 3
    written = traits.writes or traits.limit is not None
    assert all((answer.written is not None) == written for answer in answers)
    if traits.of_runs:
        summary = benchmarks.summarise(answers)
        assert summary["questions"] == 3
        assert 0 <= summary["accuracy"] <= 1
        assert benchmarks.compare(answers, answers)["all"]["difference"] == 0


@pytest.mark.parametrize("protocol", names(PROTOCOLS, encoders=True))
def test_what_asks_encoders_is_there(protocol: str) -> None:
    name = PROTOCOLS[protocol].encoder_function
    assert name is not None
    load_function(name, "", "")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_options_that_a_protocol_does_not_read_follow_from_its_traits(protocol: str) -> None:
    traits, unread = PROTOCOLS[protocol], benchmark_settings(protocol).unread()
    assert ("max_new_tokens" in unread) != traits.writes
    assert ("scorer" in unread) != traits.scored
    assert ("against" in unread) == ("reward" in unread) == traits.of_runs
    assert ("num_fewshot" in unread) != traits.examples
    assert benchmark_settings(protocol).answer_tokens == (traits.limit or 64)


def test_general_questions_are_asked_by_a_protocol_that_reads_questions() -> None:
    for protocol in PROTOCOLS:
        expected = protocol if PROTOCOLS[protocol].reads == "question" else "alternatives"
        assert benchmark_settings(protocol).question_protocol == expected


def test_an_encoder_is_not_asked_to_write() -> None:
    words = ["stages=mlm", "model=bertinho", "method=full", "benchmark=written"]
    with pytest.raises(BadInput, match=r"benchmark.protocol: an encoder writes no answer"):
        config.load(config.compose("train", words), words)
