"""Rows are checked where they come in, and a complaint names file, line and field."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from drbode.config import BadInput
from drbode.data import sources
from drbode.data.rows import parse_chat, parse_question, parse_text

USER = {"role": "user", "content": "oi"}
BOT = {"role": "assistant", "content": "olá"}
EXAM = {
    "origem": "x",
    "prova": "2024",
    "numero": 1,
    "enunciado": "Qual?",
    "alternativas": {"A": "um", "B": "dois", "C": "  ", "D": None, "E": ""},
    "resposta": "b",
    "contains_img": False,
    "img_description": None,
}


def test_a_question_keeps_only_alternatives_with_text() -> None:
    question = parse_question(EXAM, "f, line 1")
    assert question.alternatives == {"A": "um", "B": "dois"}
    assert question.blank == {"C": "", "D": "None", "E": ""}
    assert question.answer == "B"
    assert question.image is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"resposta": "D"}, ["f, line 7", "resposta", "A, B", "'D'"]),
        ({"resposta": None}, ["f, line 7", "resposta"]),
        ({"alternativas": {"A": "um"}}, ["alternativas", "two or more"]),
        ({"alternativas": 3}, ["alternativas", "a list of texts", "int"]),
        ({"alternativas": {"A": "um", "K": "onze"}}, ["alternativas", "A to J", "'K'"]),
        ({"alternativas": {"A": "um", "B": "um"}}, ["alternativas", "A and B are the same"]),
        ({"resposta": 7}, ["resposta", "an index from 0", "got 7"]),
        ({"enunciado": " "}, ["enunciado", "expected text"]),
    ],
)
def test_a_bad_question_is_refused(change: dict[str, object], words: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        parse_question(EXAM | change, "f, line 7")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([USER], ["f, line 2", "an assistant turn", "['user']"]),
        ([BOT, USER], ["an assistant turn"]),
        ([USER, {"role": "bot", "content": "x"}], ["turn 2", "role", "'bot'"]),
        ([USER, {"role": "assistant"}], ["turn 2", "no field content"]),
        ([USER, {"role": "assistant", "content": ""}], ["turn 2", "content", "expected text"]),
        ("oi", ["expected a list", "str"]),
    ],
)
def test_a_bad_conversation_is_refused(turns: object, words: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        parse_chat({"data": turns}, "f, line 2")
    for word in words:
        assert word in str(caught.value)


def test_a_missing_column_names_those_there() -> None:
    with pytest.raises(BadInput, match="no field text; expected it beside texto, fonte"):
        parse_text({"texto": "a", "fonte": "b"}, "f, line 1")


def read(path: Path) -> Sequence[sources.Record]:
    return sources.read("chat", str(path), "train", None, "sft.data.path")


def test_files_of_every_kind_hold_the_same_rows(tmp_path: Path) -> None:
    from pyarrow import Table, parquet

    rows = [{"data": [USER, BOT]}, {"data": [USER, BOT, USER, BOT]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (tmp_path / "a.json").write_text(json.dumps(rows))
    parquet.write_table(Table.from_pylist(rows), tmp_path / "a.parquet")
    found = [read(tmp_path / f"a.{kind}") for kind in ("jsonl", "json", "parquet")]
    for records in found:
        assert [fields for _, fields in records] == rows
    assert len({sources.digest(records) for records in found}) == 1
    assert found[0][1][0].endswith("a.jsonl, line 2")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"data": 1}\n{"data": ', ["a.jsonl, line 2", "no JSON"]),
        ("a.jsonl", "[1]\n", ["a.jsonl, line 1", "an object"]),
        ("a.jsonl", "", ["holds no rows"]),
        ("a.json", '{"data": 1}', ["a.json", "a list of rows"]),
        ("a.parquet", "nothing of the kind", ["a.parquet", "no parquet"]),
        ("a.csv", "x", ["sft.data.path", "holds no rows"]),
        ("a.csv", "a,b\n1\n", ["a.csv, line 2", "2 cells"]),
        ("a.csv", "a,a\n1,2\n", ["a.csv", "'a' stands twice"]),
        ("a.jsonl", '{"data": 1, "data": 2}', ["a.jsonl, line 1", "'data' stands twice"]),
        ("a.jsonl", '{"data": Infinity}', ["a.jsonl, line 1", "Infinity"]),
        ("a.json", '[{"data": 1, "data": 2}]', ["a.json", "'data' stands twice"]),
        ("a.txt", "oi", ["sft.data.path", "plain text", ".csv, .tsv or .parquet"]),
        (None, "", ["sft.data.path", "there is no file"]),
    ],
)
def test_a_bad_file_is_refused(
    name: str | None, content: str, words: list[str], tmp_path: Path
) -> None:
    path = tmp_path / (name or "absent.jsonl")
    if name:
        path.write_text(content)
    with pytest.raises(BadInput) as caught:
        list(read(path))
    for word in words:
        assert word in str(caught.value)


def test_a_hub_set_that_is_out_of_reach_is_one_sentence() -> None:
    with pytest.raises(BadInput, match=r"sft.data.path: nobody/nothing is no file here"):
        sources.read("chat", "nobody/nothing", "train", None, "sft.data.path")


def test_an_unknown_split_of_bodinho_names_the_known() -> None:
    with pytest.raises(BadInput, match="no split tset there; expected test, validation"):
        sources.read("question", "bodinho", "tset", None, "benchmark.split")


def test_a_sample_is_seeded_and_keeps_the_order() -> None:
    rows = list(range(100))
    drawn, again, other = (list(sources.sample(rows, 10, seed)) for seed in (0, 0, 1))
    assert drawn == again != other
    assert drawn == sorted(drawn)
    assert len(set(drawn)) == 10
    assert sources.sample(rows, 100, 0) == rows
