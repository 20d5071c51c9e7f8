"""What a run leaves behind: a folder with one `record.json`, whole at every moment."""

import csv
import fcntl
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from drbode.config import BadInput, unwritable

PACKAGES = (
    "drbode",
    "torch",
    "lightning",
    "transformers",
    "peft",
    "datasets",
    "bitsandbytes",
    "wandb",
    "torchmetrics",
    "hydra-core",
    "omegaconf",
)


SCHEMA = 2


@dataclass(kw_only=True)
class StageResult:
    """What training a stage came to; `seconds` are those of its steps, validation left out."""

    steps: int
    tokens: int
    seconds: float
    tokens_per_second: float
    peak_memory_gib: float
    train_loss: float
    validation_loss: float | None
    measures: dict[str, float]
    ended_by: str
    optimizer: str
    dropout: str
    warnings: list[str]  # what a person should know of it, a sentence each


@dataclass(kw_only=True)
class Measured:
    """What was measured of a policy, before the first stage or after one."""

    summary: dict[str, Any]
    cost: dict[str, float]
    forgetting: dict[str, Any]
    against_base: dict[str, Any] | None = None
    against_before: dict[str, Any] | None = None
    open: dict[str, Any] | None = None


@dataclass(kw_only=True)
class StageRecord(StageResult, Measured):
    artefact: str
    artefact_bytes: int


@dataclass(kw_only=True)
class Inputs:
    stages: dict[str, Any]
    benchmark: dict[str, Any]
    contamination: dict[str, Any] | None = None
    general: dict[str, Any] | None = None
    open: dict[str, Any] | None = None
    curation: dict[str, Any] | None = None


@dataclass(kw_only=True)
class Record:
    schema: int = SCHEMA
    name: str = ""
    status: str = "running"
    started: str | None = None
    ended: str | None = None
    seconds: float = 0.0
    error: str | None = None
    overrides: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    git: dict[str, Any] | None = None
    code: str = ""
    functions: dict[str, str | None] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    data: Inputs | None = None
    base: Measured | None = None
    stages: dict[str, StageRecord] = field(default_factory=dict)
    result: dict[str, Any] | None = None
    measures: dict[str, float] = field(default_factory=dict)


class Run:
    """A run's folder and record."""

    def __init__(self, folder: Path, record: Record) -> None:
        self.folder = folder
        self.record = record

    @property
    def finished(self) -> bool:
        return self.record.status == "finished"

    def save(self) -> None:
        write_json(self.folder / "record.json", asdict(self.record))


@contextmanager
def open_run(
    folder: Path,
    asked: Mapping[str, Any],
    overrides: list[str],
    force: bool = False,
) -> Iterator[Run]:
    """A run's folder, its own while the context lasts; the record says how it ended.

    An unfinished run of the same folder is taken up with what its record holds. Raises BadInput
    where the folder cannot be written or another process is at work in it.
    """
    if force and folder.exists():
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
    except OSError as error:
        raise BadInput(
            f"output_dir: {folder} cannot be written ({error.strerror}); choose another folder"
        ) from None
    try:
        run = Run(folder, read_record(folder) or Record())
        if run.finished:
            yield run
            return
        r = run.record
        r.started = r.started or _now()
        r.status, r.name, r.overrides, r.config = "running", folder.name, overrides, dict(asked)
        r.versions, r.git, r.code = versions(), git_state(), code_digest()
        r.machine = {"cpu": cpu_model(), "cores": os.cpu_count()}
        r.error = None
        begun = time.perf_counter()
        earlier = r.seconds

        def end(status: str) -> None:
            r.status, r.ended = status, _now()
            r.seconds = earlier + time.perf_counter() - begun
            run.save()

        try:
            run.save()
            yield run
            end("finished")
        except BaseException as error:
            refused = isinstance(error, BadInput) or unwritable(error) is not None
            if refused and not r.stages and not (folder / "checkpoints").exists():
                shutil.rmtree(folder)  # nothing was done: a mistake leaves nothing behind
                raise
            r.error = f"{type(error).__name__}: {error}"
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            with suppress(BadInput):  # where it cannot be written, the one before stays
                end("interrupted" if stopped else "failed")
            raise
    finally:
        lock.unlink(missing_ok=True)


def write_failed(folder: Path, overrides: list[str], error: Exception) -> None:
    """The record of a job that failed before it had a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "status": "failed",
        "name": folder.name,
        "overrides": overrides,
        "error": f"{type(error).__name__}: {error}",
        "ended": _now(),
        "versions": versions(),
        "git": git_state(),
    }
    write_json(folder / "record.json", data)


def read_record(folder: Path) -> Record | None:
    """The record of a run's folder, None where there is none; BadInput where it is damaged."""
    path = folder / "record.json"
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path}: is damaged ({error}); use force=true to start over") from None
    if not isinstance(data, dict):
        raise BadInput(f"{path}: is no record; use force=true to start over")
    data["data"] = Inputs(**data["data"]) if data.get("data") else None
    data["base"] = Measured(**data["base"]) if data.get("base") else None
    data["stages"] = {n: StageRecord(**d) for n, d in data.get("stages", {}).items()}
    return Record(**data)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A draft of a file or folder, which takes its place once written, and goes if that fails.

    Raises BadInput where there is no space or no permission.
    """
    # A process of its own may write the same: parallel jobs share what they cache.
    draft = path.with_name(f"part.{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        if path.is_dir():
            shutil.rmtree(path)
        draft.replace(path)
    except BaseException as error:
        if draft.is_dir():
            shutil.rmtree(draft)
        elif draft.exists():
            draft.unlink()
        if refused := unwritable(error, path):
            raise refused from None
        raise


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """A lock on this file while the context lasts; other processes wait until it is given back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def append(path: Path, text: str) -> None:
    """Appends all of the text or nothing. Raises BadInput where it cannot be written."""
    try:
        with path.open("ab", buffering=0) as file:
            left, before = text.encode(), file.tell()
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(before)
                raise
    except OSError as error:
        raise unwritable(error, path) or error from None


def write_json(path: Path, data: Any) -> None:
    """Writes the file whole or not at all."""
    _write(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes a row a line, the file whole or not at all."""
    _write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes rows of the same columns, the file whole or not at all."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    _write(path, text.getvalue())


def _write(path: Path, text: str) -> None:
    with whole(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="")


def weight_bytes(folder: Path) -> int:
    """Size of the safetensors files in a folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a result rests on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def code_digest() -> str:
    """A digest of this package's source, so that what another version made is not taken for it."""
    total = hashlib.sha256()
    for path in sorted(Path(__file__).resolve().parent.rglob("*.py")):
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


def cpu_model() -> str:
    """The processor's own name for itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def git_state() -> dict[str, Any] | None:
    """Commit of the source tree and whether it was changed since; None for an installed wheel."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != here.parent:
            return None
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


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
            if node != platform.node() or (pid.isdigit() and _alive(int(pid))):
                raise BadInput(
                    f"{folder}: another process (pid {pid}) is at work on this run; wait for it, "
                    f"or delete {path} if it has died"
                ) from None
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
