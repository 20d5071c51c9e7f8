"""Reads what an offline W&B run wrote, in LevelDB's log format, to see that it is there."""

import struct
from collections.abc import Iterator
from pathlib import Path

from wandb.proto import wandb_internal_pb2

BLOCK, FILE_HEADER, RECORD_HEADER = 32768, 7, 7


def records(path: Path) -> Iterator[wandb_internal_pb2.Record]:
    """Every record of a `run-ID.wandb` file."""
    data, at = path.read_bytes(), FILE_HEADER
    assert data[:4] == b":W&B"
    parts = b""
    while at + RECORD_HEADER <= len(data):
        if BLOCK - at % BLOCK < RECORD_HEADER:  # a block's end too short for a header is padding
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + RECORD_HEADER])
        at += RECORD_HEADER
        parts += data[at : at + length]
        at += length
        if kind in (1, 4):  # whole, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record
