"""What a run leaves behind: a folder with one `record.json`, whole at every moment."""

import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from drbode.config import BadInput, functions, unwritable
from drbode.record.environment import code_digest, cpu_model, git_state, versions
from drbode.record.files import write_json
from drbode.record.measures import measures_of
from drbode.record.schema import Record, from_json, upgraded
from drbode.system import is_alive

FILE = "record.json"
START_OVER = "use force=true to start over"


class Run:
    """A run's folder and record."""

    def __init__(self, folder: Path, record: Record) -> None:
        self.folder = folder
        self.record = record

    @property
    def finished(self) -> bool:
        return self.record.status == "finished"

    def save(self) -> None:
        """Writes the record, its measures brought up to date."""
        self.record.measures = measures_of(self.record)
        write_json(self.folder / FILE, asdict(self.record))


@contextmanager
def open_run(
    folder: Path,
    config: Mapping[str, Any],
    overrides: list[str],
    force: bool = False,
) -> Iterator[Run]:
    """A run's folder, its own while the context lasts; the record says how it ended.

    An unfinished run of the same folder is taken up with what its record holds. Raises BadInput
    where the folder cannot be written or another process is at work in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
    except OSError as error:
        raise BadInput(
            f"output_dir: {folder} cannot be written ({error.strerror}); choose another folder"
        ) from None
    try:
        if force:  # only now, for until it was locked another process may have been at work in it
            _empty(folder, lock)
        run = Run(folder, read_record(folder) or Record())
        if run.finished:
            yield run
            return
        _begin(run, config, overrides)
        begun, earlier = time.perf_counter(), run.record.seconds

        def end(status: str) -> None:
            run.record.status, run.record.ended = status, _now()
            run.record.seconds = earlier + time.perf_counter() - begun
            run.save()

        try:
            run.save()
            yield run
            end("finished")
        except BaseException as error:
            refused = isinstance(error, BadInput) or unwritable(error) is not None
            if refused and not run.record.stages and not (folder / "checkpoints").exists():
                shutil.rmtree(folder)  # nothing was done: a mistake leaves nothing behind
                raise
            run.record.error = f"{type(error).__name__}: {error}"
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            with suppress(BadInput):  # where it cannot be written, the one before stays
                end("interrupted" if stopped else "failed")
            raise
    finally:
        lock.unlink(missing_ok=True)


def _begin(run: Run, config: Mapping[str, Any], overrides: list[str]) -> None:
    """Enters what a run is, and where it runs."""
    record = run.record
    record.started = record.started or _now()
    record.status, record.name, record.error = "running", run.folder.name, None
    record.overrides, record.config = overrides, dict(config)
    record.versions, record.git, record.code = versions(), git_state(), code_digest()
    record.functions = functions(config)
    record.machine = {"cpu": cpu_model(), "cores": os.cpu_count()}


def _empty(folder: Path, kept: Path) -> None:
    """Deletes everything in a folder but one file."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path != kept:
            path.unlink()


def write_failed(folder: Path, overrides: list[str], error: Exception) -> None:
    """The record of a job that failed before it had a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(
        name=folder.name,
        status="failed",
        ended=_now(),
        error=f"{type(error).__name__}: {error}",
        overrides=overrides,
        versions=versions(),
        git=git_state(),
    )
    Run(folder, record).save()


def read_record(folder: Path) -> Record | None:
    """The record of a run's folder, None where there is none; BadInput where it is damaged."""
    path = folder / FILE
    return load_record(path, START_OVER) if path.is_file() else None


def load_record(path: Path, remedy: str) -> Record:
    """The record in a file, of whatever schema.

    Raises BadInput, which ends in `remedy`, where it is damaged, of a newer schema, or none.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        today = upgraded(data)
        record = from_json(today)
        if today is not data:
            record.measures = measures_of(record)
    except BadInput as error:
        raise BadInput(f"{path}: {error}; {remedy}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        what = f"{type(error).__name__}: {error}"
        raise BadInput(f"{path}: is damaged ({what}); {remedy}") from None
    return record


def _lock(folder: Path) -> Path:
    """Takes the folder for this process; one that a dead process left is taken over."""
    path = folder / ".lock"
    while True:
        try:
            path.touch(exist_ok=False)
            try:
                path.write_text(f"{os.getpid()} {platform.node()}")
            except OSError:
                path.unlink()
                raise
            return path
        except FileExistsError:
            pid, _, node = path.read_text().partition(" ")
            if node != platform.node() or (pid.isdigit() and is_alive(int(pid))):
                raise BadInput(
                    f"{folder}: another process (pid {pid}) is at work on this run; wait for it, "
                    f"or delete {path} if it has died"
                ) from None
            path.unlink(missing_ok=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
