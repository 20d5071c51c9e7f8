"""Where an answer words one of a question's alternatives, with its letter or without."""

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

from rapidfuzz import fuzz
from rapidfuzz.distance import LCSseq

SHORT = 3  # words up to which a text has to be there whole
MOST = 0.75  # share of a longer text's words that has to be there
HALF = 0.5  # share that is enough after the text's own letter
SPELLING = 92.0  # least likeness, by letters, of two spellings of one word

WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+|[<>≤≥%×^+]")
# Words that two wordings of a text may differ in.
SMALL = re.compile(
    r"[aeo]s?|é|d[aeo]s?|em|n[ao]s?|uma?|aos?|para|por|pel[ao]|com|que|se|deve|ser|ou"
    r"|the|of|and|or|to|in|an|for|with|is"
)
DENYING = frozenset({"nao", "sem", "nem", "not", "without"})
# What changes between 'realizar', 'realização' and 'realizada'.
ENDING = re.compile(r"(?<=\w{4})(?:ac(?:ao|oes)|amentos?|ad[ao]s?|ando|ar|es|[aeo]s?|s)$")
# 'Hepatite' is no wording of 'hepatite B' where a name goes on: 'hepatite C'.
GOES_ON = re.compile(r"\s+(?!(?:pois|porque|por|com|devido|j[áa]|que|e|é|na|no|as|because)\b)\w")
# Two texts joined to a pair, of which neither is stated.
JOINED = re.compile(r"\s*(?:[,/]|\b(?:ou|e|or|and)\b|\b\w{1,3}\b|\s)*")
ACCENTED = "àáâãäåçèéêëìíîïñòóôõöùúûüý"
PLAIN = dict(zip(ACCENTED, "aaaaaaceeeeiiiinooooouuuuy", strict=True))
ACCENT = re.compile(rf"[{ACCENTED.replace('é', '')}]|é(?=\w)|é(?<=\wé)")


def folded(text: str) -> str:
    """In small letters, without accents but the one of 'é' (is), which else were 'e' (and).

    Every character stays at its place.
    """
    return ACCENT.sub(lambda match: PLAIN[match[0]], text.replace("İ", "I").lower())


class Wording(NamedTuple):
    """The alternative that a place words, with the places of its first and its last word."""

    letter: str
    start: int
    end: int
    matched: int  # how many of the alternative's words are there
    share: float  # of them


class Words(NamedTuple):
    """The words of a text, and where each begins and ends in it."""

    stems: list[str]
    starts: list[int]
    ends: list[int]


class Wordings:
    """Where `text` words one of a question's alternatives.

    A place words an alternative if its words stand there in their order with few between: all of
    them or, of more than 3, three quarters. Endings, accents, small words and a misspelt letter do
    not count; a negation more or less does. Of texts that contain each other the longest that is
    there counts. Where two are worded alike, or joined by 'ou' or 'e', neither is.
    """

    def __init__(self, text: str, plain: str, alternatives: Mapping[str, str]) -> None:
        """`plain` is `text` folded."""
        self.text, self.plain = text, plain
        stems = {letter: _words(t, folded(t)).stems for letter, t in alternatives.items()}
        self.stems = {letter: words for letter, words in stems.items() if words}
        self.room = {letter: _room(words) for letter, words in self.stems.items()}
        self.vocabulary = set().union(*self.stems.values())
        self.reach = max(self.room.values(), default=0)

    @cached_property
    def words(self) -> Words:
        """The words of the text; one that misspells a word of the alternatives is that word."""
        words = _words(self.text, self.plain)
        begins: dict[str, list[str]] = {}
        for stem in sorted(self.vocabulary):
            begins.setdefault(stem[:3], []).append(stem)
        for i, stem in enumerate(words.stems):
            if stem not in self.vocabulary and len(stem) > 5 and (near := begins.get(stem[:3])):
                alike = (word for word in near if fuzz.ratio(word, stem) >= SPELLING)
                words.stems[i] = next(alike, stem)
        return words

    def at(self, start: int) -> Wording | None:
        """The alternative that is worded right from `start` on, within the line."""
        window = self._window(start)
        if self.vocabulary.isdisjoint(self.words.stems[window.start : window.stop]):
            return None
        there = [one for k in self.stems if (one := self._worded(k, window))]
        there = [w for w in there if not any(self._shorter(w, other) for other in there)]
        if not there:
            return None
        first = min(there, key=lambda w: w.start)
        rivals = [w for w in there if w.start <= first.end]
        best = max(rivals, key=lambda w: w.share)
        if sum(w.share == best.share for w in rivals) > 1:
            return None
        if best.share < 1 and any(self._matched(k, window) > best.matched for k in self.stems):
            return None
        apart = [w.start for w in there if w.start > first.end]
        if apart and JOINED.fullmatch(self.text, best.end, min(apart)):
            return None
        longer = any(self._part(best.letter, k) for k in self.stems)
        return None if longer and GOES_ON.match(self.text, best.end) else best

    def supports(self, letter: str, start: int) -> bool:
        """Whether half of the words of the letter's text follow, and fewer of any other text.

        So little is enough where the letter itself stands before them.
        """
        window = self._window(start)
        share = {k: self._matched(k, window) / len(words) for k, words in self.stems.items()}
        letters = share.pop(letter, 0.0)
        return letters >= HALF and all(letters > other for other in share.values())

    def _window(self, start: int) -> range:
        """Which of the text's words stand behind `start`, in its line and within reach."""
        begin = bisect_left(self.words.starts, start)
        stop = self.text.find("\n", start)
        end = bisect_left(self.words.starts, stop) if stop >= 0 else len(self.words.starts)
        return range(begin, min(end, begin + self.reach))

    def _in_reach(self, letter: str, window: range) -> list[str]:
        stop = min(window.stop, window.start + self.room[letter])
        return self.words.stems[window.start : stop]

    def _matched(self, letter: str, window: range) -> int:
        return LCSseq.similarity(self.stems[letter], self._in_reach(letter, window))

    def _worded(self, letter: str, window: range) -> Wording | None:
        words, nearby = self.stems[letter], self._in_reach(letter, window)
        matched = LCSseq.similarity(words, nearby)
        if not matched or matched < len(words) * (1 if len(words) <= SHORT else MOST):
            return None
        same = [op for op in LCSseq.opcodes(words, nearby) if op.tag == "equal"]
        first, last = same[0].dest_start, same[-1].dest_end - 1
        if DENYING & set(words) != DENYING & set(nearby[: last + 1]):
            return None
        start, end = self.words.starts[window.start + first], self.words.ends[window.start + last]
        return Wording(letter, start, end, matched, matched / len(words))

    def _part(self, one: str, other: str) -> bool:
        """Whether a text is part of another."""
        shorter, longer = self.stems[one], self.stems[other]
        return len(shorter) < len(longer) and LCSseq.similarity(shorter, longer) == len(shorter)

    def _shorter(self, one: Wording, other: Wording) -> bool:
        """Whether a wording is but a part of another one that is there."""
        return one.matched < other.matched and self._part(one.letter, other.letter)


def has_words(stems: Iterable[str]) -> bool:
    """Whether there is a word among them, and not numbers and signs alone."""
    return any(len(stem) > 2 and stem.isalpha() for stem in stems)


def _room(stems: Sequence[str]) -> int:
    """Among how many words these may be spread: 'a realização de', 'com urgência'."""
    return len(stems) + (2 + len(stems) // 4 if has_words(stems) else 0)


def _words(text: str, plain: str) -> Words:
    words = Words([], [], [])
    for match in WORD.finditer(plain):
        start, end = match.span()
        word = match[0] if end - start > 1 else _single(text, start)
        if stem := _stem(word):
            words.stems.append(stem)
            words.starts.append(start)
            words.ends.append(end)
    return words


def _single(text: str, at: int) -> str:
    """A sign or number, or the letter of a type ('hepatite A'); none where it is a word."""
    opens = text[max(at - 3, 0) : at].rstrip()[-1:] in (".", ":", ";", "")
    return "" if text[at].islower() or (text[at].isalpha() and opens) else text[at]


@lru_cache(maxsize=1 << 16)
def _stem(word: str) -> str:
    return "" if SMALL.fullmatch(word) else ENDING.sub("", word)
