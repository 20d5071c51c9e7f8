"""What is said of bad input: one sentence that names the key and says what to do."""

import difflib
import errno
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


class BadInput(Exception):  # noqa: N818 -- it is what the user gave, and is caught as such
    """A mistake in what the user gave, as one sentence that says what to do about it."""


# Of the system: no space (also of a quota, or past a limit on a file's size), and no permission.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def unwritable(error: BaseException, path: Path | None = None) -> BadInput | None:
    """What to tell of an error, if it means that a file cannot be written; else None.

    `path` is what was being written, where the error does not say so itself. Some libraries hand
    the system's error on as the context of another, or only as text with its number in it.
    """
    if isinstance(error, BadInput):  # told already
        return None
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (match := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(match.group(1))
    if number not in FULL | FORBIDDEN:
        return unwritable(error.__context__, path) if error.__context__ else None
    name = path or getattr(error, "filename", None) or "a file of this run"
    remedy = "free some space" if number in FULL else "give permission to write there"
    return BadInput(
        f"{name}: cannot be written ({os.strerror(number)}); {remedy} or choose another folder, "
        "and the same command goes on from what is whole"
    )


def one_of(options: Iterable[object]) -> str:
    """`a, b or c`."""
    names = [str(option) for option in options]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def nearest(name: str, valid: Iterable[str]) -> str:
    """A question after the valid names that are most like a mistyped one; empty without any."""
    near = difflib.get_close_matches(name, sorted(set(valid)), n=3, cutoff=0.6)
    return f"; did you mean {one_of(near)}?" if near else ""


def shown(value: Any) -> str:
    """A value as the command line would have it."""
    return "null" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def refuse(problems: Sequence[str]) -> None:
    """Raises BadInput that tells all problems, if there are any."""
    if problems:
        raise BadInput("\n       ".join(problems))
