"""Where rows come from: the shipped laboratory, a file, a function, or a data set on the hub."""

import codecs
import csv
import hashlib
import json
import math
import os
import random
import weakref
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

from drbode.config import (
    BODINHO,
    ROWS_FILES,
    TEXT_FILE,
    BadInput,
    RowKind,
    failure,
    is_function,
    load_function,
    unwritable,
)
from drbode.data import bodinho
from drbode.system import read_at

Record = tuple[str, Mapping[str, Any]]  # where it stands, and its fields
T = TypeVar("T")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
OF_TEXT: tuple[RowKind, ...] = ("text", "masked")  # kinds that a plain text file holds


class Columns(NamedTuple):
    """What is read of a row: columns that have to be there, and those read where they are.

    All columns of one of `instead` stand in for those needed. `beside` are read where they are,
    and say how the row is to be taken.
    """

    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()
    instead: tuple[tuple[str, ...], ...] = ()
    beside: tuple[str, ...] = ()


class Picked(Sequence[T]):
    """Some of a sequence's items, fetched from it each time they are asked for."""

    def __init__(self, whole: Sequence[T], indices: Sequence[int]) -> None:
        self.whole = whole
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return Picked(self.whole, self.indices[index])
        return self.whole[self.indices[index]]


def read(
    kind: RowKind,
    path: str,
    split: str,
    revision: str | None,
    key: str,
    conditions: bodinho.Conditions = "default",
    columns: Columns | None = None,
) -> Sequence[Record]:
    """All records of a source, each with where it stands; `key` is what a complaint names.
    `conditions` says which of bodinho's are taken.

    Of a table (parquet, or a hub set) only `columns` are read. All but bodinho, .json and the rows
    of a function stay in their file, from which a record is read each time it is asked for. A
    function, named `module:function`, is called with the split's name and gives mappings. Raises
    BadInput where a column is missing or there is nothing to read, and a line that is no JSON
    object does once it is come to.
    """
    records: Sequence[Record]
    if path == BODINHO:
        records = list(_bodinho(kind, split, key, conditions))
    elif Path(path).suffix in ROWS_FILES:
        if not Path(path).is_file():
            raise BadInput(f"{key}: there is no file {path}")
        records = _file(Path(path), kind, key, columns)
    elif is_function(path):
        records = list(_called(path, split, key))
    elif Path(path).is_file():
        raise BadInput(f"{key}: expected a {_files(kind)} file, got {path}")
    else:
        records = _HubRecords(path, kind, split, revision, key, columns)
    if not records:
        raise BadInput(f"{key}: {path} holds no rows")
    return records


def sample(records: Sequence[T], count: int | None, seed: int) -> Sequence[T]:
    """A random sample in its original order; all of them where count is None or too large."""
    if count is None or count >= len(records):
        return records
    chosen = random.Random(seed).sample(range(len(records)), count)
    return Picked(records, array("q", sorted(chosen)))


def digest(records: Iterable[Record]) -> str:
    """The first 16 hex digits of the SHA-256 of the records' content, wherever they stand."""
    total = hashlib.sha256()
    for _, fields in records:
        line = json.dumps(fields, sort_keys=True, ensure_ascii=False, default=str)
        total.update(line.encode() + b"\n")
    return total.hexdigest()[:16]


def _bodinho(
    kind: RowKind, split: str, key: str, conditions: bodinho.Conditions
) -> Iterator[Record]:
    makers: dict[RowKind, Mapping[str, bodinho.Maker]] = {
        "text": bodinho.TEXTS,
        "masked": bodinho.TEXTS,
        "chat": bodinho.CHATS,
        "pair": bodinho.PAIRS,
        "prompt": bodinho.PAIRS,
        "question": bodinho.QUESTIONS,
        "reference": bodinho.REFERENCES,
    }
    if split not in makers[kind]:
        raise BadInput(
            f"{key}: bodinho has no split {split} there; expected {', '.join(makers[kind])}"
        )
    for number, fields in enumerate(makers[kind][split](conditions), 1):
        yield f"bodinho {split} row {number}", fields


def _called(name: str, split: str, key: str) -> Iterator[Record]:
    """The rows that a function of the user's gives, each a copy."""
    load = load_function(name, key, "module:function of (split)")
    number = 0
    try:
        for number, row in enumerate(load(split), 1):
            where = f"{name} {split} row {number}"
            if not isinstance(row, Mapping):
                raise BadInput(
                    f"{key}: {where}: expected a mapping of columns, got {type(row).__name__}"
                )
            yield where, dict(row)
    except BadInput:
        raise
    except Exception as error:  # whatever the user's function raises
        raise BadInput(f"{key}: {name} failed after {number} rows ({failure(error)})") from error


def _file(path: Path, kind: RowKind, key: str, columns: Columns | None) -> Sequence[Record]:
    if path.suffix == ".parquet":
        return _ParquetRecords(path, key, columns)
    if path.suffix == TEXT_FILE:
        if kind not in OF_TEXT:
            raise BadInput(
                f"{key}: {path} holds plain text, without the fields of rows; expected a "
                f"{_files(kind)} file"
            )
        return _TextRecords(path, columns.needed[0] if columns else "text")
    if path.suffix == ".jsonl":
        return _LineRecords(path)
    if path.suffix in DELIMITERS:
        return list(_cells(path))
    try:
        rows = _json(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: expected UTF-8 text ({error})") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # a second object: JSON Lines under another name
            return _LineRecords(path)
        raise BadInput(f"{path}: is no JSON ({error})") from None
    except ValueError as error:
        raise BadInput(f"{path}: {error}") from None
    if not isinstance(rows, list):
        raise BadInput(f"{path}: expected a list of rows, got {type(rows).__name__}")
    return [(f"{path}, row {n}", _fields(row, f"{path}, row {n}")) for n, row in enumerate(rows, 1)]


def _cells(path: Path) -> Iterator[Record]:
    """The rows of a CSV or TSV file, each where its last line stands; empty cells are missing."""
    csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=DELIMITERS[path.suffix], strict=True)
            names = reader.fieldnames or []
            if twice := [name for name in names if names.count(name) > 1]:
                raise BadInput(f"{path}: column {twice[0]!r} stands twice in its first line")
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise BadInput(f"{where}: expected {len(names)} cells as in the first line")
                yield where, {name: cell if cell.strip() else None for name, cell in row.items()}
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: expected UTF-8 text ({error})") from None
    except csv.Error as error:
        raise BadInput(f"{path}: cannot be read as {path.suffix[1:].upper()} ({error})") from None


def _json(text: str) -> Any:
    """JSON in which NaN is null. Raises ValueError where a key stands twice in an object."""
    return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice in one object; keep one of them")
    return row


def _constant(name: str) -> None:
    if name != "NaN":
        raise ValueError(f"expected numbers, got {name}")


def _without_nan(value: Any) -> Any:
    """A table's cell, in which not-a-number stands for what is missing."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return value


def _fields(row: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise BadInput(f"{where}: expected an object with fields, got {type(row).__name__}")
    return row


class _OnDisk(Sequence[Record], ABC):
    """Records that are read off the disk one by one."""

    @abstractmethod
    def record(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        every = range(len(self))
        return Picked(self, every[index]) if isinstance(index, slice) else self.record(every[index])


class Sound(_OnDisk):
    """Those of a source's records that can be read: a source by itself, not a part of one."""

    def __init__(self, records: Sequence[Record], indices: Sequence[int]) -> None:
        self.records = records
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def record(self, index: int) -> Record:
        return self.records[self.indices[index]]


class _LineRecords(_OnDisk):
    """A line a record; held in memory are 12 bytes of each: where it begins, and its number."""

    joins = False  # whether lines without a blank one between them are one record

    def __init__(self, path: Path) -> None:
        self.path = path
        self.starts, self.lines = array("q"), array("I")
        at, inside = 0, False
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    inside = False
                elif not (inside and self.joins):
                    self.starts.append(at)
                    self.lines.append(number)
                    inside = True
                at += len(line)
        self.starts.append(at)
        self.file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.file)

    def __len__(self) -> int:
        return len(self.lines)

    def record(self, index: int) -> Record:
        where = f"{self.path}, line {self.lines[index]}"
        start, end = self.starts[index], self.starts[index + 1]
        try:
            line = read_at(self.file, end - start, start)
            return where, self.read(line.removeprefix(codecs.BOM_UTF8).decode().strip(), where)
        except UnicodeDecodeError as error:
            raise BadInput(f"{where}: expected UTF-8 text ({error})") from None

    def read(self, text: str, where: str) -> Mapping[str, Any]:
        try:
            row = _json(text)
        except json.JSONDecodeError as error:
            raise BadInput(f"{where}: is no JSON ({error})") from None
        except ValueError as error:
            raise BadInput(f"{where}: {error}") from None
        return _fields(row, where)


class _TextRecords(_LineRecords):
    """Plain text: documents with a blank line between them, as rows of one column."""

    joins = True

    def __init__(self, path: Path, column: str) -> None:
        super().__init__(path)
        self.column = column

    def read(self, text: str, where: str) -> Mapping[str, Any]:
        return {self.column: text}


class _ParquetRecords(_OnDisk):
    """A parquet file, of which one row group at a time is in memory."""

    def __init__(self, path: Path, key: str, columns: Columns | None) -> None:
        from pyarrow import ArrowInvalid, parquet

        self.path = path
        try:
            self.file = parquet.ParquetFile(path)
        except ArrowInvalid as error:
            raise BadInput(f"{path}: is no parquet file ({error})") from None
        self.columns = _wanted(self.file.schema_arrow.names, columns, str(path), key)
        groups = range(self.file.num_row_groups)
        sizes = (self.file.metadata.row_group(group).num_rows for group in groups)
        self.ends = list(accumulate(sizes))
        self.group, self.rows = -1, list[Mapping[str, Any]]()

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def record(self, index: int) -> Record:
        group = bisect_right(self.ends, index)
        if group != self.group:
            self.rows = self.file.read_row_group(group, columns=self.columns).to_pylist()
            self.group = group
        row = self.rows[index - (self.ends[group - 1] if group else 0)]
        return f"{self.path}, row {index + 1}", _without_nan(row)


class _HubRecords(_OnDisk):
    """A data set of the hub, or a folder like one: its rows are read off the disk one by one."""

    def __init__(
        self,
        path: str,
        kind: RowKind,
        split: str,
        revision: str | None,
        key: str,
        columns: Columns | None,
    ) -> None:
        import datasets

        self.name = f"{path} {split}"
        datasets.disable_progress_bars()
        try:
            rows = datasets.load_dataset(path, revision=revision, split=split)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            refused = unwritable(error)
            raise refused or BadInput(_unreached(path, kind, split, key, error)) from None
        finally:
            datasets.enable_progress_bars()
        self.rows = rows.select_columns(_wanted(rows.column_names, columns, path, key))

    def __len__(self) -> int:
        return len(self.rows)

    def record(self, index: int) -> Record:
        return f"{self.name} row {index + 1}", _without_nan(self.rows[index])

    def __iter__(self) -> Iterator[Record]:
        for number, row in enumerate(self.rows, 1):
            yield f"{self.name} row {number}", _without_nan(row)


def _files(kind: RowKind) -> str:
    """The files that rows of a kind are read from, as a complaint lists them."""
    *most, last = (name for name in ROWS_FILES if kind in OF_TEXT or name != TEXT_FILE)
    return f"{', '.join(most)} or {last}"


def _unreached(path: str, kind: RowKind, split: str, key: str, error: Exception) -> str:
    """Why a data set could not be loaded, and what to do about it."""
    first = str(error.__cause__ or error).strip().split("\n")[0]
    if first.startswith("Unknown split"):
        stem = key.rsplit(".", 1)[0]
        return f"{stem}.split: {path} has no split {split} ({first})"
    if Path(path).exists():
        return (
            f"{key}: {path} could not be read as a data set ({first}); expected a {_files(kind)} "
            "file, or a folder of such files laid out as on the hub"
        )
    return (
        f"{key}: {path} is no file here and could not be had from the hub ({first}); expected "
        f"{BODINHO}, a {_files(kind)} file, module:function, or a data set's id"
    )


def _wanted(names: list[str], columns: Columns | None, path: str, key: str) -> list[str]:
    """Those of a table's columns that are read; all where that is left open."""
    if columns is None:
        return names
    missing = [name for name in columns.needed if name not in names]
    if missing and not any(set(names) >= set(layout) for layout in columns.instead):
        raise BadInput(
            f"{key}: {path} has no column {' and no column '.join(missing)}; expected "
            f"{', '.join(columns.needed)}, found {', '.join(names)}"
        )
    read = {*columns.needed, *columns.optional, *columns.beside}
    read.update(name for layout in columns.instead for name in layout)
    return [name for name in names if name in read]
