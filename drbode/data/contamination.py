"""Contamination: whether questions of the benchmark stand in the rows that a model is trained on.

Texts are compared as words: without case, accents, punctuation and white space. Of a stem, `score`
per cent of the words stand in a row in their order (rapidfuzz: the longest common subsequence with
the most alike stretch of the row). The question is found there by one of four rules:

- verbatim: the whole stem, of 7 words or more, or any stem that is a turn or a text by itself;
- beside its alternatives: 78 % of the stem (a word changed of 5), and within 300 words of it all
  alternatives, in whatever order, or all but one;
- almost: 94 % of a stem of 20 words or more (or 97 % of its letters, where punctuation went from
  within words), or a turn that is a stem of 7 or more but for a word;
- beside its answer: 78 % of the stem, and the right alternative within 300 words of it.

Many stems may be alike, as all are that one form made: 'what causes tetanus' is not 'what causes
mumps'. They tell themselves apart by their telling words, those that few stems of the benchmark
hold (6, or a quarter of them where they are few, or 2 % where they are many). But for a whole stem
70 % of these have to be there, and all of them for a stem below 20 words without answers, or beside
alternatives of fewer than 8 words together (yes, no). None are needed beside all of longer
alternatives, nor beside an answer that no other question of the benchmark has, for a turn that is a
stem of 7 words or more but for a word. Of questions found in the same place the best counts.

Only questions that share enough n-grams of 3 words with a row are compared with it, so a check
costs about as much as it takes to read the rows. Conditions that rows and questions have in common
are no contamination, and a question in other words is not found.

Of a benchmark of prompts, a prompt's text is the stem, and its reference answer, where there is
one, the only alternative: a prompt is found by the rules verbatim, almost, and beside its answer.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import chain
from typing import Any, Literal

from rapidfuzz import fuzz
from rapidfuzz.distance import LCSseq

from drbode.config import BadInput, Stage
from drbode.data import sources
from drbode.data.rows import Prompt, Question

GRAM = 3  # words
WHOLE = 7  # words that a stem has to have, to be found by itself within a longer text
LONG = 20  # words from which on a stem is found by itself with several changed
ALMOST, BESIDE = 94.0, 78.0  # least scores: of a long stem by itself, and beside its answers
LETTERS = 97.0  # likewise of a long stem by itself, by letters
NEAR = 300  # words before and after a stem, among which its answers are looked for
TOLD = 0.7  # share of a stem's telling words that have to be there
WORDY = 8  # words from which on a question's alternatives together are its own
SHOWN = 80  # characters of a stem in a message

MARKS = re.compile(r"[\u0300-\u036f]+")  # accents, once they are apart from their letters
WORD = re.compile(r"\w+")
DROPPED = "asks a question of the benchmark"

Rule = Literal["verbatim", "beside its alternatives", "almost", "beside its answer"]
Action = Literal["stop", "drop", "keep"]
Part = Literal["train", "validation", "replay"]  # of what a stage reads
Gram = tuple[str, ...]


def words(text: str) -> list[str]:
    """A text's words in lower case, without accents and punctuation."""
    return WORD.findall(MARKS.sub("", unicodedata.normalize("NFKD", text.casefold())))


def sought(row: Question | Prompt) -> Question:
    """A row of a benchmark as it is looked for: of a prompt, its text as a stem.

    The text is that of all turns but the system's. The reference is the answer that may stand
    beside it; a prompt without one is found by its text alone.
    """
    if isinstance(row, Question):
        return row
    offered = {} if row.right is None else {"A": row.right}
    return Question(
        origin="",
        exam="",
        number=row.where,
        stem="\n".join(m.content for m in row.messages if m.role != "system"),
        alternatives=offered,
        blank={},
        answer="A",
        image=None,
        where=row.where,
    )


@dataclass(frozen=True)
class Match:
    """A question that stands in a row, and what shows it."""

    question: Question
    rule: Rule
    score: float  # per cent of the stem's words that are there in their order
    shared: str  # the longest run of words that stem and row have in common
    beside: str  # letters of the alternatives that stand near it
    begin: int  # where in the words of the row the stem stands
    end: int


@dataclass(frozen=True)
class _Entry:
    """A question as it is looked for."""

    question: Question
    stem: list[str]
    places: Mapping[Gram, int]  # where in the stem each of its n-grams stands first
    least: int  # n-grams that a row has to share with it
    telling: frozenset[str]
    alternatives: Mapping[str, str]  # those with words
    own_answer: bool  # no other question has this right answer


class Index:
    """The questions of a benchmark, to be looked for in rows."""

    def __init__(self, rows: Sequence[Question | Prompt]) -> None:
        questions = [sought(row) for row in rows]
        stems = [words(question.stem) for question in questions]
        held = Counter(word for stem in stems for word in set(stem))
        few = max(1, min(6, len(questions) // 4), len(questions) // 50)  # may hold a telling word
        answers = Counter(_answer(question) for question in questions)
        self.entries = [
            _entry(
                question,
                stem,
                frozenset(word for word in stem if held[word] <= few),
                answers[_answer(question)] == 1,
            )
            for question, stem in zip(questions, stems, strict=True)
        ]
        self.holders: dict[Gram, list[int]] = {}
        self.whole: dict[Gram, list[int]] = {}
        for number, entry in enumerate(self.entries):
            if entry.stem:
                self.whole.setdefault(tuple(entry.stem), []).append(number)
            for gram in entry.places:
                self.holders.setdefault(gram, []).append(number)

    def find(self, texts: Iterable[str]) -> list[Match]:
        """The questions that stand in a row, given as its texts: turns, or the sides of a pair."""
        turns = [words(text) for text in texts]
        row = list(chain.from_iterable(turns))
        shared = {gram for gram in _grams(row) if gram in self.holders}
        counts = Counter(chain.from_iterable(self.holders[gram] for gram in shared))
        likely = {n for n, count in counts.items() if count >= self.entries[n].least}
        starts: dict[int, int] = {}
        at = 0
        for turn in turns:
            for number in self.whole.get(tuple(turn), ()):
                starts[number] = at
            at += len(turn)
        compared = (
            _compare(self.entries[n], row, turns, starts.get(n)) for n in sorted(likely | {*starts})
        )
        matches = [one for one in compared if one is not None]
        return [one for one in matches if not any(_is_better(other, one) for other in matches)]


def _answer(question: Question) -> str:
    return " ".join(words(question.alternatives.get(question.answer, "")))


def _entry(
    question: Question, stem: list[str], telling: frozenset[str], own_answer: bool
) -> _Entry:
    places: dict[Gram, int] = {}
    for at, gram in enumerate(_grams(stem)):
        places.setdefault(gram, at)
    changed = int((1 - BESIDE / 100) * len(stem))  # words, each of which is in GRAM n-grams
    texts = {letter: " ".join(words(text)) for letter, text in question.alternatives.items()}
    return _Entry(
        question,
        stem,
        places,
        max(1, len(places) - GRAM * changed),
        telling,
        {letter: text for letter, text in texts.items() if text},
        own_answer,
    )


def _grams(text: Sequence[str]) -> Iterable[Gram]:
    return zip(*(text[n:] for n in range(GRAM)), strict=False)


def _compare(
    entry: _Entry, row: list[str], turns: Sequence[list[str]], whole: int | None
) -> Match | None:
    """The question, if it stands in the row; `whole` is where a turn begins that is its stem."""
    stem = entry.stem
    begin, end = _place(entry, row) if whole is None else (whole, whole + len(stem))
    there = row[begin:end]
    score = 100 * LCSseq.normalized_similarity(stem, there)
    if score < BESIDE:
        return None
    near = [*row[max(0, begin - NEAR) : begin], "|", *row[end : end + NEAR]]
    text = f" {' '.join(near)} "
    beside = [letter for letter, wording in entry.alternatives.items() if f" {wording} " in text]
    rule = _rule(entry, there, turns, score, beside, whole is not None)
    if rule is None:
        return None
    run = SequenceMatcher(None, stem, there, autojunk=False).find_longest_match()
    shared = " ".join(stem[run.a : run.a + run.size])
    return Match(entry.question, rule, round(score, 1), shared, "".join(beside), begin, end)


def _rule(
    entry: _Entry,
    there: Sequence[str],
    turns: Sequence[list[str]],
    score: float,
    beside: Sequence[str],
    whole: bool,
) -> Rule | None:
    """By which rule a stem counts, of which `there` stands in a row with these letters beside."""
    stem = entry.stem
    if whole or (there == stem and len(stem) >= WHOLE):
        return "verbatim"
    seen = len(entry.telling.intersection(there))
    told = bool(seen) and seen >= TOLD * len(entry.telling)
    all_told = told and seen == len(entry.telling)
    if len(beside) >= max(2, len(entry.alternatives) - 1):
        wordy = sum(len(entry.alternatives[k].split()) for k in beside) >= WORDY
        listed = len(beside) == len(entry.alternatives)
        if (told or listed) if wordy else all_told:
            return "beside its alternatives"
    one_word = len(stem) >= WHOLE and any(_differ_in_one(turn, stem) for turn in turns)
    if told and len(stem) >= LONG:
        letters = "".join(stem), "".join(there)  # 2,5 mg may have become 25 mg
        if score >= ALMOST or fuzz.partial_ratio(*letters) >= LETTERS:
            return "almost"
    if all_told and one_word:
        return "almost"
    if entry.question.answer in beside and (told or (one_word and entry.own_answer)):
        return "beside its answer"
    return None


def _is_better(other: Match, one: Match) -> bool:
    """Whether another question is more alike to what stands where this one was found."""
    return other.score > one.score and other.begin < one.end and one.begin < other.end


def _differ_in_one(turn: Sequence[str], stem: Sequence[str]) -> bool:
    return len(turn) == len(stem) and sum(a != b for a, b in zip(turn, stem, strict=True)) == 1


def _place(entry: _Entry, row: list[str]) -> tuple[int, int]:
    """Where the stretch of the row that is most like the stem begins and ends.

    It is looked for where the stem would stand by most of the n-grams that they share.
    """
    votes: Counter[int] = Counter()
    for at, gram in enumerate(_grams(row)):
        if gram in entry.places:
            votes[at - entry.places[gram]] += 1
    start, size = votes.most_common(1)[0][0], len(entry.stem)
    slack = size // 4 + 1  # words, for what was put in or left out
    first = max(0, start - slack)
    match = fuzz.partial_ratio_alignment(entry.stem, row[first : start + size + slack])
    assert match is not None, "no score is too low"
    return first + match.dest_start, first + match.dest_end


# --- the rows of a run --------------------------------------------------------------------------


def texts(fields: Mapping[str, Any], columns: sources.Columns) -> Iterable[str]:
    """All that a row says in these columns: strings, and the turns of conversations."""
    for name in (*columns.needed, *columns.optional):
        value = fields.get(name)
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            turns = (turn.get("content") for turn in value if isinstance(turn, Mapping))
            yield from (content for content in turns if isinstance(content, str))


@dataclass(frozen=True)
class Case:
    """A question found in a row of a stage's data."""

    stage: Stage
    split: Part
    where: str
    match: Match

    @property
    def key(self) -> str:
        """The setting that names the row's source."""
        return f"{self.stage}.{'replay' if self.split == 'replay' else 'data'}.path"

    def as_row(self) -> dict[str, Any]:
        """The case as a line of JSON."""
        question = self.match.question
        return {
            "stage": self.stage,
            "split": self.split,
            "row": self.where,
            "question": question.where,
            "key": question.key,
            "rule": self.match.rule,
            "score": self.match.score,
            "shared": self.match.shared,
            "alternatives_beside": self.match.beside,
            "enunciado": question.stem,
        }


@dataclass
class Check:
    """Holds the rows of all stages of a run against its benchmark, and keeps what it finds."""

    questions: Sequence[Question | Prompt]
    action: Action
    cases: list[Case] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.index = Index(self.questions)

    def sift(
        self,
        records: Sequence[sources.Record],
        columns: sources.Columns,
        stage: Stage,
        split: Part,
    ) -> Sequence[sources.Record]:
        """The rows to train on: all, or those without a question where rows are to be dropped."""
        contaminated = set()
        for number, (where, fields) in enumerate(records):
            for match in self.index.find(texts(fields, columns)):
                self.cases.append(Case(stage, split, where, match))
                contaminated.add(number)
        if self.action != "drop" or not contaminated:
            return records
        kept = [number for number in range(len(records)) if number not in contaminated]
        return sources.Picked(records, kept)

    def refuse(self) -> None:
        """Raises BadInput for the first case, if the run is to stop."""
        if self.action != "stop" or not self.cases:
            return
        case = self.cases[0]
        question = case.match.question
        stem = " ".join(question.stem.split())
        shown = stem if len(stem) <= SHOWN else f"{stem[:SHOWN]}..."
        counts = self.as_dict()
        raise BadInput(
            f"{case.key}: {case.where}: asks the benchmark's question "
            f"{question.where}, '{shown}' ({case.match.rule}, {case.match.score:.0f} % of its "
            f"words), and {counts['rows']} rows ask {counts['questions']} of its questions in all; "
            "take them out, or set contamination.action=drop to train without these rows or "
            "contamination.action=keep to train on them and be told accuracy on the others too"
        )

    def dropped(self, stage: Stage) -> list[str]:
        """Where the rows stood that a stage is trained without."""
        of_stage = (c.where for c in self.cases if c.stage == stage and self.action == "drop")
        return list(dict.fromkeys(of_stage))

    def unclean(self) -> frozenset[str]:
        """The questions, by where they stand, that are trained on."""
        if self.action == "drop":
            return frozenset()
        return frozenset(case.match.question.where for case in self.cases)

    def as_dict(self) -> dict[str, Any]:
        """What was found, counted."""
        stages = list(dict.fromkeys(case.stage for case in self.cases))
        return {
            "action": self.action,
            "rows": len({(c.stage, c.where) for c in self.cases}),
            "questions": len({c.match.question.where for c in self.cases}),
            "stages": {
                stage: len({c.where for c in self.cases if c.stage == stage}) for stage in stages
            },
            "rules": dict(Counter(case.match.rule for case in self.cases)),
        }
