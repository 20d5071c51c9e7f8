"""The hub sets of `data=drbode`, from small copies of their schemas that `datasets` loads alike."""

import json
from pathlib import Path
from typing import Any

import pytest
from pyarrow import Table, parquet

from drbode import config
from drbode.config import BadInput, TrainConfig
from drbode.data import sources
from drbode.data.prompts import Renderer
from drbode.data.splits import StageRows
from drbode.evaluation.benchmarks import load_benchmark
from tests.data.test_steps import Words

BOT = {"role": "assistant", "content": "dengue."}
SFT = [
    {"data": [{"role": "user", "content": f"febre {n}?"}, BOT], "tokens": 12, "score": 0.5}
    for n in range(4)
]
PAIRS = [{"prompt": f"q{n}", "chosen": "sim", "rejected": "não", "subject": "x"} for n in range(4)]
QUESTION = {
    "origem": "Revalida",
    "prova": "2023/1",
    "contains_img": False,
    "img_description": None,
    "resposta": "B",
}
FOUR = {"A": "um", "B": "dois", "C": "três", "D": "quatro"}
QUESTIONS = [
    QUESTION | {"numero": 1, "enunciado": "q1", "alternativas": FOUR | {"E": None}},
    QUESTION | {"numero": 2, "enunciado": "q2", "alternativas": FOUR | {"E": ""}},
    QUESTION | {"numero": 3, "enunciado": "q3", "alternativas": FOUR | {"E": "  "}},
    QUESTION
    | {
        "numero": 4,
        "enunciado": "q4",
        "alternativas": FOUR | {"E": "cinco"},
        "resposta": "e",
        "contains_img": True,
        "img_description": "uma foto",
    },
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def hub(folder: Path, rows: list[dict[str, Any]], kind: str) -> str:
    """A folder laid out as a data set on the hub, with one split `train`."""
    folder.mkdir()
    if kind == "parquet":
        parquet.write_table(Table.from_pylist(rows), folder / "train-00000.parquet")
    else:
        (folder / "train.json").write_text(json.dumps(rows))
    return str(folder)


def settings(*overrides: str) -> TrainConfig:
    words = ["data=drbode", *overrides]
    return config.load(config.compose("train", words), words)


def test_the_group_names_the_sets_of_the_study_and_pins_nothing_by_itself() -> None:
    run = settings()
    assert run.sft.data.path == "recogna-nlp/drbode240_dataset"
    preferences = [run.dpo.data, run.reward.data, run.ppo.data]
    assert {d.path for d in preferences} == {"recogna-nlp/dpo-mmlu-ptbr"}
    assert run.benchmark.path == "recogna-nlp/drbodebench"
    sources = [run.sft.data, *preferences, run.benchmark]
    assert {(s.split, s.revision) for s in sources} == {("train", None)}
    pinned = settings("sft.data.revision=4f1c", "benchmark.revision=99ab")
    assert (pinned.sft.data.revision, pinned.benchmark.revision) == ("4f1c", "99ab")
    assert pinned.run_name() != run.run_name()


def test_what_is_asked_of_the_benchmark_wins_over_the_group() -> None:
    assert settings("benchmark=letter").benchmark.protocol == "letter"
    assert settings("benchmark=letter").benchmark.path == "recogna-nlp/drbodebench"
    own = settings("benchmark.path=bodinho", "benchmark.split=validation").benchmark
    assert (own.path, own.split) == ("bodinho", "validation")


@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_the_benchmark_drops_what_is_null_empty_or_blank(kind: str, tmp_path: Path) -> None:
    path = hub(tmp_path / "bench", QUESTIONS, kind)
    found = load_benchmark(settings(f"benchmark.path={path}").benchmark).rows
    assert [list(q.alternatives) for q in found] == [list("ABCD")] * 3 + [list("ABCDE")]
    assert [q.blank for q in found] == [{"E": "None"}, {"E": ""}, {"E": ""}, {}]
    assert [q.answer for q in found] == ["B", "B", "B", "E"]
    assert [q.image for q in found] == [None, None, None, "uma foto"]
    assert [q.key for q in found] == [f"Revalida/2023/1/{n}" for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("kind", ["parquet", "json"])
@pytest.mark.parametrize("stage", ["sft", "dpo", "reward", "ppo"])
def test_every_stage_reads_its_set_and_only_the_columns_it_needs(
    stage: Any, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hub(tmp_path / "rows", SFT if stage == "sft" else PAIRS, kind)
    score = ["ppo.reward=some:function"] if stage == "ppo" else []
    run = settings(f"stages=[{stage}]", f"{stage}.data.path={path}", *score)
    fields: list[set[str]] = []
    digest = sources.digest

    def watched(records: Any) -> str:
        fields.extend(set(row) for _, row in records)
        return digest(records)

    monkeypatch.setattr(sources, "digest", watched)
    train, validation = StageRows(
        stage, run.stage(stage), Renderer(Words(), 64), seed=0, cache=tmp_path
    ).splits()
    assert validation is not None
    assert (train.ledger.rows, validation.ledger.rows) == (3, 1)
    wanted = {"data"} if stage == "sft" else {"prompt", "chosen", "rejected"}
    assert fields == [wanted] * 4


def test_rows_stay_on_the_disk_until_they_are_asked_for(tmp_path: Path) -> None:
    """As the study's SFT set needs it: one JSON file of some 400 MB."""
    path = hub(tmp_path / "rows", SFT, "json")
    columns = sources.Columns(("data",))
    rows = sources.read("chat", path, "train", None, "sft.data.path", columns=columns)
    assert not isinstance(rows, list)
    assert (len(rows), rows[1:3][0]) == (4, (f"{path} train row 2", {"data": SFT[1]["data"]}))
    assert next(iter(sources.sample(rows, 2, 0)))[1] in [{"data": row["data"]} for row in SFT]


@pytest.mark.parametrize("kind", ["parquet", "json", "file"])
@pytest.mark.parametrize(
    ("stage", "missing", "found"),
    [("sft", "data", "mensagens"), ("dpo", "rejected", "prompt, chosen, ruim")],
)
def test_a_missing_column_is_named_beside_those_there(
    stage: Any, missing: str, found: str, kind: str, tmp_path: Path
) -> None:
    plain = {"data": SFT[1]["data"]} if stage == "sft" else PAIRS[0]
    renamed = {"data": "mensagens", "rejected": "ruim", "subject": None}
    row = {renamed.get(name, name): value for name, value in plain.items()}
    row.pop(None, None)
    path = hub(tmp_path / "rows", [row] * 2, "json" if kind == "json" else "parquet")
    path += "/train-00000.parquet" if kind == "file" else ""
    run = settings(f"stages=[{stage}]", f"{stage}.data.path={path}")
    with pytest.raises(BadInput) as caught:
        StageRows(stage, run.stage(stage), Renderer(Words(), 64), seed=0, cache=tmp_path).splits()
    expected = f"{stage}.data.path: {path} has no column {missing}; expected "
    assert str(caught.value).startswith(expected)
    assert str(caught.value).endswith(f"found {found}")


def test_a_missing_split_and_a_damaged_set_are_one_sentence(tmp_path: Path) -> None:
    path = hub(tmp_path / "rows", SFT, "json")

    def read(split: str) -> None:
        sources.read("chat", path, split, None, "sft.data.path")

    with pytest.raises(BadInput, match=r"sft.data.split: .* has no split test .*\['train'\]"):
        read("test")
    (Path(path) / "train.json").write_text('[{"data": ')
    with pytest.raises(BadInput, match=r"sft.data.path: .* could not be read as a data set"):
        read("train")
    (Path(path) / "train.json").unlink()
    with pytest.raises(BadInput, match=r"could not be read .* contain any data files"):
        read("train")
