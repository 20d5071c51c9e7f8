"""Few rows of many (T11): filters in order, each with a reason a dropped row, and the choice of n.

`limo` follows Ye et al. 2025 (arXiv 2502.03387): hard questions with elaborate answers that check
themselves. `diverse` spreads the rows by their words alone, and `random` is what both are held
against. Rows are gone through in the order of their content, so that which of them are chosen does
not depend on the order they come in; only validity is asked of all three.
"""

import bisect
import math
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np

from drbode.config import BadInput, SftConfig
from drbode.data.duplicates import near_duplicates, plain
from drbode.data.rows import parse_chat
from drbode.data.sources import Record
from drbode.data.splits import Render, Split, render_rows
from drbode.trees import Tree

NEAR = 0.8  # Jaccard index of runs of three words from which a row nearly repeats another
# Portuguese is told from these. Of all that py3langid knows, Galician and Aragonese take about one
# short Portuguese row in fourteen.
LANGUAGES = ["pt", "en", "es", "fr", "it", "de"]
FOREIGN = 0.9  # probability from which a row counts as one of another language

# LIMO's weights (section 3.1.2) of what makes an answer elaborate; all but its length are counted a
# word of it.
WEIGHTS = {"words": 0.3, "verifies": 0.2, "explores": 0.25, "connects": 0.25}
PHRASES = {
    "verifies": r"\b(?:verifi[cq]\w*|confirm\w*|confer(?:e|ir|indo|imos)\b|confira\w*|che[cq]\w+"
    r"|procur\w*|reavali\w*|revis\w*|certifi\w*|compar(?:e|ar|ando|amos)\b)",
    "explores": r"\b(?:talvez|possivelmente|provavelmente|pode(?:m|ria|riam)? ser|é possível"
    r"|suspeit\w*|consider\w*|hipótes\w*|alternativ\w*|depende\w*|em geral|por exemplo)\b",
    "connects": r"\b(?:portanto|porque|pois|logo|assim|então|por isso|por isto|já que|uma vez que"
    r"|visto que|ou seja|em seguida|primeiro|depois|consequentemente|desse modo|dessa forma"
    r"|no entanto|porém|caso)\b",
}

Reasons = dict[int, str]  # by a row's number: why it is dropped
Filter = Literal[
    "validity",
    "language",
    "duplicates",
    "near duplicates",
    "difficulty",
    "elaboration",
    "coverage",
    "random",
    "diverse",
]


@dataclass(frozen=True)
class Row:
    """A row of conversations; `text` is all its words, as duplicates are compared by."""

    number: int  # in the source, from 0
    where: str
    fields: Mapping[str, Any]
    prompt: str
    answer: str
    text: str

    @property
    def order(self) -> tuple[str, str, str, int]:
        """What rows are sorted by."""
        return self.text, self.prompt, self.answer, self.number


class Difficulty(NamedTuple):
    """How hard a row's answer is to a model: mean nats a token; whether it writes it itself."""

    loss: float
    answered: bool


@dataclass(frozen=True)
class FunnelStep:
    """What a filter was given, dropped and left."""

    filter: Filter
    before: int
    dropped: int
    left: int


# Rows' trees in turn; of each row how hard it is.
Measure = Callable[[Iterable[Sequence[Tree]]], Sequence[Difficulty]]


class Curation:
    """The choice of a stage's rows: `screen` without a model, then `finish`."""

    def __init__(self, config: SftConfig, seed: int) -> None:
        assert config.curation is not None
        self.by = config.curation
        self.count = config.curation_n
        self.column = config.data.column
        self.source = config.data.path
        self.seed = seed
        self.rows: list[Row] = []
        self.funnel: list[FunnelStep] = []
        self.dropped: list[dict[str, str]] = []
        self.scores: dict[int, dict[str, Any]] = {}
        self.seconds = 0.0  # that the model took to measure rows

    def screen(self, records: Sequence[Record], render: Render) -> Sequence[Record]:
        """Rows that pass all filters that need no model. Raises BadInput where none does."""
        self.render = render
        self.rows, reasons = valid(records, render, self.column)
        self._note("validity", len(records), {records[n][0]: why for n, why in reasons.items()})
        if self.by == "limo":
            self._drop("language", foreign(self.rows))
            self._drop("duplicates", repeated(self.rows))
            self._drop("near duplicates", nearly_repeated(self.rows))
        elif self.by == "random":
            self._drop("random", undrawn(self.rows, self.count, self.seed))
        else:
            self._drop("diverse", nearer(self.rows, self.count))
        if not self.rows:
            steps = ", ".join(f"{step.dropped} by {step.filter}" for step in self.funnel)
            raise BadInput(
                f"sft.curation: {self.by} leaves no row of {self.source} (dropped: {steps}"
                f"{self._example()}); mend the rows, or leave it out"
            )
        return self._records()

    def finish(self, measure: Measure) -> Split:
        """The rows chosen, rendered; of `limo` by what `measure` finds of the rows left."""
        if self.by == "limo":
            trees = (self.render(row.where, row.fields).trees for row in self.rows)
            began = time.perf_counter()
            difficulties = measure(trees)
            self.seconds = time.perf_counter() - began
            measured = {row.number: d for row, d in zip(self.rows, difficulties, strict=True)}
            self._drop("difficulty", easy(self.rows, measured, self.count))
            if not self.rows:
                raise BadInput(
                    f"sft.curation: the model already answers every row of {self.source} that is "
                    "left; give rows that it does not know, or leave it out"
                )
            elaborate = elaboration(self.rows)
            self._drop("elaboration", curt(self.rows, elaborate, self.count))
            reasons, topics = uncovered(self.rows, elaborate, self.count)
            self._drop("coverage", reasons)
            self.scores = {
                row.number: measured[row.number]._asdict()
                | elaborate[row.number]
                | {"topic": topics[row.number]}
                for row in self.rows
            }
        return render_rows(self._records(), self.render)

    def as_dict(self) -> dict[str, Any]:
        return {
            "by": self.by,
            "asked": self.count,
            "chosen": len(self.rows),
            "seconds": round(self.seconds, 3),
            "funnel": [asdict(step) for step in self.funnel],
        }

    def chosen(self) -> list[dict[str, Any]]:
        """The rows chosen as they came, each with its scores under `curation`."""
        return [
            {**row.fields, "curation": {"where": row.where, **self.scores.get(row.number, {})}}
            for row in self._in_source_order()
        ]

    def _drop(self, name: Filter, reasons: Reasons) -> None:
        left = [row for row in self.rows if row.number not in reasons]
        gone = {row.where: reasons[row.number] for row in self.rows if row.number in reasons}
        before, self.rows = len(self.rows), left
        self._note(name, before, gone)

    def _note(self, name: Filter, before: int, gone: Mapping[str, str]) -> None:
        self.funnel.append(FunnelStep(name, before, len(gone), before - len(gone)))
        self.dropped += [{"where": w, "filter": name, "reason": why} for w, why in gone.items()]

    def _example(self) -> str:
        return f"; {self.dropped[0]['where']}: {self.dropped[0]['reason']}" if self.dropped else ""

    def _in_source_order(self) -> list[Row]:
        return sorted(self.rows, key=lambda row: row.number)

    def _records(self) -> list[Record]:
        return [(row.where, row.fields) for row in self._in_source_order()]


def valid(records: Sequence[Record], render: Render, column: str) -> tuple[list[Row], Reasons]:
    """Rows that a model can be trained on, in the order of their content, and why others cannot."""
    rows, reasons = [], {}
    for number, (where, fields) in enumerate(records):
        try:
            chat = parse_chat(fields, where, column)
            rendered = render(where, fields)
        except BadInput as error:
            reasons[number] = str(error).removeprefix(f"{where}: ")
            continue
        if not rendered.trees:
            reasons[number] = rendered.dropped or "no token to learn"
            continue
        prompt = "\n".join(m.content for m in chat.messages if m.role != "assistant")
        answer = "\n".join(m.content for m in chat.messages if m.role == "assistant")
        rows.append(Row(number, where, fields, prompt, answer, plain(f"{prompt} {answer}")))
    return sorted(rows, key=lambda row: row.order), reasons


def foreign(rows: Sequence[Row]) -> Reasons:
    """Rows in another language than Portuguese, by py3langid (a naive Bayes, in its package).

    A row without words is one of no language.
    """
    identifier = _identifier()
    reasons = {}
    for row in rows:
        if not re.search(r"[^\W\d_]", row.text):
            reasons[row.number] = "has no words"
            continue
        language, probability = identifier.classify(f"{row.prompt} {row.answer}")
        if language != "pt" and probability > FOREIGN:
            reasons[row.number] = f"reads as {language} ({100 * probability:.0f} %)"
    return reasons


@cache
def _identifier() -> Any:
    """py3langid's classifier, which takes a second to load."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(LANGUAGES)
    return identifier


def repeated(rows: Sequence[Row]) -> Reasons:
    """Rows of the same words as one before them."""
    first: dict[str, Row] = {}
    return {
        row.number: f"has the words of {first[row.text].where}"
        for row in rows
        if first.setdefault(row.text, row) is not row
    }


def nearly_repeated(rows: Sequence[Row]) -> Reasons:
    """Rows that nearly repeat another one, of which the longest stays."""
    longest = sorted(rows, key=lambda row: -len(row.text))
    repeats = near_duplicates((row.text for row in longest), NEAR)
    return {
        row.number: f"nearly repeats {longest[index].where}"
        for row, index in zip(longest, repeats, strict=True)
        if index is not None
    }


def easy(rows: Sequence[Row], measured: Mapping[int, Difficulty], count: int) -> Reasons:
    """Rows that the model answers so itself, and the easier half of the others by its loss.

    The half as far as `count` rows stay.
    """
    reasons = {
        row.number: "the model answers so itself" for row in rows if measured[row.number].answered
    }
    left = [row for row in rows if row.number not in reasons]
    for row in _lower_half(left, lambda row: measured[row.number].loss, count):
        loss = measured[row.number].loss
        reasons[row.number] = f"{loss:.3f} nats a token, in the easier half"
    return reasons


def elaboration(rows: Sequence[Row]) -> dict[int, dict[str, float]]:
    """How elaborate each answer is, and what of.

    LIMO's rule: words of the answer (weight 0.3), and a word of it phrases that verify (0.2),
    explore (0.25) and connect (0.25). They have no scale in common, so each counts as the share of
    the other rows that have less of it: `elaboration` lies between 0 and 1.
    """
    parts = {row.number: _phrases(row.answer) for row in rows}
    scales = {name: sorted(part[name] for part in parts.values()) for name in WEIGHTS}
    others = max(1, len(rows) - 1)
    for part in parts.values():
        below = {name: bisect.bisect_left(scales[name], part[name]) / others for name in WEIGHTS}
        part["elaboration"] = sum(WEIGHTS[name] * below[name] for name in WEIGHTS)
    return parts


def curt(rows: Sequence[Row], elaborate: Mapping[int, Mapping[str, float]], count: int) -> Reasons:
    """The less elaborate half of the answers, as far as `count` rows stay."""
    dropped = _lower_half(rows, lambda row: elaborate[row.number]["elaboration"], count)
    return {
        row.number: f"elaboration {elaborate[row.number]['elaboration']:.3f}, in the lower half"
        for row in dropped
    }


def uncovered(
    rows: Sequence[Row], elaborate: Mapping[int, Mapping[str, float]], count: int
) -> tuple[Reasons, dict[int, int]]:
    """All rows but the most elaborate one of each of `count` topics, and each row's topic.

    A topic is what lies nearest to one of `count` rows that lie apart (`farthest_first`).
    """
    _, owners = farthest_first([row.text for row in rows], count)
    topics = {row.number: topic for row, topic in zip(rows, owners, strict=True)}
    best: dict[int, Row] = {}
    for row in sorted(rows, key=lambda row: -elaborate[row.number]["elaboration"]):
        best.setdefault(topics[row.number], row)
    reasons = {
        row.number: f"of the topic of {best[topics[row.number]].where}"
        for row in rows
        if best[topics[row.number]] is not row
    }
    return reasons, topics


def undrawn(rows: Sequence[Row], count: int, seed: int) -> Reasons:
    """All rows but `count` at random."""
    drawn = set(random.Random(seed).sample(range(len(rows)), min(count, len(rows))))
    return {row.number: "not drawn" for i, row in enumerate(rows) if i not in drawn}


def nearer(rows: Sequence[Row], count: int) -> Reasons:
    """All rows but `count` that lie apart by their words."""
    centres, owners = farthest_first([row.text for row in rows], count)
    apart = set(centres)
    return {
        row.number: f"lies nearest to {rows[centres[owner]].where}"
        for i, (row, owner) in enumerate(zip(rows, owners, strict=True))
        if i not in apart
    }


def farthest_first(texts: Sequence[str], count: int) -> tuple[list[int], list[int]]:
    """Indices of `count` texts that lie apart, and of each text the number of the nearest of them.

    The first is the text most like all of them, each next one that whose nearest is least like it
    (Gonzalez 1985: at most twice as far off as need be), by the cosine of TF-IDF of words.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # takes a second to load

    if not texts:
        return [], []
    # Anything but a space is a word here, so that no text is without one.
    features = TfidfVectorizer(token_pattern=r"\S+", sublinear_tf=True).fit_transform(texts)
    middle = np.asarray(features.mean(axis=0)).ravel()
    centre = int(np.argmax(features @ middle))
    nearest = np.full(len(texts), -math.inf)
    owners = np.zeros(len(texts), dtype=int)
    centres: list[int] = []
    for number in range(min(count, len(texts))):
        centres.append(centre)
        likeness = (features @ features[[centre]].T).toarray().ravel()
        closer = likeness > nearest
        closer[centre] = True
        owners[closer], nearest[closer] = number, likeness[closer]
        nearest[centre] = math.inf
        centre = int(np.argmin(nearest))
    return centres, owners.tolist()


def _phrases(answer: str) -> dict[str, float]:
    """The words of an answer, and a word of it the phrases of each kind."""
    text = plain(answer)
    words = len(text.split())
    shares = {name: len(re.findall(form, text)) / max(1, words) for name, form in PHRASES.items()}
    return {"words": float(words), **shares}


def _lower_half(rows: Sequence[Row], score: Callable[[Row], float], count: int) -> list[Row]:
    """The rows of the lower half by a score; fewer where `count` would not stay."""
    keep = max(count, math.ceil(len(rows) / 2))
    ordered = sorted(rows, key=lambda row: (score(row), row.order))
    return ordered[: max(0, len(rows) - keep)]
