"""Files that are whole or not there, whatever becomes of the process that writes them."""

import csv
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drbode import system
from drbode.config import unwritable


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
        system.lock(lock)
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
