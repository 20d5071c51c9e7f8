"""python -m drbode.report: the table of a folder of runs, which says which differences are real."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drbode import config
from drbode.config import ReportConfig, WandbConfig


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


def job(tree: Mapping[str, Any], overrides: list[str], multirun: bool) -> None:
    """What Hydra calls: one report."""
    from drbode.reporting.runs import record_files

    asked = config.build(ReportConfig, tree)
    folder = Path(asked.folder)
    write(record_files(folder), folder / "report", asked.baseline, asked.measure, asked.wandb)


def write(
    records: Sequence[Path],
    folder: Path,
    baseline: str | None,
    measure: str,
    wandb: WandbConfig,
) -> None:
    """Prints the table of these records, and writes it with its figures to `folder`."""
    from drbode.reporting import outputs, terminal
    from drbode.reporting.runs import read_runs
    from drbode.reporting.table import build_table

    runs, complaints = read_runs(records)
    for complaint in complaints:
        print(f"warning: {complaint}", file=sys.stderr)
    if not runs:
        raise config.BadInput(f"folder: {folder.parent} holds no whole record of a run")
    table = build_table(runs, baseline, measure)
    terminal.show_table(table)
    outputs.write(table, folder)
    outputs.log(table, folder, wandb)
    print(f"written to {folder}: index.html, table.md, table.tex, table.csv, *.png")


if __name__ == "__main__":
    sys.argv[1:] = arguments(sys.argv[1:])
    config.open_door("report", job)
