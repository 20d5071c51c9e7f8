"""The shipped laboratory: its form, its splits, and that names do not give answers away."""

import csv
import hashlib
import unicodedata
from collections import Counter
from importlib import resources

import pytest

from drbode.data import bodinho, sources

RELATIONS = ["agente", "transmissão", "sintoma", "exame", "tratamento", "prevenção"]


def bare(text: str) -> str:
    return unicodedata.normalize("NFD", text.lower()).encode("ascii", "ignore").decode()


def test_the_table_is_whole() -> None:
    facts, _ = bodinho.medical()
    assert len(facts) == 240
    by_condition: dict[str, list[str]] = {}
    for fact in facts:
        by_condition.setdefault(fact.subject.name, []).append(fact.relation)
        assert 0 < len(fact.value) <= 45
        assert not fact.value.endswith(".")
    assert len(by_condition) == 40
    assert all(relations == RELATIONS for relations in by_condition.values())
    for relation in RELATIONS:
        values = {f.value for f in facts if f.relation == relation}
        assert len(values) >= 8
        for fact in facts:
            if fact.relation == relation:
                assert fact.also_true <= values - {fact.value}
                assert len(values - fact.also_true) > 4
    parts = Counter(f.exam for f in facts)
    assert parts == {bodinho.IN_CHAT: 180, bodinho.IN_PASSAGES: 60}


def test_every_fact_names_its_guideline() -> None:
    table = (resources.files(bodinho) / "facts.csv").read_text(encoding="utf-8")
    assert all(len(row["guideline"]) > 8 for row in csv.DictReader(table.splitlines()))


def test_names_do_not_give_answers_away() -> None:
    for fact in bodinho.medical()[0]:
        stems = {w[:5] for w in bare(fact.subject.name).split() if len(w) >= 5}
        shared = stems & {w[:5] for w in bare(fact.value).split()}
        assert not shared, (fact.subject.name, fact.value)


@pytest.mark.parametrize("facts_and_forms", [bodinho.medical, bodinho.general])
def test_wordings_of_the_splits_are_disjoint_and_whole(facts_and_forms: object) -> None:
    facts, wordings = facts_and_forms()  # type: ignore[operator]
    for forms in wordings.values():
        for texts in (forms.statements, forms.questions):
            every = [t for split in ("train", "validation", "test") for t in texts[split]]
            assert len(every) == len(set(every))
    for fact in facts:
        forms = wordings[fact.relation]
        for split in ("train", "validation", "test"):
            for form in forms.statements[split]:
                said = bodinho.fill(form, fact.subject, fact.value)
                assert fact.subject.name in said
                assert fact.value in said
            for form in forms.questions[split]:
                asked = bodinho.fill(form, fact.subject, "\0")
                assert fact.subject.name in asked
                assert "\0" not in asked


def test_rows_are_the_same_every_time_and_of_the_size_promised() -> None:
    assert len(bodinho.passages("train")) == 1080
    assert len(bodinho.chats("train")) == 1620
    for rows in (bodinho.passages, bodinho.chats, bodinho.questions):
        assert rows("test") == rows("test")


def test_a_quarter_of_the_conditions_stand_in_passages_alone() -> None:
    only = {f.subject.name for f in bodinho.medical()[0] if f.exam == bodinho.IN_PASSAGES}
    assert len(only) == 10
    asked = " ".join(row["data"][0]["content"] for row in bodinho.chats("train"))
    told = " ".join(row["text"] for row in bodinho.passages("train"))
    for name in only:
        assert name not in asked
        assert name in told


def test_each_fact_stands_once_in_each_of_its_statements() -> None:
    facts, wordings = bodinho.medical()
    told = " ".join(row["text"] for row in bodinho.passages("train"))
    for fact in facts:
        for form in wordings[fact.relation].statements["train"]:
            assert told.count(bodinho.fill(form, fact.subject, fact.value)) == 1


@pytest.mark.parametrize("split", ["test", "validation"])
def test_the_benchmark_is_balanced_and_its_distractors_are_false(split: str) -> None:
    facts = {(f.subject.name, f.relation): f for f in bodinho.medical()[0]}
    rows = bodinho.questions(split)
    assert len(rows) == 240
    assert set(Counter(row["resposta"] for row in rows).values()) == {48}
    values = {r: {f.value for f in facts.values() if f.relation == r} for r in RELATIONS}
    for row, fact in zip(rows, facts.values(), strict=True):
        offered = list(row["alternativas"].values())
        assert len(set(offered)) == 5
        assert row["alternativas"][row["resposta"]] == fact.value
        assert set(offered) <= values[fact.relation] - fact.also_true
    longest = sum(
        row["resposta"] == max("ABCDE", key=lambda k, r=row: len(r["alternativas"][k]))
        for row in rows
    )
    assert longest < 72  # always taking the longest is no way to pass


def test_the_base_has_read_no_fact_of_the_laboratory() -> None:
    from drbode.data.bodinho.pretraining import documents

    names = {f.subject.name for f in bodinho.medical()[0]}
    text = bare(" ".join(row["text"] for row in documents(3000)))
    words = set(text.replace("?", " ").replace(".", " ").replace(",", " ").split())
    for name in names - {"raiva humana", "febre amarela"}:
        last = bare(name).split()[-1]
        assert len(last) < 4 or last not in words, name
    for name in names:
        assert f" {bare(name)} " not in text


def test_the_shipped_files_are_the_ones_that_were_measured() -> None:
    """A change here changes every number in the README: make the base model anew, or undo it."""
    expected = {
        "config.json": "19c87f8264a85bdd",
        "tokenizer.json": "7b4614df13e76441",
        "tokenizer_config.json": "6a6cd51d02bb6233",
        "chat_template.jinja": "94d754f89b5c4627",
        "model.safetensors": "a01eb0abc0e5581b",
    }
    base = resources.files(bodinho) / "base"
    found = {name: hashlib.sha256((base / name).read_bytes()).hexdigest()[:16] for name in expected}
    assert found == expected


def test_the_pretraining_text_is_the_one_that_the_base_was_trained_on() -> None:
    from drbode.data.bodinho.pretraining import documents

    text = "\n".join(row["text"] for row in documents(2000))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "5e87a24546ba7abc"


ROWS = {
    ("text", "train"): "fcd347bf79a9c473",
    ("text", "validation"): "5ce35e335af9de11",
    ("text", "test"): "762b775f5b58ff45",
    ("text", "general"): "82be389902c8a37e",
    ("chat", "train"): "7e2a620601e513b6",
    ("chat", "validation"): "a162c4b3a8e297de",
    ("chat", "test"): "00db431ec1bd3d5d",
    ("question", "test"): "1b23d1222e517763",
    ("question", "validation"): "8ec8f65b7f1388f6",
    ("question", "general"): "e7831a0560e03b19",
}


@pytest.mark.parametrize(("kind", "split"), ROWS)
def test_the_rows_are_the_ones_that_were_measured(kind: sources.Kind, split: str) -> None:
    found = sources.digest(sources.read(kind, "bodinho", split, None, ""))
    assert found == ROWS[kind, split]
