"""python -m drbode.report: the table of a folder of runs, which says which differences are real."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drbode import config
from drbode.config import ReportConfig


def arguments(words: Sequence[str]) -> list[str]:
    """The command line as Hydra takes it: the bare word is the folder, and texts are quoted."""
    found = []
    for word in words:
        if "=" not in word and not word.startswith("-"):
            word = f"folder={word}"
        key, is_pair, text = word.partition("=")
        if is_pair and key in ("folder", "baseline") and text != "null" and text[:1] not in "'\"":
            word = f"{key}='{text}'"
        found.append(word)
    return found


def job(tree: Mapping[str, Any], _overrides: list[str], _multirun: bool) -> None:
    """What Hydra calls: one report."""
    from drbode.reporting.outputs import report
    from drbode.reporting.runs import record_files

    asked = config.build(ReportConfig, tree)
    folder = Path(asked.folder)
    report(record_files(folder), folder / "report", asked.baseline, asked.measure, asked.wandb)


if __name__ == "__main__":
    sys.argv[1:] = arguments(sys.argv[1:])
    config.open_door("report", job)
