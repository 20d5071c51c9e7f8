"""Prompts answered in writing: how rows are read, what a scorer is given, and what comes of it."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

from drbode import config
from drbode.config import BadInput, BenchmarkConfig, EvaluateConfig
from drbode.data.bodinho import QUESTIONS
from drbode.data.contamination import Check
from drbode.data.prompts import Renderer
from drbode.data.rows import Message, Prompt
from drbode.data.sources import Columns
from drbode.evaluation.benchmarks import answer, compare, load_benchmark, summarise
from drbode.evaluation.free_text import ScoredAnswer, prompt_text
from drbode.evaluation.scorers import contains_reference, exact_match, scores_of
from drbode.evaluation.statistics import wilson
from drbode.models.base import Policy, load_policy
from drbode.models.machine import Machine
from tests.conftest import settings

CPU = Machine("cpu", "32-true", "fp32", "sdpa", 1)
SCORERS = '''
import math

def seen(prompts, answers, references):
    """Hands on what it was given."""
    seen.was = (prompts, answers, references)
    return [0.25] * len(answers)

def ends(prompts, answers, references):
    return [answer.endswith(".") for answer in answers]

def clears(prompts, answers, references):
    count = len(answers)
    prompts.clear(), answers.clear(), references.clear()
    return [1] * count

def one(prompts, answers, references):
    return [1.0]

def nan(prompts, answers, references):
    return [math.nan] * len(answers)

def text(prompts, answers, references):
    return ["0.5"] * len(answers)

def huge(prompts, answers, references):
    return [10**400] * len(answers)

def two(prompts, answers, references):
    return [2.0] * len(answers)

def nothing(prompts, answers, references):
    pass

def fails(prompts, answers, references):
    raise ValueError("no idea")

def half(prompts, answers, references):
    for answer in answers:
        yield 1
        raise KeyError("gone")

def few(answers):
    return [1.0] * len(answers)

number = 3
'''


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("my_scorers", None)
    Path("my_scorers.py").write_text(SCORERS)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(settings().model, torch.float32, "sdpa")


def benchmark_settings(*words: str) -> BenchmarkConfig:
    overrides = ["benchmark=written", "benchmark.max_new_tokens=5", *words]
    return config.build(EvaluateConfig, config.compose("evaluate", overrides)).benchmark


def written(rows: list[dict[str, Any]], *words: str) -> BenchmarkConfig:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return benchmark_settings("benchmark.path=rows.jsonl", *words)


def given(scores: list[float], answers: list[str] | None = None) -> list[ScoredAnswer]:
    texts = answers or ["x"] * len(scores)
    return [
        ScoredAnswer(
            Prompt((Message("user", f"p{n}"),), None, f"row {n}"), score, written=text, stopped=True
        )
        for n, (score, text) in enumerate(zip(scores, texts, strict=True))
    ]


# --- rows ---------------------------------------------------------------------------------------


def test_a_row_is_a_prompt_and_a_reference_where_one_is_known() -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    rows = [
        {"prompt": "p", "reference": "r"},
        {"prompt": turns},
        {"prompt": "q", "chosen": "c", "rejected": "d"},
        {"prompt": "t", "chosen": "c", "reference": "r"},
    ]
    benchmark = load_benchmark(written(rows, "benchmark.scorer=my_scorers:ends"))
    prompts: Any = benchmark.rows
    assert [prompt_text(prompt) for prompt in prompts] == ["p", "system: s\nu", "q", "t"]
    assert [prompt.right for prompt in prompts] == ["r", None, "c", "r"]
    assert benchmark.as_dict()["questions"] == 4


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"prompt": "p"}], r"rows.jsonl, line 1: reference: .* set benchmark.scorer="),
        (
            [{"prompt": "p", "reference": "r"}] * 2,
            r"line 2: is the same prompt as rows.jsonl, line 1",
        ),
        ([{"text": "p"}], r"line 1: there is no field prompt"),
        ([{"prompt": "p", "reference": 3}], r"line 1: chosen: expected|line 1: reference"),
    ],
)
def test_a_row_that_cannot_be_asked_or_scored_is_refused(
    rows: list[dict[str, Any]], expected: str
) -> None:
    with pytest.raises(BadInput, match=expected):
        load_benchmark(written(rows))


@pytest.mark.parametrize("split", ["test", "validation", "general"])
def test_bodinhos_are_its_questions_with_the_text_of_the_right_answer(split: str) -> None:
    prompts: Any = load_benchmark(benchmark_settings(f"benchmark.split={split}")).rows
    questions = QUESTIONS[split]()
    assert [prompt_text(prompt) for prompt in prompts] == [q["enunciado"] for q in questions]
    assert [p.right for p in prompts] == [q["alternativas"][q["resposta"]] for q in questions]


def test_a_prompt_is_found_in_training_rows() -> None:
    stem = "Quem escreveu o romance sobre a moça que lia cartas antigas na fazenda do avô?"
    long = (
        "Explique em uma frase, sem citar nenhuma data nem nome de lugar, por que o barco do "
        "pescador mais velho da vila nunca voltava ao porto antes da maré cheia."
    )
    rows = [
        {"prompt": stem},
        {
            "prompt": [
                {"role": "system", "content": "Seja breve."},
                {"role": "user", "content": long},
            ]
        },
        {"prompt": "Quem pintou o teto da capela nova?", "reference": "Ninguém pintou"},
    ]
    prompts = load_benchmark(written(rows, "benchmark.scorer=my_scorers:ends")).rows
    check = Check(prompts, "stop")
    train = [
        {"text": f"Antes. {stem.upper()} Depois."},
        {"text": long.replace("nenhuma", "qualquer")},
        {"text": "Afinal quem pintou o teto da capela? Ninguém pintou."},
        {"text": "Nada disso se pergunta aqui, nem de longe, nem em outras palavras."},
    ]
    check.sift(
        [(f"line {n}", row) for n, row in enumerate(train, 1)], Columns(("text",)), "cpt", "train"
    )
    assert [
        (case.where, case.match.rule, case.match.question.where[-1]) for case in check.cases
    ] == [
        ("line 1", "verbatim", "1"),
        ("line 2", "almost", "2"),
        ("line 3", "beside its answer", "3"),
    ]
    with pytest.raises(BadInput, match=r"cpt.data.path: line 1: asks the benchmark's question"):
        check.refuse()


# --- scorers ------------------------------------------------------------------------------------


def test_the_built_in_scorers_by_hand() -> None:
    answers = ["É a Água, claro.", "agua", "aguardente", ""]
    references: list[str | None] = ["água"] * 4
    assert contains_reference([""] * 4, answers, references) == [1, 1, 0, 0]
    assert exact_match([""] * 4, answers, references) == [0, 1, 0, 0]


def test_a_scorer_is_given_prompts_answers_and_references(policy: Policy) -> None:
    rows = [{"prompt": "Qual é a capital?", "reference": "r"}, {"prompt": "E o agente da dengue?"}]
    benchmark = written(rows, "benchmark.scorer=my_scorers:seen")
    renderer = Renderer(policy.tokenizer, policy.context)
    results = answer(policy, renderer, load_benchmark(benchmark).rows, benchmark, CPU)
    import my_scorers  # type: ignore[import-not-results]

    prompts, answers, references = my_scorers.seen.was
    assert prompts == [row["prompt"] for row in rows]
    assert answers == [one.written for one in results]
    assert references == ["r", None]
    assert [one.score for one in results] == [0.25, 0.25]
    for prompt, one in zip(prompts, results, strict=True):
        ids = renderer.prompt([Message("user", prompt)])
        with policy.generating() as network, torch.no_grad():
            options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": -1}
            new = network.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist()
        end = renderer.turn_end[1]
        new = new[: new.index(end)] if end in new else new
        assert one.written == policy.tokenizer.decode(new, skip_special_tokens=True)
        assert one.tokens == len(ids) + len(new) + one.stopped
    one_by_one = replace(benchmark, max_tokens=1)
    again = answer(policy, renderer, load_benchmark(benchmark).rows, one_by_one, CPU)
    assert [one.written for one in again] == [one.written for one in results]


def test_numbers_of_any_kind_are_taken_and_lists_may_be_changed() -> None:
    def scores(name: str, highest: float = 1) -> list[float]:
        answers = ["a.", "b"]
        values = scores_of(f"my_scorers:{name}", "k", ["p", "q"], answers, [None] * 2, highest)
        assert answers == ["a.", "b"]
        return values

    assert scores("ends") == [1.0, 0.0]
    assert scores("clears") == [1.0, 1.0]
    assert scores("two", float("inf")) == [2.0, 2.0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("one", "k: my_scorers:one gave 1 scores for 2 answers; expected a finite number from 0"),
        ("nan", "k: my_scorers:nan gave nan for answer 1; expected a finite number from 0 to 1"),
        ("text", "k: my_scorers:text gave '0.5' for answer 1"),
        ("huge", "k: my_scorers:huge gave 1000"),
        ("two", "k: my_scorers:two gave 2.0 for answer 1; expected a finite number from 0 to 1"),
        ("nothing", "k: my_scorers:nothing gave NoneType; expected a list of numbers"),
        ("fails", r"k: my_scorers:fails failed \(ValueError: no idea, my_scorers.py line \d+\)"),
        ("half", r"k: my_scorers:half failed \(KeyError: 'gone', my_scorers.py line \d+\)"),
        ("few", "k: my_scorers:few: too many positional arguments; expected module:function of"),
        ("number", "k: my_scorers:number is no function"),
        ("absent", "k: my_scorers:absent could not be imported"),
    ],
)
def test_a_scorer_that_does_not_give_numbers_is_one_sentence(name: str, expected: str) -> None:
    with pytest.raises(BadInput, match=expected):
        scores_of(f"my_scorers:{name}", "k", ["p", "q"], ["a", "b"], [None, None], highest=1)


def test_a_scorer_is_looked_for_before_a_model_is_loaded() -> None:
    with pytest.raises(BadInput, match=r"benchmark.scorer: nowhere:score could not be imported"):
        load_benchmark(benchmark_settings("benchmark.scorer=nowhere:score"))
    with pytest.raises(BadInput, match=r"benchmark.scorer: expected module:function or null"):
        benchmark_settings("benchmark.scorer=contains")


def test_it_is_another_benchmark_when_the_scorers_code_changes() -> None:
    words = ["benchmark=written", "benchmark.scorer=my_scorers:ends"]
    evaluation = config.build(EvaluateConfig, config.compose("evaluate", words))
    name = evaluation.run_name()
    Path("my_scorers.py").write_text(SCORERS + "# changed\n")
    assert evaluation.run_name() != name


# --- what comes of the answers ------------------------------------------------------------------


def test_right_and_wrong_answers_are_counted_as_in_multiple_choice() -> None:
    before, after = given([1, 0, 0, 1]), given([1, 1, 1, 0], ["x", " ", "", ""])
    summary = summarise(after)
    assert (summary["accuracy"], summary["correct"], summary["questions"]) == (0.75, 3, 4)
    assert summary["interval"] == list(wilson(3, 4))
    assert (summary["unanswered"], summary["stop_rate"]) == (0.75, 1)
    assert (
        summary["chance"] is summary["floor_longest"] is summary["ece"] is summary["brier"] is None
    )
    assert summary["parts"] == {}
    assert not summary["at_chance"]
    pair = compare(before, after)["all"]
    assert (pair["gained"], pair["lost"], pair["test"]) == (2, 1, "exact McNemar")


def test_scores_in_between_get_students_t() -> None:
    one, two = [0.2, 0.4, 0.6, 0.1], [0.3, 0.9, 0.7, 0.0]
    summary = summarise(given(two))
    assert summary["accuracy"] == pytest.approx(0.475)
    expected = stats.t.interval(0.95, 3, loc=0.475, scale=stats.sem(two))
    assert summary["interval"] == pytest.approx([max(0, expected[0]), min(1, expected[1])])
    pair = compare(given(one), given(two))["all"]
    test = stats.ttest_rel(two, one)
    assert (pair["gained"], pair["lost"], pair["trials"], pair["test"]) == (3, 1, 4, "paired t")
    assert pair["difference"] == pytest.approx(0.15)
    assert pair["p_value"] == pytest.approx(test.pvalue)
    assert pair["interval"] == pytest.approx(tuple(test.confidence_interval()))


def test_rows_that_were_trained_on_are_left_out_of_clean() -> None:
    answers = given([1.0, 0.5, 0.0])
    assert summarise(answers, {"row 0"})["clean"]["accuracy"] == 0.25
    assert compare(answers, answers, {"row 0"})["clean"]["trials"] == 2
    assert summarise(answers)["clean"] is None


def test_a_prompt_without_room_for_its_answer_is_refused_by_its_line(policy: Policy) -> None:
    rows = [{"prompt": "p", "reference": "r"}, {"prompt": "dengue " * 2100, "reference": "r"}]
    benchmark = written(rows)
    renderer = Renderer(policy.tokenizer, policy.context)
    with pytest.raises(BadInput, match=r"rows.jsonl, line 2: prompt: \d+ tokens are too long"):
        answer(policy, renderer, load_benchmark(benchmark).rows, benchmark, CPU)
