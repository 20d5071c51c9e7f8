from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from drbode.config import BadInput, BenchmarkConfig
from drbode.data.prompts import Renderer
from drbode.evaluation.multiple_choice import Answer, answer, compare, load_benchmark, summarise
from drbode.models.base import Policy, bodinho_folder
from drbode.models.machine import Machine

CPU = Machine("cpu", "32-true", "fp32", "sdpa", 1)
BODINHO = BenchmarkConfig("alternatives", "bodinho", None, "test", 40, 4096)


@pytest.fixture(scope="module")
def parts() -> tuple[Policy, Renderer, Any]:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(bodinho_folder())
    torch.manual_seed(0)
    shape = Qwen3Config.from_pretrained(bodinho_folder(), num_hidden_layers=1)
    policy = Policy(Qwen3ForCausalLM(shape), tokenizer)
    return policy, Renderer(tokenizer, 2048), load_benchmark(BODINHO).questions


def test_scores_are_mean_logps_of_the_alternatives(parts: Any) -> None:
    """Against one sequence at a time in plain transformers."""
    policy, renderer, questions = parts
    (found,) = answer(policy, renderer, questions[:1], 4096, CPU)
    (tree,) = renderer.alternatives(questions[0]).trees
    with policy.generating() as network, torch.no_grad():
        for score, completion in zip(found.scores.values(), tree.completions, strict=True):
            ids = torch.tensor([tree.prompt + completion.ids])
            logps = network(ids).logits[0, :-1].log_softmax(-1)
            own = logps.gather(-1, ids[0, 1:, None])[len(tree.prompt) - 1 :].mean()
            assert score == pytest.approx(float(own), abs=1e-5)
    assert sum(found.probabilities.values()) == pytest.approx(1)


def test_batch_size_changes_no_answer(parts: Any) -> None:
    policy, renderer, questions = parts
    alone = answer(policy, renderer, questions, 1, CPU)
    together = answer(policy, renderer, questions, 10_000, CPU)
    assert [a.letter for a in alone] == [a.letter for a in together]
    for one, two in zip(alone, together, strict=True):
        assert one.scores == pytest.approx(two.scores, abs=1e-5)


def test_the_policy_is_left_in_the_mode_it_was_in(parts: Any) -> None:
    policy, renderer, questions = parts
    policy.network.train()
    answer(policy, renderer, questions[:1], 4096, CPU)
    assert policy.network.training


def given(questions: Any, right: list[bool]) -> list[Answer]:
    answers = []
    for question, ok in zip(questions, right, strict=True):
        letters = list(question.alternatives)
        chosen = question.answer if ok else next(k for k in letters if k != question.answer)
        scores = {k: float(k == chosen) for k in letters}
        answers.append(Answer(question, scores, scores, cut=False))
    return answers


def test_the_summary_counts_whole_and_parts(parts: Any) -> None:
    _, _, questions = parts
    right = [i % 4 == 0 for i in range(40)]
    summary = summarise(given(questions, right))
    assert (summary["correct"], summary["questions"]) == (10, 40)
    assert summary["accuracy"] == 0.25
    assert summary["chance"] == pytest.approx(0.2)
    assert summary["at_chance"]
    assert summary["ece"] == pytest.approx(0.75)
    assert sum(p["questions"] for p in summary["parts"].values()) == 40
    assert sum(p["correct"] for p in summary["parts"].values()) == 10
    difference = compare(given(questions, right), given(questions, [True] * 40))["all"]
    assert (difference["gained"], difference["lost"]) == (30, 0)


def test_a_double_question_is_refused(tmp_path: Any) -> None:
    line = '{"enunciado": "q", "alternativas": {"A": "x", "B": "y"}, "resposta": "A"}\n'
    (tmp_path / "q.jsonl").write_text(line * 2)
    config = BenchmarkConfig("alternatives", str(tmp_path / "q.jsonl"), None, "test", None, 64)
    with pytest.raises(BadInput, match=r"line 2: is the same question as .*line 1"):
        load_benchmark(config)
