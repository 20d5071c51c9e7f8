"""The shipped laboratory: its form, its splits, and that names do not give answers away."""

import csv
import hashlib
import unicodedata
from collections import Counter
from importlib import resources
from typing import get_args

import pytest

from drbode.config import RowKind
from drbode.data import bodinho, sources

RELATIONS = ["agente", "transmissão", "sintoma", "exame", "tratamento", "prevenção"]
CHOICES = get_args(bodinho.Conditions)
# What no germ causes, and two whose germ and transmission are no fair question.
NO_GERM = """
acidente botrópico
acidente crotálico
acidente laquético
acidente elapídico
loxoscelismo
foneutrismo
latrodectismo
escorpionismo
herpes-zóster
febre reumática
hipertensão arterial
diabetes tipo 1
diabetes tipo 2
asma
doença pulmonar obstrutiva crônica
hipotireoidismo
hipertireoidismo
gota
artrite reumatoide
lúpus eritematoso sistêmico
osteoporose
anemia ferropriva
anemia falciforme
epilepsia
doença de Parkinson
doença de Alzheimer
enxaqueca
depressão
insuficiência cardíaca
fibrilação atrial
dislipidemia
doença renal crônica
glaucoma
catarata
psoríase
doença celíaca
doença do refluxo gastroesofágico
fibromialgia
endometriose
esclerose múltipla
esclerose lateral amiotrófica
miastenia gravis
doença de Crohn
retocolite ulcerativa
fenilcetonúria
fibrose cística
hemofilia A
espondilite ancilosante
rinite alérgica
infarto agudo do miocárdio
acidente vascular cerebral isquêmico
""".strip().splitlines()


def bare(text: str) -> str:
    return unicodedata.normalize("NFD", text.lower()).encode("ascii", "ignore").decode()


def rows_of(name: str) -> list[dict[str, str]]:
    text = (resources.files(bodinho) / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def test_the_default_table_is_whole() -> None:
    facts, _ = bodinho.medical()
    by_condition: dict[str, list[str]] = {}
    for fact in facts:
        by_condition.setdefault(fact.subject.name, []).append(fact.relation)
    assert len(by_condition) == 40
    assert all(relations == RELATIONS for relations in by_condition.values())
    parts = Counter(f.exam for f in facts)
    assert parts == {bodinho.IN_CHAT: 180, bodinho.IN_PASSAGES: 60}


def test_the_conditions_are_in_form() -> None:
    rows = rows_of("conditions.csv")
    assert len({row["condition"] for row in rows}) == len(rows) >= 100
    assert [row["subset"] for row in rows] == ["default"] * 40 + ["more"] * (len(rows) - 40)
    for row in rows:
        assert row["condition"] == row["condition"].strip()
        assert row["article"] in ("a", "o")
        assert row["seen_in"] in bodinho.EXAMS


def test_the_facts_are_in_form() -> None:
    rows = rows_of("facts.csv")
    values = {r: {row["value"] for row in rows if row["relation"] == r} for r in RELATIONS}
    assert all(len(own) >= 8 for own in values.values())
    seen: dict[str, list[str]] = {row["condition"]: [] for row in rows_of("conditions.csv")}
    for row in rows:
        seen[row["condition"]].append(row["relation"])
        assert row["value"] == " ".join(row["value"].split())
        assert 0 < len(row["value"]) <= 45
        assert not row["value"].endswith(".")
        assert len(row["guideline"]) > 8
        also = row["also_true"].split("|") if row["also_true"] else []
        assert len(also) == len(set(also))
        assert set(also) <= values[row["relation"]] - {row["value"]}
    for name, relations in seen.items():
        assert relations == [r for r in RELATIONS if r in relations], name
        assert len(relations) >= 3, name
    assert {n for n, own in seen.items() if not {"agente", "transmissão"} & set(own)} == set(
        NO_GERM
    )


@pytest.mark.parametrize("conditions", CHOICES)
def test_every_fact_leaves_distractors(conditions: bodinho.Conditions) -> None:
    facts, _ = bodinho.medical(conditions)
    for fact in facts:
        others = {f.value for f in facts if f.relation == fact.relation} - {fact.value}
        assert len(others - fact.also_true) > 4


def test_every_value_of_all_is_a_distractor_somewhere() -> None:
    """A value that stands among the alternatives only where it is right gives itself away."""
    facts, _ = bodinho.medical("all")
    for value, relation in {(f.value, f.relation) for f in facts}:
        told = [f for f in facts if f.relation == relation and f.value != value]
        assert sum(value not in f.also_true for f in told) > len(told) / 8, value


def test_names_do_not_give_answers_away() -> None:
    for fact in bodinho.medical("all")[0]:
        stems = {w[:5] for w in bare(fact.subject.name).split() if len(w) >= 5}
        shared = stems & {w[:5] for w in bare(fact.value).split()}
        assert not shared, (fact.subject.name, fact.value)


@pytest.mark.parametrize(
    "facts_and_forms", [bodinho.medical("all"), bodinho.general()], ids=["medical", "general"]
)
def test_wordings_of_the_splits_are_disjoint_and_whole(
    facts_and_forms: tuple[list[bodinho.Fact], dict[str, bodinho.Forms]],
) -> None:
    facts, wordings = facts_and_forms
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


def test_the_default_conditions_are_the_first_of_all() -> None:
    assert bodinho.medical("all")[0][:240] == bodinho.medical()[0]
    for split in ("train", "validation", "test"):
        for makers in (bodinho.TEXTS, bodinho.CHATS):
            rows = makers[split]()
            assert makers[split]("default") == rows
            more = makers[split]("all")
            assert more[: len(rows)] == rows
            assert len(more) > 2 * len(rows)


@pytest.mark.parametrize("makers", [bodinho.TEXTS, bodinho.QUESTIONS])
def test_general_rows_are_the_same_whichever_conditions(
    makers: dict[str, bodinho.Maker],
) -> None:
    assert makers["general"]("all") == makers["general"]()


@pytest.mark.parametrize("conditions", CHOICES)
def test_a_quarter_of_the_conditions_stand_in_passages_alone(
    conditions: bodinho.Conditions,
) -> None:
    facts, _ = bodinho.medical(conditions)
    only = {f.subject.name for f in facts if f.exam == bodinho.IN_PASSAGES}
    assert 4 * len(only) == len({f.subject.name for f in facts})
    asked = " ".join(row["data"][0]["content"] for row in bodinho.chats("train", conditions))
    told = " ".join(row["text"] for row in bodinho.passages("train", conditions))
    for name in only:
        assert name not in asked
        assert name in told


@pytest.mark.parametrize("conditions", CHOICES)
def test_each_fact_stands_once_in_each_of_its_statements(conditions: bodinho.Conditions) -> None:
    facts, wordings = bodinho.medical(conditions)
    told = " ".join(row["text"] for row in bodinho.passages("train", conditions))
    for fact in facts:
        for form in wordings[fact.relation].statements["train"]:
            assert told.count(bodinho.fill(form, fact.subject, fact.value)) == 1


@pytest.mark.parametrize("conditions", CHOICES)
@pytest.mark.parametrize("split", ["test", "validation"])
def test_the_benchmark_is_balanced_and_its_distractors_are_false(
    split: str, conditions: bodinho.Conditions
) -> None:
    facts = bodinho.medical(conditions)[0]
    rows = bodinho.QUESTIONS[split](conditions)
    assert len(rows) == len(facts)
    letters = Counter(row["resposta"] for row in rows)
    assert set(letters) == set("ABCDE")
    assert max(letters.values()) - min(letters.values()) <= 1
    values = {r: {f.value for f in facts if f.relation == r} for r in RELATIONS}
    for row, fact in zip(rows, facts, strict=True):
        assert fact.subject.name in row["enunciado"]
        offered = list(row["alternativas"].values())
        assert len(set(offered)) == 5
        assert row["alternativas"][row["resposta"]] == fact.value
        assert set(offered) <= values[fact.relation] - fact.also_true
    longest = sum(
        row["resposta"] == max("ABCDE", key=lambda k, r=row: len(r["alternativas"][k]))
        for row in rows
    )
    assert longest < 0.3 * len(rows)  # always taking the longest is no way to pass


def test_the_base_has_read_no_fact_of_the_laboratory() -> None:
    from drbode.data.bodinho.pretraining import documents

    names = {f.subject.name for f in bodinho.medical("all")[0]} - {"gota"}  # "gota espessa"
    text = bare(" ".join(row["text"] for row in documents(3000)))
    words = set(text.replace("?", " ").replace(".", " ").replace(",", " ").split())
    common = {"raiva humana", "febre amarela", "doença da arranhadura do gato", "herpes genital"}
    for name in names - common:
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
    ("chat", "train"): "3a041b64371cc94f",
    ("chat", "validation"): "c6efc4fdb9ae93b9",
    ("chat", "test"): "fe25eb6018db946d",
    ("pair", "train"): "86807af0772c89d9",
    ("pair", "validation"): "aff9d78b1af69f67",
    ("pair", "test"): "5e177d8f30bd28ea",
    ("pair", "unseen"): "7756f919dcfa62f6",
    ("question", "test"): "1b23d1222e517763",
    ("question", "validation"): "8ec8f65b7f1388f6",
    ("question", "general"): "e7831a0560e03b19",
}


@pytest.mark.parametrize(("kind", "split"), ROWS)
def test_the_rows_are_the_ones_that_were_measured(kind: RowKind, split: str) -> None:
    found = sources.digest(sources.read(kind, "bodinho", split, None, ""))
    assert found == ROWS[kind, split]
