import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from drbode import config
from drbode.config import BadInput, EvaluateConfig, LaboratoryConfig, build, compose, names
from drbode.data.prompts import Renderer
from drbode.evaluation.benchmarks import answer, compare, load_benchmark, summarise
from drbode.evaluation.multiple_choice import Choice
from drbode.evaluation.parser import first_letter, stated_letter
from drbode.models.base import Policy, bodinho_folder
from drbode.models.machine import Machine

CPU = Machine("cpu", "32-true", "fp32", "sdpa", 1)
WORDS = ("benchmark.questions=40", "benchmark.max_new_tokens=8")
BODINHO = build(EvaluateConfig, compose("evaluate", WORDS)).benchmark
LABORATORY = LaboratoryConfig("default")
PROTOCOLS = names(config.PROTOCOLS, reads="question")


@pytest.fixture(scope="module")
def parts() -> tuple[Policy, Renderer, Any]:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(bodinho_folder())
    torch.manual_seed(0)
    shape = Qwen3Config.from_pretrained(bodinho_folder(), num_hidden_layers=1)
    policy = Policy(Qwen3ForCausalLM(shape), tokenizer)
    return policy, Renderer(tokenizer, 2048), load_benchmark(BODINHO, LABORATORY).rows


def by(parts: Any, protocol: Any, count: int, max_tokens: int = 4096) -> list[Any]:
    policy, renderer, questions = parts
    config = replace(BODINHO, protocol=protocol, max_tokens=max_tokens)
    return answer(policy, renderer, questions[:count], config, CPU)


@pytest.mark.parametrize("protocol", ["alternatives", "letter"])
def test_scores_are_logps_of_texts_or_letters(parts: Any, protocol: str) -> None:
    """Against one sequence at a time in plain transformers: a text's mean, a letter's sum."""
    policy, renderer, questions = parts
    (choice,) = by(parts, protocol, 1)
    (tree,) = getattr(renderer, protocol)(questions[0]).trees
    assert choice.scores is not None
    with policy.generating() as network, torch.no_grad():
        for score, completion in zip(choice.scores.values(), tree.completions, strict=True):
            ids = torch.tensor([tree.prompt + completion.ids])
            logps = network(ids).logits[0, :-1].log_softmax(-1)
            picked = logps.gather(-1, ids[0, 1:, None])[len(tree.prompt) - 1 :]
            expected = picked.mean() if protocol == "alternatives" else picked.sum()
            assert score == pytest.approx(float(expected), abs=1e-5)
    assert choice.letter == max(choice.scores, key=choice.scores.__getitem__)
    assert choice.probabilities is not None
    assert sum(choice.probabilities.values()) == pytest.approx(1)
    ratio = choice.probabilities["A"] / choice.probabilities["B"]
    assert ratio == pytest.approx(math.exp(choice.scores["A"] - choice.scores["B"]))


def test_a_letter_of_several_tokens_is_scored_by_their_sum(parts: Any) -> None:
    policy, renderer, questions = parts
    whole = by(parts, "letter", 1)[0].scores
    ids = renderer._ids
    renderer_in_pieces = Renderer(renderer.tokenizer, 2048)
    renderer_in_pieces._ids = lambda text: ids(text) * 2 if text in "ABCDE" else ids(text)
    config = replace(BODINHO, protocol="letter")
    (choice,) = answer(policy, renderer_in_pieces, questions[:1], config, CPU)
    assert choice.scores is not None
    assert whole is not None
    assert all(choice.scores[k] < whole[k] - 1 for k in whole)  # twice as many tokens, no mean


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_batch_size_changes_no_answer(parts: Any, protocol: str) -> None:
    alone, together = by(parts, protocol, 16, 1), by(parts, protocol, 16, 10_000)
    assert [a.letter for a in alone] == [a.letter for a in together]
    assert [a.written for a in alone] == [a.written for a in together]
    for one, two in zip(alone, together, strict=True):
        assert one.scores == (two.scores and pytest.approx(two.scores, abs=1e-5))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_policy_is_left_in_the_mode_it_was_in(parts: Any, protocol: str) -> None:
    parts[0].network.train()
    by(parts, protocol, 1)
    assert parts[0].network.training


@pytest.mark.parametrize(("protocol", "limit"), [("generate", 8), ("chapter", 10)])
def test_a_written_answer_is_what_the_model_writes_after_the_prompt(
    parts: Any, protocol: str, limit: int
) -> None:
    policy, renderer, questions = parts
    for question, choice in zip(questions, by(parts, protocol, 3), strict=False):
        (tree,) = getattr(renderer, protocol)(question, limit).trees
        assert tree.completions == []
        with policy.generating() as network, torch.no_grad():
            ids = network.generate(
                torch.tensor([tree.prompt]), max_new_tokens=limit, do_sample=False
            )[0, len(tree.prompt) :].tolist()
        text = renderer.tokenizer.decode(ids, skip_special_tokens=True)
        rule = {
            "generate": lambda text, offered: stated_letter(text, offered),
            "chapter": lambda text, _: first_letter(text),
        }
        assert choice.letter == rule[protocol](text, question.alternatives)
        assert choice.written == choice.as_row()["written"] == text
        assert choice.stopped == (ids[-1] == renderer.turn_end[1])
        assert choice.scores is choice.probabilities is None


def given(questions: Any, right: list[bool]) -> list[Any]:
    answers = []
    for question, ok in zip(questions, right, strict=True):
        letters = list(question.alternatives)
        chosen = question.answer if ok else next(k for k in letters if k != question.answer)
        scores = {k: 50.0 * (k == chosen) for k in letters}
        answers.append(Choice(question, chosen, scores))
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
    assert summary["unanswered"] == 0
    assert summary["stop_rate"] is None
    assert sum(p["questions"] for p in summary["parts"].values()) == 40
    assert sum(p["correct"] for p in summary["parts"].values()) == 10
    difference = compare(given(questions, right), given(questions, [True] * 40))["all"]
    assert (difference["gained"], difference["lost"]) == (30, 0)


def test_no_answer_is_wrong_and_chance_stays(parts: Any) -> None:
    _, _, questions = parts
    answers = [
        Choice(q, q.answer if i < 10 else None, written="Não sei", stopped=i < 30)
        for i, q in enumerate(questions)
    ]
    summary = summarise(answers)
    assert (summary["correct"], summary["questions"]) == (10, 40)
    assert (summary["unanswered"], summary["stop_rate"]) == (0.75, 0.75)
    assert summary["chance"] == pytest.approx(0.2)
    assert summary["ece"] is summary["brier"] is None
    row = answers[-1].as_row()
    assert (row["predicted"], row["written"], row["stopped"]) == (None, "Não sei", False)


def test_parts_are_origins_and_their_exams_where_there_is_more_than_one(parts: Any) -> None:
    _, _, questions = parts
    places = [("R", "1"), ("R", "1"), ("R", "2"), ("S", "1"), ("S", "1")]

    def summary_of(places: list[tuple[str, str]]) -> dict[str, int]:
        rows = [
            replace(q, origin=origin, exam=exam)
            for q, (origin, exam) in zip(questions, places, strict=False)
        ]
        answers = given(rows, [True] * len(rows))
        assert compare(answers, answers).keys() == {"all", *summarise(answers)["parts"]}
        return {k: v["questions"] for k, v in summarise(answers)["parts"].items()}

    assert summary_of(places) == {"R": 3, "R, 1": 2, "R, 2": 1, "S": 2}
    assert summary_of(places[:3]) == {"1": 2, "2": 1}
    assert summary_of(places[:2]) == {}


def test_a_double_question_is_refused(tmp_path: Any) -> None:
    line = '{"enunciado": "q", "alternativas": {"A": "x", "B": "y"}, "resposta": "A"}\n'
    (tmp_path / "q.jsonl").write_text(line * 2)
    config = replace(BODINHO, path=str(tmp_path / "q.jsonl"), questions=None)
    with pytest.raises(BadInput, match=r"line 2: is the same question as .*line 1"):
        load_benchmark(config, LABORATORY)


@pytest.mark.parametrize("protocol", ["alternatives", "letter"])
def test_scores_that_are_no_numbers_are_refused(
    protocol: str, parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The highest of NaN is the first: a key that stands first would count as right."""
    logps = parts[0].logps
    monkeypatch.setattr(parts[0], "logps", lambda *a, **k: logps(*a, **k) * math.nan)
    with pytest.raises(BadInput, match=r"bodinho test row \d+: the model gives .* nan"):
        by(parts, protocol, 2)
