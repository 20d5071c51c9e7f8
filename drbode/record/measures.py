"""Every number that a run came to, under one name.

A name says whose the number is, and then what it is:

- `base/NAME` and `STAGE/NAME`: of the policy as measured before the first stage and after a stage,
  and of what the stage took. `sft/accuracy` is that on the benchmark, `sft/accuracy/PART` on a part
  of it; `dpo/gold` is that of open answers; `sft/seconds`.
- `STAGE/train/NAME` and `STAGE/validation/NAME`: what training came to on the stage's own rows, as
  in metrics.csv. `reward/validation/accuracy` is that on held-out pairs, `dpo/validation/kl`.
- `run/NAME`: of all stages together, such as `run/seconds`.
- `MODEL/NAME`: of a model in an evaluation; `model` where it is the only one.
"""

from collections.abc import Mapping
from typing import Any

from drbode.record.schema import Measured, Record, StageRecord

BASE = "base"
RUN = "run"
TRAIN_LOSS, LOSS = "train/loss", "validation/loss"  # in a unit of each stage's own
MIB = 1 << 20

Numbers = dict[str, float | None]  # None: was not measured


def measures_of(record: Record) -> dict[str, float]:
    """The numbers of a record by their names, the base's first and the run's last."""
    owners: dict[str, Numbers] = {}
    if record.base is not None:
        owners[BASE] = _policy(record.base)
    for name, stage in record.stages.items():
        owners[name] = _policy(stage) | _training(stage)
    if record.result is not None:
        owners |= _evaluation(record.result)
    if record.stages:
        owners[RUN] = _run(record)
    return {
        f"{owner}/{name}": float(value)
        for owner, numbers in owners.items()
        for name, value in numbers.items()
        if value is not None
    }


def measured_last(measures: Mapping[str, float]) -> dict[str, float]:
    """What each name came to when it was last measured, without whose it is; none of the base's.

    After stages sft and reward, `accuracy` is that after reward. A loss keeps its stage, the last
    one, for stages minimise different things: `reward/validation/loss`.
    """
    last = {}
    losses = {}
    for name, value in measures.items():
        owner, _, what = name.partition("/")
        if what in (TRAIN_LOSS, LOSS):
            losses[what] = (name, value)
        elif owner != BASE:
            last[what] = value
    return last | dict(losses.values())


def of_open(summary: Mapping[str, Any]) -> dict[str, float]:
    """The numbers in a summary of open answers: shares, and the means of lengths and scores.

    Those by scorers of the user's stand under `module:function`.
    """
    values = {
        "proxy" if name == "score" else name: value["share"] if isinstance(value, dict) else value
        for name, value in summary.items()
        if name not in ("prompts", "scores")
    }
    values |= summary.get("scores") or {}
    return {name: float(value) for name, value in values.items() if value is not None}


def _policy(measured: Measured) -> Numbers:
    opened = (measured.open or {}).get("summary", {})
    return {
        **_benchmark(measured.summary),
        **measured.cost,
        **_general(measured.forgetting),
        **of_open(opened),
    }


def _benchmark(summary: Mapping[str, Any]) -> Numbers:
    parts = summary.get("parts", {})
    return {
        "accuracy": summary.get("accuracy"),
        **{f"accuracy/{part}": result["accuracy"] for part, result in parts.items()},
        "clean_accuracy": (summary.get("clean") or {}).get("accuracy"),
        **{name: summary.get(name) for name in ("ece", "brier", "unanswered", "stop_rate")},
    }


def _general(known: Mapping[str, Any]) -> Numbers:
    """General knowledge, and what was lost of it."""
    return {
        "forgetting": known.get("forgetting"),
        "general_accuracy": known.get("questions", {}).get("accuracy"),
        "bits_per_byte": known.get("bits_per_byte"),
    }


def _training(stage: StageRecord) -> Numbers:
    return {
        TRAIN_LOSS: stage.train_loss,
        LOSS: stage.validation_loss,
        **{f"validation/{name}": value for name, value in stage.measures.items()},
        "steps": stage.steps,
        "tokens": stage.tokens,
        "seconds": stage.seconds,
        "tokens_per_second": stage.tokens_per_second,
        "peak_memory_gib": stage.peak_memory_gib,
        "artefact_mib": stage.artefact_bytes / MIB,
    }


def _run(record: Record) -> Numbers:
    """What all stages took; `seconds` hold what it took a model to measure rows for their choice.

    The artefact is the last stage's.
    """
    stages = list(record.stages.values())
    tokens, seconds = sum(s.tokens for s in stages), sum(s.seconds for s in stages)
    curation = (record.data.curation if record.data is not None else None) or {}
    return {
        "steps": sum(s.steps for s in stages),
        "tokens": tokens,
        "seconds": seconds + curation.get("seconds", 0.0),
        "tokens_per_second": tokens / seconds if seconds else None,
        "peak_memory_gib": max(s.peak_memory_gib for s in stages),
        "artefact_mib": stages[-1].artefact_bytes / MIB,
        "trainable_parameters": record.model.get("trainable_parameters"),
    }


def _evaluation(result: Mapping[str, Any]) -> dict[str, Numbers]:
    owners: dict[str, Numbers] = {RUN: {"seconds": result["seconds"]}}
    if "summary" in result:
        owners["model"] = _benchmark(result["summary"]) | result["cost"]
    for model, answers in result.get("open", {}).items():
        owners[model] = dict(of_open(answers["summary"]))
    return owners
