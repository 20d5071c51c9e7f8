"""Answers as models write them, by hand, and the letter that each states.

Those below say nothing of the alternatives' texts; those in answers.jsonl, of many forms, do.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from drbode.evaluation.parser import first_letter, stated_letter
from drbode.evaluation.wordings import Wordings, folded

NEUTRAL = {
    "A": "violeta primeiro",
    "B": "carmim segundo",
    "C": "turquesa terceiro",
    "D": "ocre quarto",
    "E": "magenta quinto",
}
FILE = Path(__file__).with_name("answers.jsonl")
ANSWERS = [json.loads(line) for line in FILE.read_text("utf-8").splitlines()]

# Answers under the letter that they state, of the alternatives in NEUTRAL; `none` states none.
LETTERS = json.loads(Path(__file__).with_name("stated.json").read_text("utf-8"))
STATED: dict[str | None, list[str]] = {
    None if letter == "none" else letter: texts for letter, texts in LETTERS.items()
}


@pytest.mark.parametrize(
    ("text", "letter"), [(text, letter) for letter, texts in STATED.items() for text in texts]
)
def test_an_answer_states_its_letter_or_none(text: str, letter: str | None) -> None:
    assert stated_letter(text, NEUTRAL) == letter


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer["written"][:60])
def test_an_answer_to_a_question_states_its_letter_or_none(answer: dict[str, Any]) -> None:
    assert stated_letter(answer["written"], answer["alternatives"]) == answer["states"]


def test_there_are_many_of_every_kind() -> None:
    assert sum(map(len, STATED.values())) > 300
    assert all(len(texts) > 10 for texts in STATED.values())
    assert len(ANSWERS) >= 200
    assert sum(answer["states"] is None for answer in ANSWERS) >= 50
    assert {answer["states"] for answer in ANSWERS} >= set("ABCDEFGHIJ")


@pytest.mark.parametrize("marks", ["**{}**", "> {}", "### {}", "<p>{}</p>", "{}\n\n"])
def test_marks_around_an_answer_change_nothing(marks: str) -> None:
    for answer in ANSWERS:
        if "\n" not in answer["written"] and not re.search(r"[<{*]", answer["written"]):
            written = marks.format(answer["written"])
            assert stated_letter(written, answer["alternatives"]) == answer["states"], written


def test_a_text_alone_states_whatever_letter_it_has() -> None:
    """Where no letter is written, the letters of the question may change places."""
    changed = 0
    letter = re.compile(r"(?<!\w)(?:[A-J]|[b-df-j]|[ae](?=[).:*“”\"]))(?!\w)")
    for answer in ANSWERS:
        texts = answer["alternatives"]
        if answer["states"] and not letter.search(answer["written"]):
            other = dict(zip(texts, [*list(texts.values())[1:], texts["A"]], strict=True))
            (moved,) = [k for k, text in other.items() if text == texts[answer["states"]]]
            assert stated_letter(answer["written"], other) == moved, answer["written"]
            changed += 1
    assert changed > 30


def test_a_letter_before_the_text_of_another_alternative_is_no_answer() -> None:
    texts = {"A": "Diazepam", "B": "Sulfato de magnésio", "C": "Fenitoína"}
    for form in (
        "{}) {}",
        "Resposta: {}. {}",
        "A alternativa correta é:\n\n{}. {}",
        "letra {}: {}",
    ):
        for letter in texts:
            for other, text in texts.items():
                stated = letter if letter == other else None
                assert stated_letter(form.format(letter, text), texts) == stated


def test_a_letter_that_was_not_offered_is_no_answer() -> None:
    four = {letter: NEUTRAL[letter] for letter in "ABCD"}
    assert stated_letter("Resposta: E", four) is None
    assert stated_letter("Resposta: D. Aliás, resposta: E", four) is None


def test_a_long_answer_is_read_quickly() -> None:
    """No form backtracks without end: these take milliseconds, or for ever."""
    for text in ("a resposta " * 2000, "A, " * 3000, "- " * 5000, "( " * 5000, "\n" * 5000):
        assert stated_letter(text, NEUTRAL) is None


CONTAINED = {"A": "Hepatite", "B": "Hepatite B aguda", "C": "Hepatite B crônica"}
OPPOSITE = {"A": "Iniciar antibiótico.", "B": "Não iniciar antibiótico.", "C": "Hipertireoidismo"}
LONG = {
    "A": "Iniciar amoxicilina por via oral, orientar hidratação e reavaliar em 48 horas.",
    "B": "Iniciar amoxicilina por via oral, orientar hidratação e reavaliar em 72 horas.",
}


@pytest.mark.parametrize(
    ("alternatives", "text", "letter"),
    [
        (CONTAINED, "hepatite", "A"),
        (CONTAINED, "hepatite, pois", "A"),
        (CONTAINED, "hepatite C", None),
        (CONTAINED, "hepatite B", None),
        (CONTAINED, "a hepatite B aguda", "B"),
        (CONTAINED, "um quadro de hepatite B crônica", "C"),
        (OPPOSITE, "iniciar o antibiótico", "A"),
        (OPPOSITE, "não iniciar antibiótico", "B"),
        (OPPOSITE, "iniciar antibióticos", "A"),
        (OPPOSITE, "hipertiroidismo", "C"),  # a letter is wanting
        (OPPOSITE, "hipotireoidismo", None),
        (LONG, "iniciar amoxicilina via oral, hidratação e reavaliar em 48 horas", "A"),
        (LONG, "a administração de amoxicilina", None),
        (LONG, "iniciar amoxicilina por via oral, orientar hidratação e reavaliar", None),
        ({"A": "coorte", "B": "transversal"}, "coorte ou transversal", None),
        ({"A": "coorte", "B": "transversal"}, "coorte. O transversal", "A"),
    ],
)
def test_a_place_words_one_alternative_or_none(
    alternatives: dict[str, str], text: str, letter: str | None
) -> None:
    worded = Wordings(text, folded(text), alternatives).at(0)
    assert (worded and worded.letter) == letter


def test_folding_moves_no_character() -> None:
    text = "É a Opção Ç, à 10 ºC; İ também"
    assert folded(text) == "é a opcao c, a 10 ºc; i tambem"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("C", "C"),
        ("c)", "C"),
        ("Resposta: B", "E"),
        ("Não sei", "E"),
        ("nmxyz 12", None),
        ("", None),
    ],
)
def test_the_chapter_takes_the_first_letter_out_of_any_word(text: str, letter: str | None) -> None:
    assert first_letter(text) == letter
