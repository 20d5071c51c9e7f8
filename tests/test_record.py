"""The record is whole at every moment, and says how a run ended."""

import json
import os
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from drbode import record
from drbode.config import BadInput, source_digest
from drbode.record import Inputs, Measured, Record, Run
from tests.conftest import stage_record


def test_a_run_that_ends_well_is_finished_and_is_found_again(tmp_path: Path) -> None:
    with record.open_run(tmp_path / "a", {"seed": 0}, ["seed=0"]) as run:
        assert not run.finished
        assert record.read_record(tmp_path / "a").status == "running"  # type: ignore[union-attr]
        run.record.model["parameters"] = 42
    with record.open_run(tmp_path / "a", {"seed": 0}, ["seed=0"]) as run:
        assert run.finished
        assert run.record.model["parameters"] == 42
        assert run.record.versions["torch"]
    with record.open_run(tmp_path / "a", {"seed": 0}, [], force=True) as run:
        assert run.record.model == {}


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("no"), "failed"), (KeyboardInterrupt(), "interrupted")]
)
def test_a_run_that_ends_badly_says_so_and_keeps_what_it_had(
    error: BaseException, status: str, tmp_path: Path
) -> None:
    def goes_wrong() -> None:
        with record.open_run(tmp_path / "a", {}, []) as run:
            run.record.stages["sft"] = stage_record()
            raise error

    with pytest.raises(type(error)):
        goes_wrong()
    left = record.read_record(tmp_path / "a")
    assert left is not None
    assert left.status == status
    assert left.stages == {"sft": stage_record()}
    with record.open_run(tmp_path / "a", {}, []) as run:
        assert run.record.stages == {"sft": stage_record()}
        assert run.record.error is None


def test_a_folder_at_work_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(f"1 {os.uname().nodename}")  # init is always there
    with (
        pytest.raises(BadInput, match=r"pid 1.* is at work"),
        record.open_run(tmp_path, {}, []),
    ):
        pass
    (tmp_path / ".lock").write_text(f"999999999 {os.uname().nodename}")
    with record.open_run(tmp_path, {}, []):
        pass
    assert not (tmp_path / ".lock").exists()


def test_force_deletes_nothing_that_another_process_is_at_work_on(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(f"1 {os.uname().nodename}")  # init is always there
    (tmp_path / "weights").write_text("half written")
    with (
        pytest.raises(BadInput, match=r"pid 1.* is at work"),
        record.open_run(tmp_path, {}, [], force=True),
    ):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "weights"}
    (tmp_path / ".lock").unlink()
    (tmp_path / "sft").mkdir()
    with record.open_run(tmp_path, {}, [], force=True):
        assert {path.name for path in tmp_path.iterdir()} == {".lock", "record.json"}


def test_a_damaged_record_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text('{"status": "fini')
    with pytest.raises(BadInput, match=r"record.json: is damaged"):
        record.read_record(tmp_path)


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(BadInput, match=r"output_dir: .* cannot be written"),
        record.open_run(tmp_path / "file" / "run", {}, []),
    ):
        pass


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    record.write_json(tmp_path / "a.json", {"é": 1})
    with pytest.raises(TypeError):
        record.write_json(tmp_path / "a.json", {"bad": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"é": 1}


# --- the typed record ---------------------------------------------------------------------------

STUDIES = Path(__file__).parent.parent / "experiments"
OLD = [
    *(p for p in sorted(STUDIES.glob("*/records/*.json")) if p.parent.parent.name != "benchmarks"),
    STUDIES / "bodinho_base" / "record.json",
]


def whole_record() -> Record:
    """Every field set, as of a run with all there is."""
    summary = {"accuracy": 0.5, "parts": {"fáceis": {"accuracy": 0.75}}, "ece": 0.1}
    opened = {"summary": {"prompts": 3, "cautious": {"share": 0.9}, "gold": 0.25, "score": None}}
    measured = Measured(
        summary=summary,
        cost={"seconds_per_question": 0.01},
        forgetting={"forgetting": 0.1, "questions": {"accuracy": 0.6}, "bits_per_byte": 2.5},
        open=opened,
    )
    against = {"all": {"difference": 0.1}}
    after = replace(measured, against_base=against, against_before=against)
    of_stage = {"measures": {"kl": 2.0}, "validation_loss": 1.5}
    stage = replace(stage_record(), **asdict(after) | of_stage)
    reward = replace(stage, summary=summary | {"accuracy": 0.4}, measures={"accuracy": 1.0})
    return Record(
        name="a",
        status="finished",
        started="2026-01-01T00:00:00+00:00",
        ended="2026-01-01T00:01:00+00:00",
        seconds=60.0,
        error="none",
        overrides=["seed=0"],
        config={"seed": 0},
        versions={"torch": "2"},
        git={"commit": "c", "changed": False},
        code="d",
        functions={"a:b": "e"},
        machine={"cpu": "p"},
        model={"trainable_parameters": 7},
        data=Inputs(
            stages={"dpo": {"train": {}, "validation": None}},
            benchmark={"digest": "f"},
            contamination={"rows": 0},
            general={"questions": 0},
            open={"prompts": 3},
            curation={"seconds": 2.0},
        ),
        base=measured,
        stages={"dpo": stage, "reward": reward},
        result=None,
    )


def test_a_record_comes_back_from_json_as_it_was(tmp_path: Path) -> None:
    made = whole_record()
    unset = {f.name for f in fields(Record) if getattr(made, f.name) in (None, "", [], {})}
    assert unset == {"result", "measures"}
    Run(tmp_path, made).save()
    assert record.read_record(tmp_path) == made
    data = json.loads((tmp_path / "record.json").read_text())
    assert data["schema"] == record.SCHEMA
    assert {"steps", "summary", "artefact"} <= set(data["stages"]["dpo"])  # flat
    assert made.measures["dpo/accuracy"] == 0.5


def test_measures_are_flat_and_say_whose_they_are() -> None:
    measures = record.measures_of(whole_record())
    expected = {
        "base/accuracy": 0.5,
        "base/accuracy/fáceis": 0.75,
        "base/gold": 0.25,
        "dpo/accuracy": 0.5,
        "dpo/cautious": 0.9,
        "dpo/forgetting": 0.1,
        "dpo/general_accuracy": 0.6,
        "dpo/validation/loss": 1.5,
        "dpo/validation/kl": 2.0,
        "dpo/train/loss": 2.0,
        "dpo/seconds_per_question": 0.01,
        "reward/accuracy": 0.4,  # on the benchmark
        "reward/validation/accuracy": 1.0,  # of the reward model, on pairs
        "run/seconds": 4.0,  # of two stages, and of choosing rows
        "run/tokens": 60.0,
        "run/tokens_per_second": 30.0,
        "run/trainable_parameters": 7.0,
    }
    assert expected.items() <= measures.items()
    assert "dpo/proxy" not in measures  # which was not measured
    last = record.measured_last(measures)
    assert (last["accuracy"], last["validation/accuracy"], last["validation/kl"]) == (0.4, 1.0, 2.0)
    assert (last["seconds"], last["reward/validation/loss"]) == (4.0, 1.5)
    assert "dpo/validation/loss" not in last


def test_an_evaluation_has_its_measures_by_the_names_of_its_models() -> None:
    summary = {"accuracy": 0.5, "parts": {}}
    closed = Record(result={"summary": summary, "cost": {"tokens_per_question": 9}, "seconds": 3.0})
    measures = record.measures_of(closed)
    assert measures == {"run/seconds": 3.0, "model/accuracy": 0.5, "model/tokens_per_question": 9.0}
    answers = {"sft": {"summary": {"prompts": 4, "gold": -1.0, "cautious": {"share": 0.5}}}}
    measures = record.measures_of(Record(result={"open": answers, "seconds": 3.0}))
    assert measures == {"run/seconds": 3.0, "sft/gold": -1.0, "sft/cautious": 0.5}


@pytest.mark.parametrize("path", OLD, ids=lambda path: f"{path.parent.parent.name}/{path.stem}")
def test_every_record_that_was_ever_published_is_read(path: Path) -> None:
    data = json.loads(path.read_text())
    read = record.load_record(path, "")
    assert read.schema == record.SCHEMA
    for name, stage in data["stages"].items():
        assert read.measures[f"{name}/accuracy"] == stage["summary"]["accuracy"]
        assert read.stages[name].steps == stage["steps"]
        assert read.stages[name].open == stage.get("open")
        assert read.data is not None
        ledgers = data["data"][name]
        assert read.data.stages[name] == {n: ledgers[n] for n in ("train", "validation")}
        assert read.data.curation == ledgers.get("curation") or name != "sft"
    assert read.config == data["config"]
    assert read.overrides == data["overrides"]
    again = record.from_json(record.upgraded(json.loads(json.dumps(asdict(read)))))
    assert again == read


def test_what_ppo_asked_of_the_benchmark_is_told_from_what_it_optimised() -> None:
    path = next(p for p in OLD if "reward-ppo" in p.name)
    measures = record.load_record(path, "").measures
    assert "ppo/validation/accuracy" not in measures
    assert measures["ppo/validation/benchmark_accuracy"] == measures["ppo/accuracy"]
    assert measures["reward/validation/accuracy"] == 1.0 > measures["reward/accuracy"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 3}, r"newer drbode \(schema 3.*; use force=true"),
        ({"schema": "x"}, "is damaged"),
        ({"unheard_of": 1}, "is damaged .*unheard_of"),
        ({"stages": {"sft": {"steps": 3}}}, "is damaged .*missing"),
        ({"base": []}, "is damaged"),
    ],
)
def test_a_record_that_cannot_be_read_says_what_to_do(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    Run(tmp_path, whole_record()).save()
    path = tmp_path / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadInput, match=rf"record.json: .*{said}") as caught:
        record.read_record(tmp_path)
    assert str(caught.value).endswith("; use force=true to start over")


@pytest.mark.parametrize("text", ["[]", "3", '{"stages": {}}'])
def test_json_of_another_kind_is_no_record(text: str, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(BadInput, match="is no record of a run; use force=true"):
        record.read_record(tmp_path)


def test_a_run_records_the_functions_that_it_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_loss_of_mine.py").write_text("def loss(): ...\n")
    config = {"dpo": {"loss": "a_loss_of_mine:loss"}}
    with record.open_run(tmp_path / "a", config, []) as run:
        pass
    assert run.record.functions == {"a_loss_of_mine:loss": source_digest("a_loss_of_mine:loss")}
    assert run.record.functions["a_loss_of_mine:loss"]


def test_a_job_that_failed_early_has_a_record(tmp_path: Path) -> None:
    record.write_failed(tmp_path / "a", ["seed=-1"], BadInput("seed: expected"))
    left = record.read_record(tmp_path / "a")
    assert left is not None
    assert (left.status, left.config, left.stages) == ("failed", {}, {})
    assert left.error == "BadInput: seed: expected"
