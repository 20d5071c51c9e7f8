"""Where an ablation table goes: a folder, and a W&B run."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from drbode.config import BadInput, WandbConfig
from drbode.reporting import terminal
from drbode.reporting.escape import visible
from drbode.reporting.figures import figures
from drbode.reporting.page import to_html
from drbode.reporting.runs import read_runs
from drbode.reporting.table import AblationTable, build_table


def report(
    records: Sequence[Path],
    folder: Path,
    baseline: str | None = None,
    measure: str = "accuracy",
    wandb: WandbConfig | None = None,
) -> None:
    """Prints the table of these records, and writes it with its figures to `folder`."""
    runs, complaints = read_runs(records)
    for complaint in complaints:
        print(f"warning: {visible(complaint)}", file=sys.stderr)
    if not runs:
        raise BadInput(f"folder: {folder.parent} holds no whole record of a run")
    table = build_table(runs, baseline, measure)
    terminal.show_table(table)
    write(table, folder)
    if wandb is not None:
        log(table, folder, wandb)
    print(f"written to {folder}: index.html, table.md, table.tex, table.csv, *.png")


def write(table: AblationTable, folder: Path) -> None:
    """The table in every format, and its figures; files of an earlier report are overwritten."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = figures(table)
    forms: dict[str, Callable[[], str]] = {
        "table.md": table.to_markdown,
        "table.tex": table.to_latex,
        "table.csv": table.to_csv,
        "index.html": lambda: to_html(table, drawn, title(folder)),
    }
    for name, form in forms.items():
        (folder / name).write_text(form(), encoding="utf-8")
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png", dpi=120)


def title(folder: Path) -> str:
    """The name of the study, taken from its folders."""
    named = [p for p in folder.resolve().parts if p not in ("report", "records")]
    return f"drbode: {named[-1]}"


def log(table: AblationTable, folder: Path, config: WandbConfig) -> None:
    """The table and the figures in `folder` as a W&B run of the group, if W&B is on."""
    if config.mode == "disabled":
        return
    import wandb

    run = wandb.init(
        dir=folder,
        project=config.project,
        group=config.group,
        job_type="summary",
        name=f"table of {config.group or title(folder).removeprefix('drbode: ')}",
        reinit="create_new",
        settings=wandb.Settings(mode=config.mode, silent=True, x_disable_stats=True),
    )
    try:
        heads, rows = table.grid()
        texts = wandb.Table(columns=heads, data=[[cell.text for cell in row] for row in rows])
        flat = table.records()
        names = list(dict.fromkeys(name for row in flat for name in row))
        # One type a column: what is missing is a gap, and so is a text among numbers.
        numbers = wandb.Table(columns=names, data=[[row.get(n) for n in names] for row in flat])
        pictures = {p.stem: wandb.Image(str(p)) for p in sorted(folder.glob("*.png"))}
        run.log({"table": texts, "values": numbers, **pictures})
        run.summary["notes"] = "\n".join(table.notes)
    finally:
        run.finish()
