"""Rows as the program knows them, checked where they come in; `where` says which file and line."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from drbode.config import BadInput

ROLES = ("system", "user", "assistant")
LETTERS = "ABCDEFGHIJ"
# Fields of a turn that are not rendered.
NOT_RENDERED = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
# What a chat template puts before a turn, where a text begins with it, and after one.
TEMPLATED = re.compile(
    r"\s*(<\|im_start\|>|<start_of_turn>|<\|start_header_id\|>|<\|begin_of_text\|>|<s>|\[INST\]"
    r"|<\|(?:user|assistant|system)\|>)"
)
ENDED = re.compile(r"(<\|im_end\|>|<end_of_turn>|<\|eot_id\|>|<\|endoftext\|>|</s>)\s*\Z")
# The columns of a question that have to be there, and those read where they are.
QUESTION = ("enunciado", "alternativas", "resposta")
HUGGING_FACE = ("question", "choices", "answer")  # the same columns in many of the hub's sets
ANNULLED = ("ANULADA", "ANULADO", "NULA", "ANNULLED", "*")
QUESTION_OPTIONAL = ("origem", "prova", "numero", "img_description")


@dataclass(frozen=True)
class Message:
    """A turn; one that is not `learned` is context for the turns after it."""

    role: str
    content: str
    learned: bool = True


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
    if not any(m.learned for m in messages if m.role == "assistant"):
        raise BadInput(
            f"{where}: {column}: every assistant turn is marked not to be learned; leave the row "
            "out"
        )
    return Chat(messages, where)


def parse_prompt(record: Mapping[str, Any], where: str, column: str = "prompt") -> Prompt:
    """A prompt as a string, or as a list of {role, content} that ends in a user turn.

    Of a preference, the chosen answer is one that is right.
    """
    if isinstance(record.get(column), str):
        text = _content(record, column, where, column)
        messages: tuple[Message, ...] = (Message("user", text),)
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
        return _content(record, name, where, name)
    turns = _messages(record, name, where)
    if turns[: len(prompt)] == prompt:
        turns = turns[len(prompt) :]
    if len(turns) != 1 or turns[0].role != "assistant":
        raise BadInput(
            f"{where}: {name}: expected one assistant turn after the prompt, got roles "
            f"{[m.role for m in turns]}"
        )
    if not turns[0].learned:
        raise BadInput(
            f"{where}: {name}: the answer is marked not to be learned, which a pair's cannot be; "
            "leave the row out"
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
        place = f"{where}: {column}, turn {number}"
        role = _string(turn, "role", place)
        for name in NOT_RENDERED:
            if turn.get(name):
                raise BadInput(
                    f"{place}: {name}: is not rendered, and without it the turn would say another "
                    "thing; leave the row out"
                )
        if role not in ROLES:
            raise BadInput(f"{place}: role: expected one of {', '.join(ROLES)}, got {role!r}")
        messages.append(
            Message(role, _content(turn, "content", place, "content"), _learned(turn, place))
        )
    return tuple(messages)


def _learned(turn: Mapping[str, Any], where: str) -> bool:
    """Whether a turn is to be learned, as its `weight` (0 or 1) and `train` say."""
    learned = True
    for name in ("weight", "train"):
        mark = turn.get(name)
        if mark is None:
            continue
        if not isinstance(mark, int | float) or mark not in (0, 1):
            raise BadInput(f"{where}: {name}: expected 0 or 1, false or true, got {mark!r}")
        learned = learned and bool(mark)
    return learned


def _content(record: Mapping[str, Any], name: str, where: str, field: str) -> str:
    """A turn's text. Raises BadInput where a chat template has been put around it already."""
    text = _string(record, name, where)
    mark = TEMPLATED.match(text) or ENDED.search(text)
    if mark is not None:
        raise BadInput(
            f"{where}: {field}: holds a chat template's {mark[0].strip()!r} already; give the "
            "text without it, for the model's template is put around it"
        )
    return text


class Annulled(BadInput):
    """A question whose key was annulled, which is no complaint about the row."""


def parse_questions(
    records: Iterable[tuple[str, Mapping[str, Any]]],
) -> tuple[list[Question], int]:
    """The questions of records, and how many were left out because they are annulled."""
    questions, annulled = [], 0
    for where, fields in records:
        try:
            questions.append(parse_question(fields, where))
        except Annulled:
            annulled += 1
    return questions, annulled


def parse_question(record: Mapping[str, Any], where: str) -> Question:
    """A question of drbodebench's columns, or of `question`, `choices` and `answer`.

    Alternatives may be letters with their texts, or a list; the answer a letter, an index from 0,
    or the text of an alternative. Raises BadInput where the answer is not among the alternatives
    that are there, or two of these are the same, and Annulled for a question without a key.
    """
    stem, field, key = (
        name if name in record or other not in record else other
        for name, other in zip(QUESTION, HUGGING_FACE, strict=True)
    )
    offered = _field(record, field, where)
    if isinstance(offered, str) and offered.lstrip()[:1] in ("[", "{"):  # of a CSV file's cell
        try:
            offered = json.loads(offered)
        except ValueError as error:
            raise BadInput(f"{where}: {field}: is no JSON ({error})") from None
    if isinstance(offered, list):
        if len(offered) > len(LETTERS):
            raise BadInput(
                f"{where}: {field}: expected at most {len(LETTERS)} alternatives, got "
                f"{len(offered)}"
            )
        offered = dict(zip(LETTERS, offered, strict=False))
    if not isinstance(offered, Mapping):
        raise BadInput(
            f"{where}: {field}: expected letters with their texts, or a list of texts, got "
            f"{type(offered).__name__}"
        )
    alternatives: dict[str, str] = {}
    blank: dict[str, str] = {}
    for letter, text in sorted(offered.items()):
        there = text is not None and text == text and str(text).strip()
        (alternatives if there else blank)[str(letter).strip().upper()] = str(text).strip()
    if odd := [letter for letter in alternatives if letter not in list(LETTERS)]:
        raise BadInput(f"{where}: {field}: expected letters A to {LETTERS[-1]}, got {odd[0]!r}")
    _refuse_same(alternatives, field, where)
    if len(alternatives) < 2:
        raise BadInput(f"{where}: {field}: expected two or more with text, got {len(alternatives)}")
    answer = _answer(_field(record, key, where), alternatives, f"{where}: {key}")
    image, number = record.get("img_description"), record.get("numero")
    return Question(
        origin=str(record.get("origem") or ""),
        exam=str(record.get("prova") or ""),
        number=where if number is None else str(number),
        stem=_string(record, stem, where),
        alternatives=alternatives,
        blank=blank,
        answer=answer,
        image=str(image).strip() or None if image is not None else None,
        where=where,
    )


def _answer(key: Any, alternatives: Mapping[str, str], where: str) -> str:
    """The letter of the right answer, which may be given as an index or by its text."""
    if isinstance(key, str) and key.strip().upper() in ANNULLED:
        raise Annulled(f"{where}: is {key!r}; leave the question out")
    given = str(key).strip()
    if isinstance(key, str) and given.upper() in alternatives:
        return given.upper()
    if isinstance(key, float) and key.is_integer():
        given = str(int(key))  # tables hold whole numbers beside missing ones as floats
    texts = [letter for letter, text in alternatives.items() if text == given]
    index = None
    if not isinstance(key, bool) and given.isdecimal() and int(given) < len(LETTERS):
        index = LETTERS[int(given)]
        index = index if index in alternatives else None
    if texts and index and index != texts[0] and not isinstance(key, str):
        raise BadInput(
            f"{where}: {given} is the text of {texts[0]} and, counted from 0, the place of "
            f"{index}; give the letter"
        )
    letter = texts[0] if texts else index
    if letter is None:
        raise BadInput(
            f"{where}: expected one of {', '.join(alternatives)}, an index from 0 or an "
            f"alternative's text, got {key!r}"
        )
    return letter


def _refuse_same(alternatives: Mapping[str, str], field: str, where: str) -> None:
    letters: dict[str, str] = {}
    for letter, text in alternatives.items():
        if text in letters:
            raise BadInput(
                f"{where}: {field}: {letters[text]} and {letter} are the same, {text!r}; mend the "
                "question or leave it out"
            )
        letters[text] = letter


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
