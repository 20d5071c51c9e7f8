"""Where metrics go: `metrics.csv` always, and a W&B run that is closed whatever happens."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from drbode.config import WandbConfig
from drbode.training.callbacks import CsvLogger


@contextmanager
def open_loggers(
    folder: Path, wandb_config: WandbConfig, settings_tree: Mapping[str, Any]
) -> Iterator[list[Logger]]:
    """The loggers of a run; each run has a W&B run of its own, also within one process.

    `settings_tree` is the config that W&B shows beside the run, and can group and filter runs by.
    """
    loggers: list[Logger] = [CsvLogger(folder / "metrics.csv")]
    if wandb_config.mode == "disabled":
        yield loggers
        return
    import wandb

    settings = wandb.Settings(mode=wandb_config.mode, silent=True, x_disable_stats=True)
    experiment = wandb.init(
        dir=folder,
        project=wandb_config.project,
        group=wandb_config.group,
        name=folder.name,
        config=dict(settings_tree),
        reinit="create_new",
        settings=settings,
    )
    loggers.append(WandbLogger(experiment=experiment))
    try:
        yield loggers
    finally:
        experiment.finish()


def log_table(loggers: Sequence[Logger], name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of the same columns as a table of the W&B run, where there is one."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_table(name, columns=list(rows[0]), data=[list(r.values()) for r in rows])
