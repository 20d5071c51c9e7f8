"""Bits per byte and forgetting, by hand and against a plain pass of transformers."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from drbode import config
from drbode.data.prompts import Renderer
from drbode.data.rows import Text
from drbode.evaluation.forgetting import (
    Document,
    Known,
    document,
    load_general,
    measure,
    ratio_change,
    summarise,
    text_bits,
)
from drbode.models.base import Policy, load_policy
from drbode.models.machine import Machine
from tests.conftest import settings

CPU = Machine("cpu", "32-true", "fp32", "sdpa", 1)
TEXTS = ["São Luís é a capital do Maranhão.", "O código de duas letras do Acre é AC. " * 3]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(settings().model, torch.float32, "sdpa")


def test_bits_are_those_of_a_plain_pass_a_document_at_a_time(policy: Policy) -> None:
    renderer = Renderer(policy.tokenizer, policy.context)
    documents = [document(Text(text, ""), renderer) for text in TEXTS]
    measured = text_bits(policy, documents, 4096, CPU)
    for text, bits, one in zip(TEXTS, measured, documents, strict=True):
        ids = torch.tensor([policy.tokenizer(text)["input_ids"]])
        with torch.no_grad(), policy.generating() as network:
            loss = network(ids, labels=ids).loss  # the mean over all tokens but the first
        expected = float(loss) * (ids.shape[1] - 1) / math.log(2)
        assert bits == pytest.approx(expected, rel=1e-5)
        first = policy.tokenizer.decode(ids[0, :1])
        assert one.bytes == len(text.encode()) - len(first.encode())


def test_a_long_document_keeps_all_its_tokens_but_each_parts_first(policy: Policy) -> None:
    short = Renderer(policy.tokenizer, 8)
    cut = document(Text(TEXTS[1], ""), short)
    ids = policy.tokenizer(TEXTS[1])["input_ids"]
    assert [i for tree in cut.trees for i in tree.completions[0].ids] == ids
    assert sum(tree.supervised for tree in cut.trees) == len(ids) - len(cut.trees)


def test_the_same_whatever_the_batch(policy: Policy) -> None:
    renderer = Renderer(policy.tokenizer, policy.context)
    documents = [document(Text(text, ""), renderer) for text in TEXTS]
    together, alone = (text_bits(policy, documents, budget, CPU) for budget in (4096, 1))
    assert together == pytest.approx(alone, rel=1e-6)


def test_the_change_of_a_ratio_by_hand() -> None:
    change, interval = ratio_change([10.0, 20.0], [11.0, 23.0], [10, 10])
    assert change == pytest.approx(0.2)
    # What is left of the gains is -1 and 1, of standard deviation sqrt 2: 1.96 sqrt 2 sqrt 2 / 20.
    assert interval == pytest.approx((0.2 - 0.196, 0.2 + 0.196), abs=1e-4)
    # Gains in proportion to the bytes are a change without doubt.
    change, interval = ratio_change([0.0, 0.0], [1.0, 3.0], [10, 30])
    assert interval == pytest.approx((0.1, 0.1))


def test_forgetting_is_the_accuracy_lost(policy: Policy) -> None:
    renderer = Renderer(policy.tokenizer, policy.context)
    run = settings()
    general = load_general(run.forgetting, run.benchmark, renderer, CPU, "default")
    assert general.as_dict()["questions"] > 100
    few = replace(
        general,
        questions=replace(general.questions, rows=general.questions.rows[:12]),  # type: ignore
        documents=general.documents[:3],
    )
    known = measure(policy, renderer, few)
    assert summarise(known, known)["forgetting"] == 0
    assert summarise(known, known)["bits_per_byte_rise"]["difference"] == 0
    right = [i for i, a in enumerate(known.answers) if a.correct]
    spoiled = [replace(a, letter="Z") if i in right[:3] else a for i, a in enumerate(known.answers)]
    worse = Known(spoiled, [2 * b for b in known.bits], known.bytes)
    summary = summarise(known, worse)
    assert summary["forgetting"] == pytest.approx(3 / 12)
    assert summary["bits_per_byte"] == pytest.approx(2 * (known.bits_per_byte or 0))


def test_either_measure_can_be_left_out(policy: Policy) -> None:
    renderer = Renderer(policy.tokenizer, policy.context)
    run = settings("forgetting.questions_path=null", "forgetting.text_path=null")
    general = load_general(run.forgetting, run.benchmark, renderer, CPU, "default")
    assert summarise(*2 * [measure(policy, renderer, general)]) == {}
    words = ["forgetting.questions_path=null", "forgetting.text_path=null", "forgetting.split=x"]
    tree: Any = config.compose("train", words)
    with pytest.raises(config.BadInput, match="has no effect"):
        config.load(tree, words)


def test_bytes_without_text_are_none() -> None:
    assert Known([], [], []).bits_per_byte is None
    assert Document([], 0).bytes == 0
