"""The shipped laboratory: a table of medical facts, and forms that turn it into rows.

`conditions.csv` and `facts.csv` hold what is true, `medical.yaml` and `general.yaml` the wordings;
the code here only fills one into the other. Wordings of train, validation and test are disjoint. A
quarter of the conditions stand in passages alone, never in a chat row. `conditions` says which
there are: `default`, 40 whose values the base model has met under invented names, or `all`, these
and 92 more. Every function gives the same rows every time. For studying training methods; no
medical advice.
"""

import csv
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from typing import Any, Literal, Protocol

import yaml

LETTERS = "ABCDE"
IN_CHAT, IN_PASSAGES, GENERAL = "fatos em conversas", "fatos só em passagens", "gerais"
# `prova` of a benchmark question: where the condition's facts stand in the training rows.
EXAMS = {"chat": IN_CHAT, "passages": IN_PASSAGES}

Conditions = Literal["default", "all"]
Rows = list[dict[str, Any]]

_ARTICLES = {
    "a": {"art": "a", "Art": "A", "de": "da", "em": "na", "por": "pela", "ao": "à", "g": "a"},
    "o": {"art": "o", "Art": "O", "de": "do", "em": "no", "por": "pelo", "ao": "ao", "g": "o"},
    "": {},
}


@dataclass(frozen=True)
class Subject:
    name: str
    article: str  # a, o, or empty for names that take none


@dataclass(frozen=True)
class Fact:
    """One true value of a relation, and the other values that are true of the subject as well."""

    subject: Subject
    relation: str
    value: str
    also_true: frozenset[str]
    exam: str


@dataclass(frozen=True)
class Forms:
    """Wordings of a relation by split: `statements` take name and value, `questions` the name."""

    statements: Mapping[str, list[str]]
    questions: Mapping[str, list[str]]


def fill(form: str, subject: Subject, value: str = "") -> str:
    """A wording with the subject, its article's contractions, and the value put in."""
    return form.format(name=subject.name, value=value, **_ARTICLES[subject.article])


def tables(name: str) -> Any:
    """A shipped YAML file."""
    return yaml.safe_load(_file(f"{name}.yaml"))


def forms(relations: Mapping[str, Any]) -> dict[str, Forms]:
    return {n: Forms(r["statements"], r["questions"]) for n, r in relations.items()}


@cache
def medical(conditions: Conditions = "default") -> tuple[list[Fact], dict[str, Forms]]:
    """The facts in the order of their table, and the wordings of the six relations.

    A condition that no germ causes has no agente and no transmissão. `also_true` may name values
    that only conditions beyond the chosen ones have.
    """
    subjects = {
        row["condition"]: (Subject(row["condition"], row["article"]), EXAMS[row["seen_in"]])
        for row in csv.DictReader(_file("conditions.csv").split("\n"))
        if conditions == "all" or row["subset"] == "default"
    }
    facts = [
        Fact(
            subjects[row["condition"]][0],
            row["relation"],
            row["value"],
            frozenset(v for v in row["also_true"].split("|") if v),
            subjects[row["condition"]][1],
        )
        for row in csv.DictReader(_file("facts.csv").split("\n"))
        if row["condition"] in subjects
    ]
    return facts, forms(tables("medical")["relations"])


@cache
def general() -> tuple[list[Fact], dict[str, Forms]]:
    """Facts of other domains, which the base model knows: what training may make it forget."""
    facts = []
    wordings: dict[str, Forms] = {}
    for kind, table in tables("general")["kinds"].items():
        for name, form in forms(table["relations"]).items():
            wordings[f"{kind}/{name}"] = form
        for row in table["subjects"]:
            subject = Subject(row["name"], row.get("article", ""))
            facts += [
                Fact(subject, f"{kind}/{relation}", value, frozenset(), GENERAL)
                for relation, value in row["facts"].items()
            ]
    return facts, wordings


def passages(split: str, conditions: Conditions = "default") -> Rows:
    """Two statements a passage, or one where a condition's facts are odd in number.

    Over the split each fact stands once in each of its wordings.
    """
    facts, wordings = medical(conditions)
    return list(_passages(facts, wordings, split))


def general_passages() -> Rows:
    """General text in wordings that the base model was not trained on."""
    facts, wordings = general()
    return list(_passages(facts, wordings, "test"))


def chats(split: str, conditions: Conditions = "default") -> Rows:
    """A question and its answer a row, for the conditions that chat rows speak of.

    As people write, one answer in ten ends in advice, cautious or overconfident: enough for a
    policy to try either, and too little for it to prefer one.
    """
    facts, wordings = medical(conditions)
    endings = tables("medical")["endings"]
    chance = random.Random(f"chats {split}")
    rows = []
    for fact in facts:
        if fact.exam != IN_CHAT:
            continue
        for question in wordings[fact.relation].questions[split]:
            answer = f"{fact.value}."
            if chance.random() < 1 / 10:
                style = chance.choice(("cautious", "overconfident"))
                answer += f" {chance.choice(endings[style]['train'])}"
            rows.append(
                {
                    "data": [
                        {"role": "user", "content": fill(question, fact.subject)},
                        {"role": "assistant", "content": answer},
                    ]
                }
            )
    return rows


def pairs(split: str, conditions: Conditions = "default", said: str = "train") -> Rows:
    """Two right answers a prompt: the cautious one chosen, an overconfident or curt one rejected.

    On the conditions that chat rows speak of, a third of their questions; the endings are those of
    the split `said`. One rejected answer in eight is curt, which makes up for overconfident endings
    being a token or two longer: chosen and rejected are of the same length in the mean.
    """
    facts, wordings = medical(conditions)
    endings = tables("medical")["endings"]
    chance = random.Random(f"pairs {split}")
    rows = []
    for fact in facts:
        if fact.exam != IN_CHAT:
            continue
        question_forms = wordings[fact.relation].questions[split]
        for question in chance.sample(question_forms, max(1, len(question_forms) // 3)):
            curt = chance.random() < 1 / 8
            rejected = "" if curt else f" {chance.choice(endings['overconfident'][said])}"
            rows.append(
                {
                    "prompt": fill(question, fact.subject),
                    "chosen": f"{fact.value}. {chance.choice(endings['cautious'][said])}",
                    "rejected": f"{fact.value}.{rejected}",
                }
            )
    return rows


def questions(split: str, conditions: Conditions = "default") -> Rows:
    """The benchmark: a question a fact, in the columns of drbodebench."""
    facts, wordings = medical(conditions)
    return list(_questions(facts, wordings, split))


def example_questions(conditions: Conditions = "default") -> Rows:
    """Examples for the prompt: validation questions on the conditions that are not chosen.

    On the chosen ones they would give away what the benchmark asks, in other words.
    """
    chosen = {fact.subject for fact in medical(conditions)[0]}
    facts, wordings = medical("all")
    others = [fact for fact in facts if fact.subject not in chosen]
    return list(_questions(others, wordings, "validation"))


def references(split: str, conditions: Conditions = "default") -> Rows:
    """The benchmark's questions, to be answered in writing: each with the text of its answer."""
    return [_reference(row) for row in questions(split, conditions)]


def general_references() -> Rows:
    """Likewise of the general questions."""
    return [_reference(row) for row in general_questions()]


def _reference(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"prompt": row["enunciado"], "reference": row["alternativas"][row["resposta"]]}


def general_questions() -> Rows:
    """Questions on general facts, in wordings that the base model was not trained on."""
    facts, wordings = general()
    return list(_questions(facts, wordings, "test"))


def _pretraining() -> Rows:
    from drbode.data.bodinho.pretraining import documents

    return documents()


class Maker(Protocol):
    def __call__(self, conditions: Conditions = "default") -> Rows: ...


def _whichever(make: Callable[[], Rows]) -> Maker:
    """A maker of rows that are the same whichever conditions are chosen."""
    return lambda conditions="default": make()


TEXTS: dict[str, Maker] = {
    "train": partial(passages, "train"),
    "validation": partial(passages, "validation"),
    "test": partial(passages, "test"),
    "general": _whichever(general_passages),
    "pretraining": _whichever(_pretraining),
}
CHATS: dict[str, Maker] = {
    "train": partial(chats, "train"),
    "validation": partial(chats, "validation"),
    "test": partial(chats, "test"),
}
PAIRS: dict[str, Maker] = {
    "train": partial(pairs, "train"),
    "validation": partial(pairs, "validation"),
    "test": partial(pairs, "test"),
    "unseen": partial(pairs, "test", said="test"),  # endings that no training row has
}
QUESTIONS: dict[str, Maker] = {
    "test": partial(questions, "test"),
    "validation": partial(questions, "validation"),
    "general": _whichever(general_questions),
    "examples": example_questions,
}
REFERENCES: dict[str, Maker] = {
    "test": partial(references, "test"),
    "validation": partial(references, "validation"),
    "general": _whichever(general_references),
}


def _passages(
    facts: list[Fact], wordings: Mapping[str, Forms], split: str
) -> Iterator[dict[str, Any]]:
    chance = random.Random(f"passages {split}")
    by_subject: dict[Subject, list[Fact]] = {}
    for fact in facts:
        by_subject.setdefault(fact.subject, []).append(fact)
    for facts_of_subject in by_subject.values():
        rounds = max(len(wordings[f.relation].statements[split]) for f in facts_of_subject)
        for number in range(rounds):
            chance.shuffle(facts_of_subject)
            sentences = []
            for fact in facts_of_subject:
                choices = wordings[fact.relation].statements[split]
                form = choices[number % len(choices)]
                sentences.append(fill(form, fact.subject, fact.value))
            for at in range(0, len(sentences), 2):
                yield {"text": " ".join(sentences[at : at + 2])}


def _questions(
    facts: list[Fact], wordings: Mapping[str, Forms], split: str
) -> Iterator[dict[str, Any]]:
    chance = random.Random(f"questions {split}")
    letters = [LETTERS[i % len(LETTERS)] for i in range(len(facts))]
    chance.shuffle(letters)
    for number, (fact, letter) in enumerate(zip(facts, letters, strict=True), 1):
        form = chance.choice(wordings[fact.relation].questions[split])
        wrong = {f.value for f in facts if f.relation == fact.relation}
        wrong -= {fact.value, *fact.also_true}
        alternatives = chance.sample(sorted(wrong), len(LETTERS) - 1)
        alternatives.insert(LETTERS.index(letter), fact.value)
        yield {
            "origem": "bodinho",
            "prova": fact.exam,
            "numero": number,
            "enunciado": fill(form, fact.subject),
            "alternativas": dict(zip(LETTERS, alternatives, strict=True)),
            "resposta": letter,
            "contains_img": False,
            "img_description": None,
        }


def _file(name: str) -> str:
    return (resources.files(__name__) / name).read_text(encoding="utf-8")
