"""What listens to training without taking part in it: memory, and metrics as a CSV file."""

import csv
import gc
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.trainer.states import TrainerFn

from drbode.record import append, whole
from drbode.system import GIB, c_library, peak_rss_gib, reset_peak_rss

COLUMNS = ("step", "stage", "split", "name", "value")


class PeakMemory(Callback):
    """The most memory in use while training (GiB): allocated on the GPU, else of this process.

    The peak is reset at the start, so that a run is not charged with an earlier one's in the same
    process.
    """

    peak_gib = 0.0

    def on_fit_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        give_back_memory()
        if module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(module.device)
        else:
            reset_peak_rss()

    def on_fit_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if module.device.type == "cuda":
            self.peak_gib = torch.cuda.max_memory_allocated(module.device) / GIB
        else:
            self.peak_gib = peak_rss_gib()


class StageCheckpoint(ModelCheckpoint):
    """Saves what an interrupted stage goes on from, after the validation of a step that has one.

    So that a run that goes on has seen the same validations as one that never stopped.
    """

    def __init__(self, *where: Any, validated_every: int | None, **named: Any) -> None:
        """`validated_every` in optimizer steps; None where there is nothing to validate on."""
        super().__init__(*where, **named)
        self.validated_every = validated_every

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *rest: Any
    ) -> None:
        every = self.validated_every
        if every is None or trainer.global_step % every:
            super().on_train_batch_end(trainer, pl_module, *rest)

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_train_batch_end(trainer, pl_module, None, None, 0)


class StageBar(RichProgressBar):
    """The progress bar under the name of its stage: steps, time left, loss and tokens/s."""

    def __init__(self, stage: str) -> None:
        super().__init__(leave=True)
        self.stage = stage

    def _get_train_description(self, current_epoch: int) -> str:
        return self.stage  # to Lightning a stage is one epoch, which says nothing here

    def get_metrics(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)  # a logger's own number
        return metrics


def give_back_memory() -> None:
    """Returns to the system what an earlier job or stage of this process no longer uses.

    Trainer and module refer to each other, so the collector has to find them; and the C library
    keeps what it was given back, unless asked for it (glibc).
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if (library := c_library()) is not None:
        library.malloc_trim(0)


class CsvLogger(Logger):
    """Appends every metric to `metrics.csv`, a value a line; a run that goes on appends to it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        if not path.exists():
            append(path, ",".join(COLUMNS) + "\n")

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The config stands in record.json."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        lines = io.StringIO()
        rows = csv.writer(lines)
        for name, value in metrics.items():
            rows.writerow([step, *name.split("/", 2), value])
        append(self.path, lines.getvalue())

    def keep_first(self, stage: str, count: int) -> None:
        """Drops the rows of a stage but its first ones; those of other stages stay."""
        with self.path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        places = [place for place, row in enumerate(rows) if row["stage"] == stage][count:]
        if not places:
            return
        dropped = set(places)
        kept = [row for place, row in enumerate(rows) if place not in dropped]
        with whole(self.path) as draft, draft.open("w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS)
            table.writeheader()
            table.writerows(kept)
