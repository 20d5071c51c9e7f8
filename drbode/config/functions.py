"""Plug points: a Python function of the user's, named `module:function` in the config."""

import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drbode.config.errors import BadInput

NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_function(name: str) -> bool:
    """Whether a value of the config has the form `module:function`."""
    return NAME.fullmatch(name) is not None


def load_function(name: str, key: str, expected: str) -> Callable[..., Any]:
    """The function `module:function`, imported from where Python finds it or the current folder.

    Raises BadInput that names `key`, where it cannot be imported or called; `expected` says what
    else the key may hold.
    """
    module, _, function = name.partition(":")
    try:
        _look_in_current_folder()
        loaded = getattr(importlib.import_module(module), function)
    except Exception as error:  # of the import system, or raised by the module itself
        raise BadInput(
            f"{key}: {name} could not be imported ({error}); expected {expected}"
        ) from None
    if not callable(loaded):
        raise BadInput(f"{key}: {name} is no function; expected {expected}")
    return loaded  # type: ignore[no-any-return]


def failure(error: Exception) -> str:
    """What a function of the user's raised, and where, to stand in a sentence."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error}, {Path(place.filename).name} line {place.lineno}"


def source_digest(name: str) -> str | None:
    """A digest of the file that holds `module:function`, without running it; None: not found.

    It goes into a run's identity: a run is another one when its function's code changes. Modules
    that the file imports are not followed.
    """
    module = name.partition(":")[0]
    _look_in_current_folder()
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return None
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


def _look_in_current_folder() -> None:
    """Lets modules of the current folder be imported, also those written a moment ago."""
    importlib.invalidate_caches()
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, "")
