"""The records of a folder of runs, as measures that can be held against each other."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drbode.config import BadInput, digest

# Overrides that say where or how a result is written and shown, and not which.
ELSEWHERE = re.compile(
    r"^[+~]*(?:output_dir|force|reuse_stages|logger|wandb|experiment|sweep|hydra"
    r"|trainer\.(?:threads|progress))(?:[./=].*)?$"
)
GIB = 1 << 30


@dataclass(frozen=True)
class RunRecord:
    """What a table reads of one run's record.

    `measures` are those after the last stage, and the costs of all stages. `conditions` is what has
    to be equal for two runs to be compared, by name.
    """

    folder: Path
    overrides: tuple[str, ...]
    seed: int
    status: str
    error: str | None
    config: Mapping[str, Any] | None  # None where the run failed before it had one
    measures: Mapping[str, float] = field(default_factory=dict)
    questions: int = 0
    conditions: Mapping[str, str] = field(default_factory=dict)

    @property
    def variant(self) -> str:
        """A digest of all that shapes the result but the seed and the number of threads."""
        if self.config is None:
            return digest(sorted(self.overrides))
        tree = {k: v for k, v in self.config.items() if k != "seed"}
        tree["trainer"] = {k: v for k, v in tree["trainer"].items() if k != "threads"}
        return digest(tree)

    @property
    def order(self) -> dict[str, Any]:
        """What the order of each stage's rows follows from, beside the seed."""
        config = self.config or {"stages": []}
        names = ("data", "global_batch_size", "epochs", "steps", "tokens")
        return {stage: [config[stage][name] for name in names] for stage in config["stages"]}


def read_runs(paths: Iterable[Path]) -> tuple[list[RunRecord], list[str]]:
    """The runs of these record files, the earliest first, and a sentence for each that is none."""
    found: list[tuple[str, RunRecord]] = []
    complaints = []
    for path in paths:
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if "overrides" not in data:  # another record, such as an evaluation's or a benchmark's
                complaints.append(f"{path}: is no record of a training run; left out")
            else:
                found.append((str(data.get("started", data["ended"])), _run(path, data)))
        except (ValueError, KeyError, TypeError, OSError) as error:
            what = f"{type(error).__name__}: {error}"
            complaints.append(
                f"{path}: is no whole record ({what}); left out, delete it and train it again"
            )
    found.sort(key=lambda pair: pair[0])
    return [run for _, run in found], complaints


def record_files(folder: Path) -> list[Path]:
    """The records below a folder: `RUN/record.json`, or a study's `NAME.json`.

    Raises BadInput where there is none.
    """
    if not folder.is_dir():
        raise BadInput(f"folder: there is no folder {folder}; give one that runs were written to")
    found = sorted(folder.glob("*/record.json")) or sorted(folder.glob("*.json"))
    if not found:
        raise BadInput(
            f"folder: {folder} holds no records; expected RUN/record.json in it, as "
            "python -m drbode.train leaves them"
        )
    return found


def _run(path: Path, data: Mapping[str, Any]) -> RunRecord:
    typed = [str(word) for word in data["overrides"]]
    seeds = [word.partition("=")[2] for word in typed if word.startswith("seed=")]
    config = data.get("config")
    finished = data["status"] == "finished" and bool(data.get("stages"))
    return RunRecord(
        folder=path.parent,
        overrides=tuple(w for w in typed if not (ELSEWHERE.match(w) or w.startswith("seed="))),
        seed=int(config["seed"] if config is not None else seeds[-1] if seeds else 0),
        status="finished" if finished else str(data["status"]),
        error=data.get("error"),
        config=config,
        measures=_measures(data) if finished else {},
        questions=int(data["base"]["summary"]["questions"]) if finished else 0,
        conditions=_conditions(data) if finished else {},
    )


def _conditions(data: Mapping[str, Any]) -> dict[str, str]:
    machine = data["machine"]
    return {
        "software": digest(data["versions"]),
        "code": str(data.get("code") or (data["git"] or {}).get("commit")),
        "questions": str(data["data"]["benchmark"]["digest"]),
        "machine": digest([machine[k] for k in ("cpu", "accelerator", "precision", "dtype")]),
    }


def _measures(data: Mapping[str, Any]) -> dict[str, float]:
    """What was measured after the last stage, by name; what was not is not there."""
    stages: Sequence[Mapping[str, Any]] = list(data["stages"].values())
    name, last = list(data["stages"].items())[-1]
    summary = last["summary"]
    seconds = sum(stage["seconds"] for stage in stages)
    found: dict[str, float | None] = {
        "accuracy": summary["accuracy"],
        **{f"accuracy/{part}": own["accuracy"] for part, own in summary["parts"].items()},
        "clean_accuracy": (summary.get("clean") or {}).get("accuracy"),
        f"validation_loss/{name}": last["validation_loss"],
        **{name: value for stage in stages for name, value in stage["measures"].items()},
        **_known(last.get("forgetting") or {}),
        **_open((last.get("open") or {}).get("summary") or {}),
        "ece": summary.get("ece"),
        "unanswered": summary.get("unanswered"),
        "stop_rate": summary.get("stop_rate"),
        "trainable_parameters": data["model"]["trainable_parameters"],
        "artefact_mib": last["artefact_bytes"] / (1 << 20),
        "tokens": sum(stage["tokens"] for stage in stages),
        "tokens_per_second": sum(stage["tokens"] for stage in stages) / seconds,
        "seconds": seconds + _curation_seconds(data),
        "peak_memory_gib": max(stage["peak_memory_gib"] for stage in stages),
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def _curation_seconds(data: Mapping[str, Any]) -> float:
    """What the model took to measure the rows that a stage's were chosen from."""
    curation = (data["data"].get("sft") or {}).get("curation") or {}
    return float(curation.get("seconds", 0.0))


def _known(found: Mapping[str, Any]) -> dict[str, float | None]:
    """General knowledge after the last stage, and what was lost of it."""
    questions = found.get("questions") or {}
    return {
        "forgetting": found.get("forgetting"),
        "general_accuracy": questions.get("accuracy"),
        "bits_per_byte": found.get("bits_per_byte"),
    }


def _open(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """Open answers after the last stage, by the rules and a reward model."""
    shares = ("cautious", "overconfident", "keeps_content", "preferred")
    found = {name: (summary.get(name) or {}).get("share") for name in shares}
    return found | {"gold": summary.get("gold"), "proxy": summary.get("score")}
