"""What a run leaves behind: a folder with one `record.json`. Imports no torch."""

from drbode.record.environment import PACKAGES, code_digest, cpu_model, git_state, versions
from drbode.record.files import (
    append,
    exclusive,
    weight_bytes,
    whole,
    write_csv,
    write_json,
    write_jsonl,
)
from drbode.record.measures import BASE, RUN, measured_last, measures_of, of_open
from drbode.record.run import Run, load_record, open_run, read_record, write_failed
from drbode.record.schema import (
    SCHEMA,
    Inputs,
    Measured,
    Record,
    StageRecord,
    StageResult,
    from_json,
    upgraded,
)

__all__ = [
    "BASE",
    "PACKAGES",
    "RUN",
    "SCHEMA",
    "Inputs",
    "Measured",
    "Record",
    "Run",
    "StageRecord",
    "StageResult",
    "append",
    "code_digest",
    "cpu_model",
    "exclusive",
    "from_json",
    "git_state",
    "load_record",
    "measured_last",
    "measures_of",
    "of_open",
    "open_run",
    "read_record",
    "upgraded",
    "versions",
    "weight_bytes",
    "whole",
    "write_csv",
    "write_failed",
    "write_json",
    "write_jsonl",
]
