"""The record is whole at every moment, and says how a run ended."""

import json
import os
from pathlib import Path

import pytest

from drbode import record
from drbode.config import BadInput
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
    found = record.read_record(tmp_path / "a")
    assert found is not None
    assert found.status == status
    assert found.stages == {"sft": stage_record()}
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
