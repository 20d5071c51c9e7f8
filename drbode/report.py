"""python -m drbode.report: the table of a folder of runs, with tests of their differences."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drbode import config
from drbode.config import ReportConfig


def arguments(words: Sequence[str]) -> list[str]:
    """The command line as Hydra reads it: a bare word is the folder, and texts are quoted."""
    overrides = []
    for word in words:
        if "=" not in word and not word.startswith("-"):
            word = f"folder={word}"
        key, is_pair, text = word.partition("=")
        if is_pair and key in ("folder", "baseline") and text != "null" and text[:1] not in "'\"":
            word = f"{key}='{text}'"
        overrides.append(word)
    return overrides


def job(tree: Mapping[str, Any], _overrides: list[str], _multirun: bool) -> None:
    """What Hydra calls: one report."""
    from drbode.reporting.outputs import report
    from drbode.reporting.runs import record_files

    settings = config.build(ReportConfig, tree)
    folder = Path(settings.folder)
    report(
        record_files(folder), folder / "report", settings.baseline, settings.measure, settings.wandb
    )


if __name__ == "__main__":
    sys.argv[1:] = arguments(sys.argv[1:])
    config.open_door("report", job)
