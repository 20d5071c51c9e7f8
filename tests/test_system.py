"""What Windows and macOS lack is not needed: tried with the modules hidden."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from drbode import record, system

HIDDEN = """
import sys  # those below have ways of their own
import bitsandbytes, datasets, hydra, lightning, peft, torch, transformers
for name in ("fcntl", "resource"):
    sys.modules[name] = None  # an import of it raises, as where it does not exist
import drbode.train, drbode.evaluate, drbode.report, drbode.api
import drbode.session.session
from drbode import system
assert system.fcntl is None and system.resource is None
"""


def test_every_door_imports_without_the_modules_that_windows_lacks() -> None:
    assert subprocess.run([sys.executable, "-c", HIDDEN], check=False).returncode == 0


def test_a_lock_is_had_by_the_other_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def locking(_file: int, mode: int, size: int) -> None:
        taken.append(size)
        if len(taken) == 1:  # another holds it for longer than it waits
            raise OSError("deadlock avoided")

    fake = types.SimpleNamespace(locking=locking, LK_LOCK=1)
    monkeypatch.setattr(system, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", fake)
    with record.exclusive(tmp_path / "folder" / ".lock"):
        assert taken == [1, 1]


def test_bytes_are_read_without_pread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    monkeypatch.delattr(os, "pread")
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        assert system.read_at(descriptor, 3, 4) == b"456"
        assert system.read_at(descriptor, 2, 0) == b"01"
    finally:
        os.close(descriptor)


def test_the_peak_memory_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system.Path, "exists", lambda _: False)
    assert system.peak_rss_gib() > 0.01
    monkeypatch.setattr(system, "resource", None)
    assert system.peak_rss_gib() == 0.0
