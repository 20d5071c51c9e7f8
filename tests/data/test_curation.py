"""Curation: each filter on rows made by hand, and the choice of few of them."""

import random
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from drbode.config import BadInput
from drbode.data.curation import (
    Curation,
    Difficulty,
    Row,
    curt,
    easy,
    elaboration,
    farthest_first,
    foreign,
    nearly_repeated,
    repeated,
    uncovered,
    undrawn,
    valid,
)
from drbode.data.duplicates import plain
from drbode.data.prompts import Rendered
from drbode.data.rows import parse_chat
from drbode.data.sources import Record
from drbode.trees import Completion, Tree
from tests.conftest import settings


def row(number: int, prompt: str = "", answer: str = "") -> Row:
    return Row(number, f"row {number}", {}, prompt, answer, plain(f"{prompt} {answer}"))


def record(number: int, prompt: str, answer: str) -> Record:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return f"row {number}", {"data": turns}


def render(where: str, fields: Any) -> Rendered:
    """A token a word of the answer; rows of more than nine words do not fit."""
    answer = parse_chat(fields, where).messages[-1].content.split()
    if len(answer) > 9:
        return Rendered([], dropped="longer than 9 tokens")
    return Rendered([Tree([1], [Completion([2] * len(answer), [True] * len(answer))])])


def test_rows_that_cannot_be_trained_on_are_not_valid() -> None:
    broken = ("row 1", {"data": [{"role": "user", "content": "Só pergunta?"}]})
    rows, reasons = valid(
        [record(0, "Zika?", "vírus."), broken, record(2, "A?", "b " * 10), record(3, "A?", "B")],
        render,
        "data",
    )
    assert [(r.number, r.prompt, r.answer, r.text) for r in rows] == [
        (3, "A?", "B", "a b"),
        (0, "Zika?", "vírus.", "zika vírus"),
    ]
    assert list(reasons) == [1, 2]
    assert reasons[1].startswith("data: expected a user turn and an assistant turn")
    assert reasons[2] == "longer than 9 tokens"


def test_other_languages_are_told_from_portuguese() -> None:
    rows = [
        row(0, "Qual exame confirma o tétano?", "avaliação clínica e epidemiológica."),
        row(1, "Which test confirms tetanus?", "clinical and epidemiological assessment."),
        row(2, "¿Qué examen confirma el tétanos?", "evaluación clínica y epidemiológica."),
        row(3, "1 + 1?", "2"),
    ]
    reasons = foreign(rows)
    assert list(reasons) == [1, 2, 3]
    assert [reasons[i].split(" (")[0] for i in (1, 2)] == ["reads as en", "reads as es"]


def test_of_equal_rows_the_first_stays_and_of_near_ones_the_longest() -> None:
    rows = [row(0, "Qual é?", "A dengue."), row(1, "qual é", "a Dengue!"), row(2, "Outra", "x")]
    assert repeated(rows) == {1: "has the words of row 0"}
    words = " ".join(f"palavra{n}" for n in range(60))
    rows = [row(0, "P?", words), row(1, "P?", f"{words} e mais"), row(2, "P?", "outra coisa")]
    assert nearly_repeated(rows) == {0: "nearly repeats row 1"}


def test_what_the_model_answers_and_the_easier_half_are_dropped() -> None:
    rows = [row(n, answer=str(n)) for n in range(5)]
    losses = [0.1, 3.0, 2.0, 1.0, 4.0]
    measured = {n: Difficulty(loss, answered=n == 4) for n, loss in enumerate(losses)}
    reasons = easy(rows, measured, count=1)
    assert reasons[4] == "the model answers so itself"  # though its loss is the highest
    assert set(reasons) == {0, 3, 4}
    assert reasons[3] == "1.000 nats a token, in the easier half"
    assert set(easy(rows, measured, count=3)) == {0, 4}  # three are to stay
    assert set(easy(rows, measured, count=9)) == {4}


def test_elaboration_is_limos_weighted_rule_by_hand() -> None:
    rows = [
        row(0, answer="tome dipirona"),
        row(1, answer="pode ser dengue pois há febre portanto confirme com exame"),
        row(2, answer="tome dipirona agora"),
    ]
    found = elaboration(rows)
    # 10 words: 1 verifies, 1 explores ('pode ser'), 2 connect ('pois', 'portanto').
    expected = {"words": 10, "verifies": 0.1, "explores": 0.1, "connects": 0.2, "elaboration": 1}
    assert found[1] == pytest.approx(expected)  # above both others in everything
    assert found[0]["elaboration"] == 0
    assert found[2]["elaboration"] == pytest.approx(0.3 * 1 / 2)  # longer than one of two
    assert set(curt(rows, found, count=1)) == {0}
    assert set(curt(rows, found, count=3)) == set()


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("verifies", "Verifique a pressão, confirme o laudo, procure um médico, confira a dose."),
        ("explores", "Talvez; é possível; provavelmente; suspeite."),
        ("connects", "Portanto, já que, porque, por isso."),
    ],
)
def test_phrases_of_each_kind_are_counted_a_word(kind: str, answer: str) -> None:
    found = elaboration([row(0, answer=answer)])[0]
    assert found[kind] * found["words"] == pytest.approx(4)
    others = {"verifies", "explores", "connects"} - {kind}
    assert all(found[other] == 0 for other in others)


def test_each_topic_gives_its_most_elaborate_row() -> None:
    rows = [
        *(row(n, "dengue mosquito febre", f"resposta{n}") for n in range(3)),
        *(row(n, "tétano ferida vacina", f"resposta{n}") for n in range(3, 6)),
    ]
    elaborate = {n: {"elaboration": float(n % 3)} for n in range(6)}
    reasons, topics = uncovered(rows, elaborate, count=2)
    assert set(range(6)) - set(reasons) == {2, 5}
    assert reasons[0] == "of the topic of row 2"
    assert topics[0] == topics[1] == topics[2] != topics[3] == topics[4] == topics[5]


def test_farthest_first_takes_one_of_each_kind_before_a_second() -> None:
    texts = [
        f"{kind} {kind} comum{n}" for kind in ("um", "dois", "três", "quatro") for n in "abcde"
    ]
    centres, owners = farthest_first(texts, 4)
    assert sorted(i // 5 for i in centres) == [0, 1, 2, 3]
    assert all(centres[owner] // 5 == i // 5 for i, owner in enumerate(owners))
    assert sorted(farthest_first(["a b", "a b", "c"], 9)[0]) == [0, 1, 2]
    assert farthest_first([], 3) == ([], [])


def test_a_random_choice_follows_the_seed() -> None:
    rows = [row(n) for n in range(50)]
    drawn = [set(range(50)) - set(undrawn(rows, 10, seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 10
    assert undrawn(rows, 60, 0) == {}


def records() -> list[Record]:
    kinds = ["dengue", "malária", "tétano", "sarampo", "raiva", "gripe"]
    found = [
        record(n, f"Qual é o tratamento da {kinds[n % 6]} no caso {n}?", f"tome o remédio {n}.")
        for n in range(30)
    ]
    found.append(record(30, "qual é o tratamento da DENGUE no caso 0", "Tome o remédio 0!"))
    found.append(record(31, "What is the treatment of malaria?", "take this medicine every day."))
    found.append(("row 32", {"data": []}))
    return found


def measure(rows: Iterable[Sequence[Tree]]) -> list[Difficulty]:
    return [Difficulty(float(number), number < 3) for number, _ in enumerate(rows)]


def curated(found: Sequence[Record], by: str, count: int = 5, seed: int = 0) -> Curation:
    config = settings(f"sft.curation={by}", f"sft.curation_n={count}").sft
    curation = Curation(config, seed)
    curation.screen(found, render)
    curation.split = curation.finish(measure)  # type: ignore[attr-defined]
    return curation


def chosen(curation: Curation) -> list[str]:
    return [found["curation"]["where"] for found in curation.chosen()]


def test_the_funnel_adds_up_and_every_dropped_row_has_a_reason() -> None:
    curation = curated(records(), "limo")
    told = curation.as_dict()
    assert (told["by"], told["asked"], told["chosen"]) == ("limo", 5, 5)
    funnel = told["funnel"]
    assert [(step["filter"], step["dropped"]) for step in funnel] == [
        ("validity", 1),
        ("language", 1),
        ("duplicates", 1),
        ("near duplicates", 0),
        ("difficulty", 3 + 13),  # 30 are left: three are answered, of 27 the easier half goes
        ("elaboration", 7),
        ("coverage", 2),
    ]
    assert funnel[0]["before"] == 33
    for step, following in zip(funnel, [*funnel[1:], {"before": 5}], strict=True):
        assert step["before"] - step["dropped"] == step["left"] == following["before"]
    where = [gone["where"] for gone in curation.dropped]
    assert sorted([*where, *chosen(curation)]) == sorted(w for w, _ in records())
    assert all(gone["reason"] for gone in curation.dropped)


@pytest.mark.parametrize("by", ["limo", "random", "diverse"])
def test_the_choice_does_not_depend_on_the_order_of_the_rows(by: str) -> None:
    shuffled = records()
    random.Random(1).shuffle(shuffled)
    first, again, other = (curated(found, by) for found in (records(), records(), shuffled))
    assert chosen(first) == chosen(again)
    assert sorted(chosen(first)) == sorted(chosen(other))
    assert len(chosen(first)) == 5
    assert chosen(first) == [w for w, _ in records() if w in chosen(first)]  # in their own order


def test_the_seed_changes_a_random_choice_alone() -> None:
    for by in ("limo", "diverse"):
        assert chosen(curated(records(), by)) == chosen(curated(records(), by, seed=1))
    assert chosen(curated(records(), "random")) != chosen(curated(records(), "random", seed=1))


def test_rows_chosen_are_rendered_and_carry_their_scores() -> None:
    curation = curated(records(), "limo")
    split = curation.split  # type: ignore[attr-defined]
    assert split.ledger.rows == len(split.trees) == 5
    by_name = dict(records())
    for found in curation.chosen():
        scores = found.pop("curation")
        assert found == by_name[scores["where"]]
        assert scores["loss"] >= 16  # of the harder half
        assert {"answered", "words", "verifies", "elaboration", "topic"} < set(scores)


def test_fewer_rows_than_asked_for_are_told_and_none_is_refused() -> None:
    few = curated(records()[:4], "random", count=10)
    assert few.as_dict()["chosen"] == 4
    with pytest.raises(
        BadInput, match=r"limo leaves no row of bodinho .*1 by language.*reads as en"
    ):
        curated([record(0, "What is dengue?", "it is a disease of the blood.")], "limo")
    with pytest.raises(BadInput, match="the model already answers every row"):
        curated(records()[:3], "limo")
