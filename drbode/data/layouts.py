"""The layouts in which rows for training come, each turned into the one that the stages read.

Conversations come as `messages` (lists of role and content), ShareGPT (`conversations` of from and
value), Alpaca (`instruction`, `input`, `output`) or a prompt beside its completion; preferences
with their prompt beside them, inside both answers, or as dialogues in text (`\\n\\nHuman:`).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, overload

from drbode.config import BadInput, RowKind
from drbode.config.blocks import RowLayout
from drbode.data.rows import parse_chat
from drbode.data.sources import Columns, Picked, Record

Row = Mapping[str, Any]
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "system": "system",
}
DIALOGUE = re.compile(r"(?:^|\n\n)(Human|Assistant):")
# What a row may say besides its conversation.
BESIDE = ("system", "tools", "input", "label", "weight", "train")


class Recognised(NamedTuple):
    """A row in the stages' own layout, and the name of the one that it came in."""

    fields: Row
    layout: RowLayout


class Uniform(Sequence[Record]):
    """Records in the stages' own layout, each turned into it when it is asked for.

    Raises BadInput, at a record, where the row is in none of the layouts that are allowed.
    """

    def __init__(
        self, records: Sequence[Record], kind: RowKind, column: str, layout: RowLayout, key: str
    ) -> None:
        if layout != "auto" and layout not in LAYOUTS[kind]:
            raise BadInput(
                f"{key}: rows of this stage come as auto, {', '.join(LAYOUTS[kind])}, got {layout}"
            )
        self.records = records
        self.kind = kind
        self.column = column
        self.layout = layout

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return Picked(self, range(len(self))[index])
        return self._uniform(self.records[index])

    def __iter__(self) -> Iterator[Record]:
        return map(self._uniform, self.records)

    def picked(self, indices: Sequence[int]) -> "Uniform":
        """Some of the records."""
        rows = Picked(self.records, indices)
        return Uniform(rows, self.kind, self.column, self.layout, "")

    def layouts(self) -> str:
        """The layout of the first record, for the ledger."""
        where, row = self.records[0]
        return recognise(self.kind, row, where, self.column, self.layout).layout

    def _uniform(self, record: Record) -> Record:
        where, row = record
        return where, recognise(self.kind, row, where, self.column, self.layout).fields


def uniform(
    records: Sequence[Record], kind: RowKind, column: str, layout: RowLayout, key: str
) -> Sequence[Record]:
    """The records in the layout that a stage reads; raw text is left as it is."""
    return Uniform(records, kind, column, layout, key) if kind in LAYOUTS else records


def recognise(kind: RowKind, row: Row, where: str, column: str, layout: RowLayout) -> Recognised:
    """A row in the stage's own layout. Raises BadInput where it is not in the layout asked for.

    With `auto`, the first layout that fits is taken; a row that fits none is left as it is, for
    its parser to refuse.
    """
    names = LAYOUTS[kind] if layout == "auto" else (layout,)
    for name in names:
        fields = READ[name](row, where, column)
        if fields is not None:
            return Recognised(fields, name)
    if layout == "auto":
        return Recognised(row, names[0])
    there = ", ".join(map(str, row)) or "none"
    raise BadInput(f"{where}: is not in the layout {layout}; its fields are {there}")


def chat_columns(column: str) -> Columns:
    """Columns of a conversation, in any of its layouts."""
    layouts = (
        ("messages",),
        ("conversations",),
        ("instruction", "output"),
        ("prompt", "completion"),
    )
    return Columns((column,), (), layouts, BESIDE)


def pair_columns(column: str) -> Columns:
    """Columns of a preference, whose prompt may stand inside both answers."""
    return Columns((column, "chosen", "rejected"), (), (("chosen", "rejected"),), BESIDE)


def prompt_columns(column: str) -> Columns:
    """A prompt, and answers to it where they are."""
    return Columns((column,), ("chosen", "rejected"), (("chosen", "rejected"),), BESIDE)


# --- conversations -------------------------------------------------------------------------------


def _messages(row: Row, where: str, column: str) -> Row | None:
    for name in (column, "messages"):
        if row.get(name) is not None and not _shared(row[name]):
            return _chat(row, where, column, row[name], name)
    return None


def _sharegpt(row: Row, where: str, column: str) -> Row | None:
    for name in (column, "conversations"):
        if _shared(row.get(name)) or (name == "conversations" and _turns(row.get(name))):
            turns = [_spoken(turn, where, name, n) for n, turn in enumerate(row[name], 1)]
            return _chat(row, where, column, turns, name)
    return None


def _alpaca(row: Row, where: str, column: str) -> Row | None:
    if row.get("instruction") is None or row.get("output") is None:
        return None
    request = [row["instruction"], row.get("input") or ""]
    turns = [
        {"role": "user", "content": "\n\n".join(str(part) for part in request if part)},
        {"role": "assistant", "content": row["output"]},
    ]
    return _chat(row, where, column, turns, "output")


def _prompt_completion(row: Row, where: str, column: str) -> Row | None:
    if row.get("prompt") is None or row.get("completion") is None:
        return None
    if row.get("label") is not None and not _good(row["label"]):
        raise BadInput(
            f"{where}: label: says {row['label']!r}, that the answer is a bad one, which this "
            "stage would learn; leave the row out"
        )
    parts: list[Any] = []
    for name, role in (("prompt", "user"), ("completion", "assistant")):
        given = row[name]
        parts += given if isinstance(given, list) else [{"role": role, "content": given}]
    return _chat(row, where, column, parts, "completion")


def _chat(row: Row, where: str, column: str, turns: Any, name: str) -> Row:
    """A row in our layout, after a system turn of its own column, where there is one."""
    if row.get("tools"):
        raise BadInput(
            f"{where}: tools: rows with tools are not rendered, and without them the answers "
            "would be learned for another prompt; leave the row out"
        )
    _refuse_weight(row, where)
    if name != column and name in ("messages", "conversations"):
        parse_chat({name: turns}, where, name)  # complaints name the row's field, not ours
    system = row.get("system")
    if isinstance(system, str) and system.strip() and isinstance(turns, list) and turns:
        first = turns[0]
        if not (isinstance(first, Mapping) and first.get("role") == "system"):
            turns = [{"role": "system", "content": system}, *turns]
        elif first.get("content") != system:
            raise BadInput(
                f"{where}: system: says another thing than the system turn in {name}; keep one"
            )
    elif name == column:
        return row
    return {column: turns}


def _refuse_weight(row: Row, where: str) -> None:
    for name in ("weight", "train"):
        if row.get(name) is not None and row[name] != 1:
            raise BadInput(
                f"{where}: {name}: expected 1 or true of a whole row, got {row[name]!r}; leave "
                "the row out, or mark the turns that are not to be learned"
            )


def _turns(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _shared(value: Any) -> bool:
    return _turns(value) and "from" in value[0]


def _spoken(turn: Any, where: str, name: str, number: int) -> Row:
    """A turn of ShareGPT as a message."""
    if not isinstance(turn, Mapping) or "from" not in turn:
        return turn  # for the parser of conversations to refuse
    speaker = str(turn["from"])
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    return {**rest, "role": SPEAKERS.get(speaker.lower(), speaker), "content": turn.get("value")}


# --- preferences ---------------------------------------------------------------------------------


def _explicit(row: Row, where: str, column: str) -> Row | None:
    """The prompt beside the answers, which may repeat it."""
    prompt = row.get(column)
    if prompt is None:
        return None
    _no_tools(row, where)
    changed: dict[str, Any] = {}
    shared = _shared_turns(row)
    if isinstance(prompt, str):
        if _is_dialogue(prompt):
            changed[column] = _answered(_dialogue(prompt))
        elif shared and str(shared[-1].get("content")).strip() == prompt.strip():
            changed[column] = shared
    if column in changed and shared == changed[column]:
        for name in ("chosen", "rejected"):
            changed[name] = row[name][len(shared) :]
    return _with_system({**row, **changed}, where, column)


def _implicit(row: Row, where: str, column: str) -> Row | None:
    """The prompt inside both answers, each a list of turns."""
    if not (_turns(row.get("chosen")) and _turns(row.get("rejected"))):
        return None
    _no_tools(row, where)
    shared = _shared_turns(row)
    if not shared:
        raise BadInput(
            f"{where}: chosen and rejected: expected the same turns before the last, and one "
            f"answer after them; mend the row or give the prompt as {column}"
        )
    sides = {name: row[name][len(shared) :] for name in ("chosen", "rejected")}
    return _with_system({column: shared, "system": row.get("system"), **sides}, where, column)


def _hh(row: Row, where: str, column: str) -> Row | None:
    """Dialogues as text, the prompt in both."""
    sides = [row.get("chosen"), row.get("rejected")]
    if not all(isinstance(side, str) and _is_dialogue(side) for side in sides):
        return None
    chosen, rejected = (_dialogue(str(side)) for side in sides)
    return _implicit({**row, "chosen": chosen, "rejected": rejected}, where, column)


def _unpaired(row: Row, where: str, column: str) -> Row | None:
    """One answer with a label, of which no pair can be made."""
    if row.get("label") is None or row.get("completion") is None:
        return None
    good = "good" if _good(row["label"]) else "bad"
    raise BadInput(
        f"{where}: label: the row holds one answer, called {good}, and this stage learns from "
        "pairs; give rows with chosen and rejected"
    )


def _good(label: Any) -> bool:
    return label in (True, 1) or str(label).strip().lower() in ("true", "1", "good")


def _no_tools(row: Row, where: str) -> None:
    if row.get("tools"):
        raise BadInput(f"{where}: tools: rows with tools are not rendered; leave the row out")
    _refuse_weight(row, where)


def _with_system(row: Row, where: str, column: str) -> Row:
    """A preference whose prompt begins with the system turn of the row's column `system`."""
    system, prompt = row.get("system"), row[column]
    if not isinstance(system, str) or not system.strip():
        return row
    turns = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    if turns and isinstance(turns[0], Mapping) and turns[0].get("role") == "system":
        if turns[0].get("content") == system:
            return row
        raise BadInput(
            f"{where}: system: says another thing than the system turn in {column}; keep one"
        )
    return {**row, column: [{"role": "system", "content": system}, *turns]}


def _shared_turns(row: Row) -> list[Row]:
    """The turns before the last of both answers; none where these differ."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if not (_turns(chosen) and _turns(rejected)):
        return []
    assert isinstance(chosen, list)
    assert isinstance(rejected, list)
    return chosen[:-1] if chosen[:-1] == rejected[:-1] else []


def _is_dialogue(text: str) -> bool:
    match = DIALOGUE.match(text.lstrip("\n")) or DIALOGUE.match(text)
    return match is not None and match[1] == "Human"


def _dialogue(text: str) -> list[Row]:
    """The turns of a dialogue as text: what stands before the first speaker is empty."""
    parts = DIALOGUE.split(text.lstrip("\n"))
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[name], "content": said.strip()}
        for name, said in zip(parts[1::2], parts[2::2], strict=True)
    ]


def _answered(turns: list[Row]) -> list[Row]:
    """A prompt without the empty answer that it may end in (`\\n\\nAssistant:`)."""
    return turns if not turns or turns[-1]["content"] else turns[:-1]


READ: dict[RowLayout, Callable[[Row, str, str], Row | None]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "pairs": _explicit,
    "implicit_prompt": _implicit,
    "hh": _hh,
    "unpaired": _unpaired,
}
PREFERENCES: tuple[RowLayout, ...] = ("hh", "unpaired", "pairs", "implicit_prompt")
LAYOUTS: dict[RowKind, tuple[RowLayout, ...]] = {
    "chat": ("messages", "sharegpt", "alpaca", "prompt_completion"),
    "pair": PREFERENCES,
    "prompt": ("pairs", "hh", "implicit_prompt"),
}
