"""The records of a folder of runs, as measures that can be compared."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drbode.config import BadInput, digest
from drbode.record import Record, load_record, measured_last

# Overrides that say where or how a result is written and shown, and not which.
ELSEWHERE = re.compile(
    r"^[+~]*(?:output_dir|force|reuse_stages|logger|wandb|experiment|sweep|hydra"
    r"|trainer\.(?:threads|progress))(?:[./=].*)?$"
)


@dataclass(frozen=True)
class RunRecord:
    """What a table reads of one run's record.

    `measures` are those after the last stage, and the costs of all stages; `of_stages` are those of
    each stage, by their whole names. `conditions` is what has to be equal for two runs to be
    compared, by name.
    """

    folder: Path
    overrides: tuple[str, ...]
    seed: int
    status: str
    error: str | None
    config: Mapping[str, Any] | None  # None where the run failed before it had one
    measures: Mapping[str, float] = field(default_factory=dict)
    of_stages: Mapping[str, float] = field(default_factory=dict)
    questions: int = 0
    conditions: Mapping[str, str] = field(default_factory=dict)

    @property
    def variant(self) -> str:
        """A digest of all that shapes the result except the seed and the number of threads."""
        if self.config is None:
            return digest(sorted(self.overrides))
        tree = {k: v for k, v in self.config.items() if k != "seed"}
        tree["trainer"] = {k: v for k, v in tree["trainer"].items() if k != "threads"}
        return digest(tree)

    @property
    def order(self) -> dict[str, Any]:
        """The settings that, with the seed, decide the order of each stage's rows."""
        config = self.config or {"stages": []}
        names = ("data", "global_batch_size", "epochs", "steps", "tokens")
        return {stage: [config[stage][name] for name in names] for stage in config["stages"]}


def read_runs(paths: Iterable[Path]) -> tuple[list[RunRecord], list[str]]:
    """The runs of these record files, the earliest first, and a complaint for each other file."""
    runs: list[tuple[str, RunRecord]] = []
    complaints = []
    remedy = "left out; delete it and train it again"
    for path in paths:
        try:
            record = load_record(path, remedy)
            if record.result is not None:
                complaints.append(f"{path}: is the record of an evaluation, not of a run; left out")
            else:
                runs.append((str(record.started or record.ended), _run(path, record)))
        except BadInput as error:
            complaints.append(str(error))
        except (KeyError, TypeError, AttributeError) as error:
            what = f"{type(error).__name__}: {error}"
            complaints.append(f"{path}: is damaged ({what}); {remedy}")
    runs.sort(key=lambda pair: pair[0])
    return [run for _, run in runs], complaints


def record_files(folder: Path) -> list[Path]:
    """The records below a folder: `RUN/record.json`, or a study's `NAME.json`.

    Raises BadInput where there is none.
    """
    if not folder.is_dir():
        raise BadInput(f"folder: there is no folder {folder}; give one that runs were written to")
    files = sorted(folder.glob("*/record.json")) or sorted(folder.glob("*.json"))
    if not files:
        raise BadInput(
            f"folder: {folder} holds no records; expected RUN/record.json in it, as "
            "python -m drbode.train leaves them"
        )
    return files


def _run(path: Path, record: Record) -> RunRecord:
    words = [str(word) for word in record.overrides]
    seeds = [word.partition("=")[2] for word in words if word.startswith("seed=")]
    config = record.config or None
    finished = record.status == "finished" and bool(record.stages)
    return RunRecord(
        folder=path.parent,
        overrides=tuple(w for w in words if not (ELSEWHERE.match(w) or w.startswith("seed="))),
        seed=int(config["seed"] if config is not None else seeds[-1] if seeds else 0),
        status="finished" if finished else record.status,
        error=record.error,
        config=config,
        measures=measured_last(record.measures) if finished else {},
        of_stages=record.measures if finished else {},
        questions=_questions(record) if finished else 0,
        conditions=_conditions(record) if finished else {},
    )


def _questions(record: Record) -> int:
    if record.base is None:
        raise KeyError("base")
    return int(record.base.summary["questions"])


def _conditions(record: Record) -> dict[str, str]:
    machine = record.machine
    if record.data is None:
        raise KeyError("data")
    return {
        "software": digest(record.versions),
        "code": str(record.code or (record.git or {}).get("commit")),
        "questions": str(record.data.benchmark["digest"]),
        "machine": digest([machine[k] for k in ("cpu", "accelerator", "precision", "dtype")]),
    }
