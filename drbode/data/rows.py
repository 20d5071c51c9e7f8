"""Rows as the program knows them, checked where they come in; `where` says which file and line."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drbode.config import BadInput

ROLES = ("system", "user", "assistant")
LETTERS = "ABCDE"
# The columns of a question that have to be there, and those read where they are.
QUESTION = ("enunciado", "alternativas", "resposta")
QUESTION_OPTIONAL = ("origem", "prova", "numero", "img_description")


@dataclass(frozen=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True)
class Text:
    """A document of raw text."""

    text: str
    where: str


@dataclass(frozen=True)
class Chat:
    """A conversation with at least one assistant turn, which is not its first."""

    messages: tuple[Message, ...]
    where: str


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends in a user's turn, to be answered; a right answer if one is known."""

    messages: tuple[Message, ...]
    right: str | None
    where: str


@dataclass(frozen=True)
class Pair:
    """A prompt that ends in a user's turn, and two answers to it, of which one is preferred."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    where: str


@dataclass(frozen=True)
class Question:
    """A multiple-choice question of drbodebench's columns.

    `alternatives` are those with text. `blank` holds the letters of the others, and what stands
    there as Python prints it ('None' for a null), which the chapter's prompt shows. `examples` are
    other questions, which stand before it with their answers.
    """

    origin: str
    exam: str
    number: str
    stem: str
    alternatives: dict[str, str]
    blank: dict[str, str]
    answer: str
    image: str | None
    where: str
    examples: tuple["Question", ...] = ()

    @property
    def key(self) -> str:
        return f"{self.origin}/{self.exam}/{self.number}"


def parse_text(record: Mapping[str, Any], where: str, column: str = "text") -> Text:
    return Text(_string(record, column, where), where)


def parse_chat(record: Mapping[str, Any], where: str, column: str = "data") -> Chat:
    """Raises BadInput for a row that is no conversation or has no assistant turn to learn from."""
    messages = _messages(record, column, where)
    roles = [m.role for m in messages]
    if "assistant" not in roles or roles[0] == "assistant":
        raise BadInput(
            f"{where}: {column}: expected a user turn and an assistant turn after it, got roles "
            f"{roles}; add the answer or leave the row out"
        )
    return Chat(messages, where)


def parse_prompt(record: Mapping[str, Any], where: str, column: str = "prompt") -> Prompt:
    """A prompt as a string, or as a list of {role, content} that ends in a user turn.

    Of a preference, the chosen answer is one that is right.
    """
    if isinstance(record.get(column), str):
        messages: tuple[Message, ...] = (Message("user", _string(record, column, where)),)
    else:
        messages = _messages(record, column, where)
    if messages[-1].role != "user":
        raise BadInput(
            f"{where}: {column}: expected it to end in a user turn, got {messages[-1].role}"
        )
    right = None if record.get("chosen") is None else _side(record, "chosen", messages, where)
    return Prompt(messages, right, where)


def parse_pair(record: Mapping[str, Any], where: str, column: str = "prompt") -> Pair:
    """A preference as strings, or as lists of {role, content}; `column` holds the prompt.

    Answers given as lists may repeat the prompt's turns. Raises BadInput for an empty side or two
    answers that are the same.
    """
    prompt = parse_prompt(record, where, column).messages
    sides = [_side(record, name, prompt, where) for name in ("chosen", "rejected")]
    if sides[0].strip() == sides[1].strip():
        raise BadInput(
            f"{where}: chosen and rejected are the same answer, of which nothing is to be learned; "
            "leave the row out"
        )
    return Pair(prompt, sides[0], sides[1], where)


def _side(record: Mapping[str, Any], name: str, prompt: tuple[Message, ...], where: str) -> str:
    """One answer of a pair: a string, or the single assistant turn after the prompt's."""
    if isinstance(record.get(name), str | None):
        return _string(record, name, where)
    turns = _messages(record, name, where)
    if turns[: len(prompt)] == prompt:
        turns = turns[len(prompt) :]
    if len(turns) != 1 or turns[0].role != "assistant":
        raise BadInput(
            f"{where}: {name}: expected one assistant turn after the prompt, got roles "
            f"{[m.role for m in turns]}"
        )
    return turns[0].content


def _messages(record: Mapping[str, Any], column: str, where: str) -> tuple[Message, ...]:
    turns = _field(record, column, where)
    if not isinstance(turns, list) or not all(isinstance(t, Mapping) for t in turns) or not turns:
        raise BadInput(
            f"{where}: {column}: expected a list of {{role, content}}, got {type(turns).__name__}"
        )
    messages = []
    for number, turn in enumerate(turns, 1):
        role = _string(turn, "role", f"{where}: {column}, turn {number}")
        if role not in ROLES:
            raise BadInput(
                f"{where}: {column}, turn {number}: role: expected one of {', '.join(ROLES)}, "
                f"got {role!r}"
            )
        messages.append(
            Message(role, _string(turn, "content", f"{where}: {column}, turn {number}"))
        )
    return tuple(messages)


def parse_question(record: Mapping[str, Any], where: str) -> Question:
    """Raises BadInput where the answer is not among the alternatives that are there."""
    offered = _field(record, "alternativas", where)
    if not isinstance(offered, Mapping):
        raise BadInput(
            f"{where}: alternativas: expected letters with their texts, got "
            f"{type(offered).__name__}"
        )
    alternatives: dict[str, str] = {}
    blank: dict[str, str] = {}
    for letter, text in sorted(offered.items()):
        there = text is not None and str(text).strip()
        (alternatives if there else blank)[str(letter).strip().upper()] = str(text).strip()
    if odd := [letter for letter in alternatives if letter not in LETTERS]:
        raise BadInput(f"{where}: alternativas: expected letters A to E, got {odd[0]!r}")
    if len(alternatives) < 2:
        raise BadInput(
            f"{where}: alternativas: expected two or more with text, got {len(alternatives)}"
        )
    answer = _string(record, "resposta", where).strip().upper()
    if answer not in alternatives:
        raise BadInput(
            f"{where}: resposta: expected one of {', '.join(alternatives)}, got {answer!r}"
        )
    image, number = record.get("img_description"), record.get("numero")
    return Question(
        origin=str(record.get("origem") or ""),
        exam=str(record.get("prova") or ""),
        number=where if number is None else str(number),
        stem=_string(record, "enunciado", where),
        alternatives=alternatives,
        blank=blank,
        answer=answer,
        image=str(image).strip() or None if image is not None else None,
        where=where,
    )


def _field(record: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in record:
        there = ", ".join(map(str, record)) or "none"
        raise BadInput(f"{where}: there is no field {name}; expected it beside {there}")
    return record[name]


def _string(record: Mapping[str, Any], name: str, where: str) -> str:
    value = _field(record, name, where)
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"{where}: {name}: expected text, got {value!r}")
    return value
