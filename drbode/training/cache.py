"""Finished stages by their content, so that the runs of a sweep train a common stage once."""

import csv
import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drbode.config import BadInput
from drbode.models.base import read_tensors
from drbode.record import StageResult, append, exclusive, whole, write_json
from drbode.training.callbacks import COLUMNS
from drbode.training.stages import LAST


class Entry:
    """What is kept of one stage: its tensors, its result, and the metrics it logged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def result(self) -> StageResult | None:
        """What the stage came to when it was trained; None where it has not been."""
        path = self.folder / "result.json"
        if not path.is_file():
            return None
        try:
            result = StageResult(**json.loads(path.read_text(encoding="utf-8")))
            read_tensors(self.folder / LAST, "delete it")
        except (BadInput, OSError, ValueError, TypeError) as error:
            raise BadInput(
                f"{self.folder}: is damaged ({error}); delete this folder, and the stage is "
                "trained again"
            ) from None
        return result

    def keep(self, result: StageResult, checkpoints: Path, metrics: Path, stage: str) -> None:
        """Keeps a stage that was just trained; the result is written last, and makes it count."""
        with whole(self.folder / LAST) as draft:
            shutil.copyfile(checkpoints / LAST, draft)
        with metrics.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["stage"] == stage]
        with whole(self.folder / "metrics.csv") as draft, draft.open("w", newline="") as file:
            kept = csv.DictWriter(file, COLUMNS)
            kept.writeheader()
            kept.writerows(rows)
        write_json(self.folder / "result.json", dataclasses.asdict(result))

    def bring(self, checkpoints: Path, metrics: Path) -> None:
        """Puts what is kept where the stage would have left it."""
        with whole(checkpoints / LAST) as draft:
            shutil.copyfile(self.folder / LAST, draft)
        _, _, kept = (self.folder / "metrics.csv").read_text().partition("\n")
        append(metrics, kept)


@contextmanager
def entry(cache: Path, digest: str) -> Iterator[Entry]:
    """The place of a stage of this content, its own while the context lasts.

    Another process that wants the same stage waits here, and then finds it done.
    """
    folder = cache / "stages" / digest
    with exclusive(folder / ".lock"):
        yield Entry(folder)
