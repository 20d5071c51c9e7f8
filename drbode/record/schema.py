"""What a run's record holds, typed; and every older record, read as one of today's."""

from dataclasses import dataclass, field, fields
from typing import Any

from drbode.config import BadInput

SCHEMA = 2  # records without a schema are the first


@dataclass(kw_only=True)
class StageResult:
    """What training a stage came to; `seconds` are those of its steps, validation left out."""

    steps: int
    tokens: int
    seconds: float
    tokens_per_second: float
    peak_memory_gib: float
    train_loss: float
    validation_loss: float | None  # None: there were no rows to validate on
    measures: dict[str, float]  # on held-out rows, by the stage's own objective
    ended_by: str
    optimizer: str
    dropout: str
    warnings: list[str]  # what a person should know of it, a sentence each


@dataclass(kw_only=True)
class Measured:
    """What was measured of a policy, before the first stage or after one."""

    summary: dict[str, Any]  # of the benchmark
    cost: dict[str, float]  # of a question, in the mean
    forgetting: dict[str, Any]  # of general questions and text; empty where none are asked
    against_base: dict[str, Any] | None = None
    against_before: dict[str, Any] | None = None
    open: dict[str, Any] | None = None  # answers to open prompts


@dataclass(kw_only=True)
class StageRecord(StageResult, Measured):
    """A finished stage: what training it came to, and what was measured of the policy after it."""

    artefact: str  # the folder of its weights, in the run's
    artefact_bytes: int


@dataclass(kw_only=True)
class Inputs:
    """What a run read: ledgers of rows by stage, and what the policy was asked."""

    stages: dict[str, Any]
    benchmark: dict[str, Any]
    contamination: dict[str, Any] | None = None
    general: dict[str, Any] | None = None
    open: dict[str, Any] | None = None
    curation: dict[str, Any] | None = None


@dataclass(kw_only=True)
class Record:
    """A run or an evaluation, from its config to its results.

    `functions` are those of the user's that the config names, with a digest of their source;
    `result` is an evaluation's; `measures` are all numbers, under one name each, as in
    record/measures.py.
    """

    schema: int = SCHEMA
    name: str = ""
    status: str = "running"  # finished, failed, interrupted
    started: str | None = None
    ended: str | None = None
    seconds: float = 0.0
    error: str | None = None
    overrides: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)  # empty: it failed before it had one
    versions: dict[str, str] = field(default_factory=dict)
    git: dict[str, Any] | None = None
    code: str = ""
    functions: dict[str, str | None] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    data: Inputs | None = None
    base: Measured | None = None
    stages: dict[str, StageRecord] = field(default_factory=dict)
    result: dict[str, Any] | None = None
    measures: dict[str, float] = field(default_factory=dict)


def from_json(data: dict[str, Any]) -> Record:
    """The record that `dataclasses.asdict` made the data of; TypeError where they do not fit."""
    inputs, base = data.get("data"), data.get("base")
    typed = {
        "data": None if inputs is None else Inputs(**inputs),
        "base": None if base is None else Measured(**base),
        "stages": {name: StageRecord(**stage) for name, stage in data.get("stages", {}).items()},
    }
    return Record(**data | typed)


def upgraded(data: dict[str, Any]) -> dict[str, Any]:
    """The data of a record of any schema as those of today's, but for `measures`.

    Raises BadInput for a newer schema, and for data of another kind; KeyError, TypeError or
    AttributeError where something in them is damaged.
    """
    if not isinstance(data, dict) or "status" not in data:
        raise BadInput("is no record of a run")
    schema = data.get("schema", 1)
    if schema > SCHEMA:
        raise BadInput(
            f"was written by a newer drbode (schema {schema}, this one reads up to {SCHEMA}), "
            "which is needed to read it"
        )
    return data if schema == SCHEMA else _from_first(data)


# What the first stages that were ever recorded did not say.
ONCE_UNSAID = {
    "measures": {},
    "optimizer": "unknown",
    "dropout": "unknown",
    "warnings": [],
    "cost": {},
    "forgetting": {},
}


def _from_first(data: dict[str, Any]) -> dict[str, Any]:
    """Schema 1: ledgers beside what else was read, and no word of what was not there."""
    changed: dict[str, Any] = {
        "schema": SCHEMA,
        "stages": {name: _stage(name, stage) for name, stage in data.get("stages", {}).items()},
    }
    if "data" in data:
        changed["data"] = _inputs(data["data"])
    if "base" in data:
        changed["base"] = {"cost": {}, "forgetting": {}} | data["base"]
    known = {one.name for one in fields(Record)}
    return {name: value for name, value in data.items() if name in known} | changed


def _inputs(data: dict[str, Any]) -> dict[str, Any]:
    named = {one.name for one in fields(Inputs)}
    ledgers = {name: dict(ledger) for name, ledger in data.items() if name not in named}
    curations = [ledger.pop("curation") for ledger in ledgers.values() if "curation" in ledger]
    beside = {name: value for name, value in data.items() if name in named}
    return {"benchmark": {}, **beside, "stages": ledgers, "curation": next(iter(curations), None)}


def _stage(name: str, data: dict[str, Any]) -> dict[str, Any]:
    stage = ONCE_UNSAID | data
    if name == "ppo" and "accuracy" in stage["measures"]:  # of the benchmark, not of its objective
        renamed = {"accuracy": "benchmark_accuracy"}
        stage["measures"] = {renamed.get(n, n): value for n, value in stage["measures"].items()}
    return stage
