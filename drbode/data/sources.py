"""Where rows come from: the shipped laboratory, a file, or a data set on the Hugging Face hub."""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from drbode.config import BODINHO, BadInput
from drbode.data import bodinho

Kind = Literal["text", "chat", "pair", "question"]
Record = tuple[str, Mapping[str, Any]]  # where it stands, and its fields
T = TypeVar("T")


def read(
    kind: Kind,
    path: str,
    split: str,
    revision: str | None,
    key: str,
    conditions: bodinho.Conditions = "default",
) -> list[Record]:
    """All records of a source, each with where it stands; `key` is what a complaint names.
    `conditions` says which of bodinho's are taken.

    Raises BadInput where there is nothing to read or a line is no JSON object.
    """
    if path == BODINHO:
        records = list(_bodinho(kind, split, key, conditions))
    elif Path(path).suffix in (".jsonl", ".json", ".parquet"):
        if not Path(path).is_file():
            raise BadInput(f"{key}: there is no file {path}")
        records = list(_file(Path(path)))
    elif Path(path).exists():
        raise BadInput(f"{key}: expected a .jsonl, .json or .parquet file, got {path}")
    else:
        records = list(_hub(path, split, revision, key))
    if not records:
        raise BadInput(f"{key}: {path} holds no rows")
    return records


def sample(records: list[T], count: int | None, seed: int) -> list[T]:
    """A random sample in its original order; all of them where count is None or too large."""
    if count is None or count >= len(records):
        return records
    chosen = sorted(random.Random(seed).sample(range(len(records)), count))
    return [records[i] for i in chosen]


def digest(records: Iterable[Record]) -> str:
    """The first 16 hex digits of the SHA-256 of the records' content, wherever they stand."""
    total = hashlib.sha256()
    for _, fields in records:
        line = json.dumps(fields, sort_keys=True, ensure_ascii=False, default=str)
        total.update(line.encode() + b"\n")
    return total.hexdigest()[:16]


def _bodinho(kind: Kind, split: str, key: str, conditions: bodinho.Conditions) -> Iterator[Record]:
    makers: dict[Kind, Mapping[str, bodinho.Maker]] = {
        "text": bodinho.TEXTS,
        "chat": bodinho.CHATS,
        "pair": bodinho.PAIRS,
        "question": bodinho.QUESTIONS,
    }
    if split not in makers[kind]:
        raise BadInput(
            f"{key}: bodinho has no split {split} there; expected {', '.join(makers[kind])}"
        )
    for number, fields in enumerate(makers[kind][split](conditions), 1):
        yield f"bodinho {split} row {number}", fields


def _file(path: Path) -> Iterator[Record]:
    if path.suffix == ".parquet":
        from pyarrow import ArrowInvalid, parquet

        try:
            rows = parquet.read_table(path).to_pylist()
        except ArrowInvalid as error:
            raise BadInput(f"{path}: is no parquet file ({error})") from None
        yield from ((f"{path}, row {n}", row) for n, row in enumerate(rows, 1))
        return
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: expected UTF-8 text ({error})") from None
    if path.suffix == ".json":
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise BadInput(f"{path}: is no JSON ({error})") from None
        if not isinstance(rows, list):
            raise BadInput(f"{path}: expected a list of rows, got {type(rows).__name__}")
        numbered = [(f"{path}, row {n}", row) for n, row in enumerate(rows, 1)]
    else:
        numbered = []
        for n, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                numbered.append((f"{path}, line {n}", json.loads(line)))
            except ValueError as error:
                raise BadInput(f"{path}, line {n}: is no JSON ({error})") from None
    for where, row in numbered:
        if not isinstance(row, Mapping):
            raise BadInput(f"{where}: expected an object with fields, got {type(row).__name__}")
        yield where, row


def _hub(path: str, split: str, revision: str | None, key: str) -> Iterator[Record]:
    import datasets

    try:
        rows = datasets.load_dataset(path, revision=revision, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        first = str(error).strip().split("\n")[0]
        raise BadInput(
            f"{key}: {path} is no file here and could not be had from the hub ({first}); expected "
            f"{BODINHO}, a .jsonl, .json or .parquet file, or a data set's id"
        ) from None
    for number, row in enumerate(rows, 1):
        yield f"{path} {split} row {number}", row
