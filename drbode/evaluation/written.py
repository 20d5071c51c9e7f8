"""A written answer, made ready to be read by `parser`."""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import NamedTuple

from drbode.evaluation import grammar
from drbode.evaluation.grammar import SEVERAL
from drbode.evaluation.wordings import Wordings, folded

BEFORE = 16  # characters that hold a connective


class Statement(NamedTuple):
    """A letter that is stated, or None: it is stated that there is none. And where, in which form.

    `start` and `end` are those of the letter, or of the text where no letter is written.
    """

    start: int
    end: int
    letter: str | None
    form: str


class Place(NamedTuple):
    """Where a cue may have its letter or its text."""

    at: int
    start: int  # of the cue
    end: int  # of the cue
    kind: str
    link: re.Match[str] | None  # between a label and this place


class Written:
    """A written answer: its text, the same in plain words (see `grammar`), and what is in them."""

    def __init__(self, written: str, alternatives: Mapping[str, str]) -> None:
        self.text = _first_answer(_cleaned(written), alternatives)
        plain = folded(self.text)
        self.plain = _plain(self.text, plain)
        self.alternatives = alternatives
        self.wordings = Wordings(self.text, plain, alternatives)

    @cached_property
    def places(self) -> list[list[Place]]:
        """Of every cue the places where it may have its letter or its text."""
        plain = self.plain
        return [
            list(self._behind(cue))
            for cue in grammar.CUE.finditer(plain)
            if cue.lastgroup != "clause"
            or grammar.BEGUN.fullmatch(plain[max(cue.start() - BEFORE, 0) : cue.start()])
        ]

    def _behind(self, cue: re.Match[str]) -> Iterator[Place]:
        """Right behind a cue; behind a label's verbs and colons, as far as its sentence goes."""
        start, end, kind = cue.start(), cue.end(), cue.lastgroup or ""
        if kind not in grammar.LINKED:
            yield Place(end, start, end, kind, None)
            return
        stop = grammar.SENTENCE_END.search(self.plain, end)
        limit = min(stop.start() if stop else len(self.plain), end + grammar.REACH)
        for link in grammar.LINK.finditer(self.plain, end, limit):
            yield Place(link.end(), start, end, kind, link)

    @cached_property
    def items(self) -> list[re.Match[str]]:
        """The lines that begin with a letter, where they list two alternatives or more.

        Left out is a first line that is an answer before the list, and a last one that repeats one.
        """
        items = self._lettered_lines
        letters = [item["letter"].upper() for item in items]
        if len(set(letters)) < 2:
            return []
        between = self.plain[items[0].end() : items[1].start()]
        answered = not self.plain[: items[0].start()].strip() and (
            letters[0] > letters[1] or grammar.ANNOUNCES.search(between)
        )
        repeated = len(items) > 2 and letters[-1] in letters[:-1]
        return items[1 if answered else 0 : -1 if repeated else None]

    @cached_property
    def _lettered_lines(self) -> list[re.Match[str]]:
        lines = grammar.ITEM.finditer(self.plain)
        return [line for line in lines if line["letter"].upper() in self.alternatives]

    def beside_list(self) -> Iterator[Statement]:
        """Lines with a letter that stand before or behind a list of them."""
        if self.items:
            for line in self._lettered_lines:
                if line not in self.items:
                    yield Statement(*line.span("letter"), line["letter"].upper(), "beside a list")

    def in_list(self, at: int) -> bool:
        begin = self.plain.rfind("\n", 0, at) + 1
        return any(begin <= item.start("letter") <= at for item in self.items)

    @cached_property
    def mentions(self) -> list[Statement]:
        """Letters with their noun at the end of a clause, that open no line of a list."""
        lines = {item.start("letter") for item in self.items}
        return [
            Statement(match.start(), match.end(), match["letter"].upper(), "mentioned")
            for match in grammar.MENTION.finditer(self.plain)
            if match.start("letter") not in lines
            and not grammar.WITHIN.search(self.plain[max(match.start() - 4, 0) : match.start()])
        ]

    @cached_property
    def singles(self) -> list[int]:
        """Where a letter stands alone, though it may be a word."""
        return [match.start() for match in grammar.SINGLE.finditer(self.plain)]

    @cached_property
    def boundaries(self) -> list[tuple[int, int]]:
        return [match.span() for match in grammar.BOUNDARY.finditer(self.plain)]

    def clause_start(self, at: int) -> int:
        before = bisect_right(self.boundaries, (at, len(self.plain)))
        return self.boundaries[before - 1][1] if before else 0

    def clause_end(self, at: int) -> int:
        before = bisect_right(self.boundaries, (at, -1))
        return self.boundaries[before][0] if before < len(self.boundaries) else len(self.plain)

    def sentence_start(self, at: int) -> int:
        return 1 + max(self.plain.rfind(mark, 0, at) for mark in ".!?;\n")

    def denied(self, start: int, end: int) -> bool:
        """Whether the clause that `start` is in, read up to `end`, denies what it says."""
        clause = self.plain[self.clause_start(start) : end]
        return bool(grammar.DENIAL.search(grammar.CERTAINTY.sub("", clause)))

    def refused(self, place: Place) -> bool:
        """Whether what a place may have is denied, or only supposed."""
        begin = self.sentence_start(place.start)
        conditional = place.link and place.link["conditional"]
        return bool(
            (place.link and grammar.BROKEN.search(self.plain, place.end, place.link.start()))
            or self.denied(place.start, place.at)
            or (conditional and grammar.CONDITION.search(self.plain, begin, place.start))
            or (place.link and grammar.HYPOTHESIS.search(self.plain, begin, place.start))
        )

    def text_after(self, letter_end: int) -> int | None:
        """Where the text begins that is set apart from the letter before it."""
        match = grammar.SEPARATOR.match(self.plain, letter_end)
        return match.end() if match and match[0].strip() else None

    def has_own_text(self, letter: str, end: int) -> bool:
        start = self.text_after(end)
        return start is not None and self.wordings.supports(letter, start)

    def has_other_text(self, letter: str, start: int) -> bool:
        """Whether right at `start` another alternative is worded, and nothing more."""
        worded = self.wordings.at(start)
        if not worded or worded.letter == letter:
            return False
        before = self.plain[start : worded.start].strip().lower()  # 'a' of 'A paciente'
        return bool(
            folded(self.alternatives[worded.letter]).startswith(before)
            and (worded.share == 1 or not self.wordings.supports(letter, start))
            and grammar.ENDS.match(self.plain, worded.end)
        )


def _cleaned(text: str) -> str:
    """Text without thinking, marks and LaTeX."""
    text = unicodedata.normalize("NFKC", text).replace(SEVERAL, "")
    text = _before(grammar.TURN_END, text)
    if "<" in text:
        text = grammar.THOUGHT.sub("", grammar.THINKING.sub("", text))
        text = grammar.TAG.sub("", grammar.ANSWER_TAG.sub(r"\nResposta: \2\n", text))
    text = grammar.QUOTED.sub("", grammar.MARKS.sub("", text))
    if "\\" in text:
        text = grammar.BOXED.sub(r"\nResposta: \1\n", grammar.LATEX.sub(r"\1", text))
    text = grammar.LETTER_BEHIND.sub(r"\g<letter>) \g<text>:", text)
    return text.strip()


def _before(mark: re.Pattern[str], text: str) -> str:
    """The text before the first such mark that something stands before."""
    for match in mark.finditer(text):
        if re.search(r"\w", text[: match.start()]):
            return text[: match.start()]
    return text


def _first_answer(text: str, alternatives: Mapping[str, str]) -> str:
    """The text up to another question; one that repeats this question's alternatives is none."""
    first = _before(grammar.NEXT_QUESTION, text)
    rest = folded(text[len(first) :])
    repeated = sum(folded(wording).strip(" .") in rest for wording in alternatives.values())
    return text if repeated > 1 else first


def _plain(text: str, plain: str) -> str:
    """Text in the form in which the grammar reads it, every character at its place."""
    letters = list(plain)
    for match in grammar.CAPITAL.finditer(text):
        letters[match.start()] = match[0]
    return grammar.LIST.sub(lambda match: SEVERAL * len(match[0]), "".join(letters))
