"""Finished stages by their content, so that the runs of a sweep train a common stage once."""

import csv
import dataclasses
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drbode.config import BadInput
from drbode.record import StageResult, append, exclusive, whole
from drbode.training.callbacks import COLUMNS, CsvLogger
from drbode.training.checksums import load_tensors, read_checked, sha256_of, write_checked
from drbode.training.stages import LAST

RESULT = "result.json"


class Entry:
    """What is kept of one stage: its tensors, its result, and the metrics it logged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def result(self) -> StageResult | None:
        """What the stage came to when it was trained.

        None where it has not been, or where what was kept is damaged, which is said.
        """
        path = self.folder / RESULT
        if not path.is_file():
            return None
        try:
            entry = read_checked(path)
            if entry["metrics"] != sha256_of(self._metrics.read_text(encoding="utf-8")):
                raise ValueError(f"the content of {self._metrics.name} and its checksum differ")
            load_tensors(self.folder / LAST, "the stage is trained again")
            return StageResult(**entry["result"])
        except (BadInput, OSError, ValueError, TypeError, KeyError) as error:
            print(f"{self.folder}: is damaged ({error}); the stage is trained again")
            return None

    def keep(self, result: StageResult, checkpoints: Path, metrics: Path, stage: str) -> None:
        """Keeps a stage that was just trained; the result is written last, and makes it count."""
        (self.folder / RESULT).unlink(missing_ok=True)
        with whole(self.folder / LAST) as draft:
            shutil.copyfile(checkpoints / LAST, draft)
        with metrics.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["stage"] == stage]
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        with whole(self._metrics) as draft:
            draft.write_text(text.getvalue(), encoding="utf-8")
        kept = {"result": dataclasses.asdict(result), "metrics": sha256_of(text.getvalue())}
        write_checked(self.folder / RESULT, kept)

    def bring(self, checkpoints: Path, metrics: Path, stage: str) -> None:
        """Puts what is kept where the stage would have left it."""
        with whole(checkpoints / LAST) as draft:
            shutil.copyfile(self.folder / LAST, draft)
        CsvLogger(metrics).keep_first(stage, 0)  # of a run that was killed after it was brought
        _, _, rows = self._metrics.read_text(encoding="utf-8").partition("\n")
        append(metrics, rows)

    @property
    def _metrics(self) -> Path:
        return self.folder / "metrics.csv"


@contextmanager
def entry(cache: Path, digest: str) -> Iterator[Entry]:
    """The place of a stage of this content, its own while the context lasts.

    Another process that wants the same stage waits here, and then finds it done.
    """
    folder = cache / "stages" / digest
    with exclusive(folder / ".lock"):
        yield Entry(folder)
