"""A stage's rows: what is trained on, what is held out, and a ledger of what became of each."""

import hashlib
import itertools
import json
import random
import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from drbode.config import (
    BODINHO,
    STAGES,
    BadInput,
    CptConfig,
    DataConfig,
    MlmConfig,
    RowKind,
    SftConfig,
    Stage,
    StageConfig,
    is_function,
)
from drbode.data import layouts, sources
from drbode.data.bodinho import Conditions
from drbode.data.contamination import DROPPED, Check, Part
from drbode.data.corpus import Pieces, pieces
from drbode.data.duplicates import near_duplicates
from drbode.data.prompts import Rendered, Renderer
from drbode.data.rows import parse_chat, parse_pair, parse_prompt, parse_text
from drbode.trees import Forest, Tree

REPEATED = "nearly repeats another"


@dataclass
class Ledger:
    """What became of the rows of a split: for the screen and the record."""

    rows: int = 0
    sequences: int = 0
    tokens: int = 0
    supervised: int = 0
    cut: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    # Share of the sequences whose last token is supervised; None: no token learns to end one.
    ends_supervised: float | None = 0.0
    digest: str = ""
    layout: str = ""  # of the rows as they came; empty for raw text
    predicted_bytes: int | None = None  # of held-out text, which bits per byte are taken of
    replay: "Ledger | None" = None  # of the general text beside it, one pass of which is counted

    def drop(self, reason: str, count: int = 1) -> None:
        """Counts rows that were dropped."""
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Split:
    trees: Sequence[Tree]
    ledger: Ledger
    replay: Sequence[Tree] = ()  # general text to mix in


# --- how each kind of rows is read ---------------------------------------------------------------

Render = Callable[[str, Any], Rendered]  # of where a row stands, and its fields
Choose = Callable[[Sequence[sources.Record], Render], Sequence[sources.Record]]


class Reader(NamedTuple):
    """What is read of a kind of rows, and what makes trees of one."""

    columns: Callable[[str], sources.Columns]  # by the name of `data.column`
    render: Callable[[StageConfig, Renderer], Render]


prompt_columns = layouts.prompt_columns


def _render_masked(config: StageConfig, renderer: Renderer) -> Render:
    pairs = isinstance(config, MlmConfig) and config.nsp
    return lambda where, row: renderer.masked(parse_text(row, where, config.data.column), pairs)


def _render_chat(config: StageConfig, renderer: Renderer) -> Render:
    lines = isinstance(config, SftConfig) and config.format == "chapter"
    render = renderer.lines if lines else renderer.chat
    return lambda where, row: render(parse_chat(row, where, config.data.column))


def _render_pair(config: StageConfig, renderer: Renderer) -> Render:
    return lambda where, row: renderer.pair(parse_pair(row, where, config.data.column))


def _render_prompt(config: StageConfig, renderer: Renderer) -> Render:
    return lambda where, row: renderer.opening(parse_prompt(row, where, config.data.column))


# Raw text is tokenised as a whole and cut, not rendered row by row.
READERS: dict[RowKind, Reader] = {
    "masked": Reader(lambda column: sources.Columns((column,)), _render_masked),
    "chat": Reader(layouts.chat_columns, _render_chat),
    "pair": Reader(layouts.pair_columns, _render_pair),
    "prompt": Reader(prompt_columns, _render_prompt),
}


class Repeated(NamedTuple):
    """Rows that were dropped because they nearly repeat another."""

    train: int
    held_out: int


@dataclass(frozen=True)
class StageRows:
    """The rows of one stage, from where they come to the trees that it is trained on.

    `check` looks through the training rows, and what is held out of them, for the benchmark's
    questions; `choose` leaves some training rows out. Texts are tokenised into `cache`.
    """

    stage: Stage
    config: StageConfig
    renderer: Renderer
    seed: int
    cache: Path
    conditions: Conditions = "default"
    choose: Choose | None = None
    check: Check | None = None

    @property
    def kind(self) -> RowKind:
        return STAGES[self.stage].reads

    @property
    def columns(self) -> sources.Columns:
        column = self.config.data.column
        return (
            sources.Columns((column,))
            if self.kind == "text"
            else READERS[self.kind].columns(column)
        )

    def splits(self) -> tuple[Split, Split | None]:
        """Rows to train on and to validate on.

        Validation rows come from `validation_path`, from bodinho's own split, or are held out of
        the training rows. Raises BadInput where no supervised token is left.
        """
        data = self.config.data
        rows = parted_rows(
            self.kind, self.columns, self.stage, self.config, self.seed, self.conditions
        )
        train, held_out = rows.train, rows.held_out
        train, held_out, repeated = self._without_repeats(train, held_out)
        train = sources.sample(train, data.rows, self.seed)
        # Held out of the training rows: from another source nothing is taken away.
        is_part = data.validation_path is None and data.path != BODINHO
        kept = self._train(train, repeated.train)
        validation = self._validation(held_out, is_part, repeated.held_out)
        kept = self._with_replay(kept)
        kept.ledger.layout = rows.layout
        for reason, count in rows.bad.items():
            note_dropped(kept.ledger, count, reason)
        if validation is not None:
            validation.ledger.layout = rows.layout
            for reason, count in rows.bad_held_out.items():
                note_dropped(validation.ledger, count, reason)
        if validation and validation.trees:
            return kept, validation
        if self.config.patience or self.config.keep_best:
            key = "patience" if self.config.patience else "keep_best"
            raise BadInput(
                f"{self.stage}.{key}: there are no validation rows to watch ({kept.ledger.rows} to "
                f"train on in {data.path}); set {self.stage}.data.validation_path, or leave it out"
            )
        return kept, None

    def _train(self, records: Sequence[sources.Record], repeated: int) -> Split:
        clean = self._sift(records, "train")
        chosen = clean
        if self.choose is not None:
            chosen = self.choose(clean, READERS[self.kind].render(self.config, self.renderer))
        split = self._make(chosen)
        note_dropped(split.ledger, len(records) - len(clean))
        note_dropped(split.ledger, repeated, REPEATED)
        if not split.trees:
            why = ", ".join(f"{n} {reason}" for reason, n in split.ledger.dropped.items())
            raise BadInput(
                f"{self.stage}.data.path: no supervised token is left of {self.config.data.path} "
                f"({why or 'all rows are empty'}); raise {self.stage}.max_length or mend the rows"
            )
        return split

    def _validation(
        self, records: Sequence[sources.Record], is_part: bool, repeated: int
    ) -> Split | None:
        if not records:
            return None
        clean = self._sift(records, "validation") if is_part else records
        split = self._make(clean)
        note_dropped(split.ledger, len(records) - len(clean))
        note_dropped(split.ledger, repeated, REPEATED)
        if isinstance(split.trees, Pieces):
            split.ledger.predicted_bytes = split.trees.predicted_bytes(self.renderer.tokenizer)
        return split

    def _sift(self, records: Sequence[sources.Record], part: Part) -> Sequence[sources.Record]:
        if self.check is None:
            return records
        return self.check.sift(records, self.columns, self.stage, part)

    def _make(self, records: Sequence[sources.Record]) -> Split:
        """Trees of the rows, with a ledger."""
        if self.kind == "text":
            return self._texts(records, self.config.data.column)
        split = render_rows(records, READERS[self.kind].render(self.config, self.renderer))
        if self.kind == "masked":
            split.ledger.ends_supervised = None
        return split

    def _texts(self, records: Sequence[sources.Record], column: str) -> Split:
        """Texts, tokenised and cut into pieces.

        Raises BadInput where the stride is as long as a piece.
        """
        stride, longest = self._stride, self.renderer.max_length
        if stride >= longest:
            raise BadInput(
                f"{self.stage}.stride: expected less than the {longest} tokens that a piece may "
                f"have, got {stride}; lower it"
            )
        trees = pieces(records, self.renderer, column, stride, self.cache)
        ledger = Ledger(rows=len(records), digest=sources.digest(records), ends_supervised=1.0)
        ledger.sequences, ledger.tokens, ledger.supervised = trees.totals
        ledger.drop("no token to predict", trees.empty)
        return Split(trees, ledger)

    @property
    def _stride(self) -> int:
        return self.config.stride if isinstance(self.config, CptConfig) else 0

    def _without_repeats(
        self, train: Sequence[sources.Record], held_out: Sequence[sources.Record]
    ) -> tuple[Sequence[sources.Record], Sequence[sources.Record], Repeated]:
        """Rows without those that nearly repeat an earlier one, or any that is held out."""
        if not isinstance(self.config, CptConfig) or self.config.near_duplicates is None:
            return train, held_out, Repeated(0, 0)
        texts = (
            parse_text(fields, where, self.config.data.column).text
            for where, fields in itertools.chain(held_out, train)
        )
        repeats = near_duplicates(texts, self.config.near_duplicates)

        def kept(records: Sequence[sources.Record]) -> sources.Picked[sources.Record]:
            alike = itertools.islice(repeats, len(records))
            left = array("q", (i for i, other in enumerate(alike) if other is None))
            return sources.Picked(records, left)

        rest = kept(held_out)
        fresh = kept(train)
        return fresh, rest, Repeated(len(train) - len(fresh), len(held_out) - len(rest))

    def _with_replay(self, split: Split) -> Split:
        """The split with the general text that is to be replayed."""
        if not isinstance(self.config, CptConfig) or self.config.replay.share == 0:
            return split
        replay, key = self.config.replay, f"{self.stage}.replay.path"
        columns = sources.Columns((replay.column,))
        records = sources.read(
            "text", replay.path, replay.split, replay.revision, key, columns=columns
        )
        rows = records
        if self.check is not None:
            rows = self.check.sift(records, columns, self.stage, "replay")
        general = self._texts(rows, replay.column)
        if not general.trees:
            raise BadInput(f"{key}: {replay.path} holds no token to predict; replay another text")
        note_dropped(general.ledger, len(records) - len(rows))
        split.ledger.replay = general.ledger
        return Split(split.trees, split.ledger, general.trees)


def longest_row(stage: Stage, config: StageConfig, context: int) -> int:
    """Tokens that a row of a stage may have. Raises BadInput where the model lacks the context."""
    if config.max_length != "auto" and config.max_length > context:
        raise BadInput(
            f"{stage}.max_length: the model has positions for {context} tokens, got "
            f"{config.max_length}; set it to auto or lower"
        )
    room = context - config.answer_tokens
    if room < 1:
        raise BadInput(
            f"{stage}.max_new_tokens: the model has positions for {context} tokens, prompt and "
            f"answer together, got {config.answer_tokens}; lower it"
        )
    return room if config.max_length == "auto" else min(room, config.max_length)


class Rows(NamedTuple):
    """Rows to train on and rows held out, in the stages' layout, and how they came.

    `bad` and `bad_held_out` count by reason those that were dropped because they could not be
    read.
    """

    train: Sequence[sources.Record]
    held_out: Sequence[sources.Record]
    layout: str
    bad: dict[str, int]
    bad_held_out: dict[str, int]


def read_rows(
    kind: RowKind,
    columns: sources.Columns,
    stage: Stage,
    block: StageConfig,
    seed: int,
    conditions: Conditions,
) -> tuple[Sequence[sources.Record], Sequence[sources.Record]]:
    """Rows to train on and rows held out of them."""
    rows = parted_rows(kind, columns, stage, block, seed, conditions)
    return rows.train, rows.held_out


def parted_rows(
    kind: RowKind,
    columns: sources.Columns,
    stage: Stage,
    block: StageConfig,
    seed: int,
    conditions: Conditions,
) -> Rows:
    """Rows to train on and rows held out of them, and how they came.

    Rows that repeat one another, or preferences for the same prompt, stand on one side.
    """
    data = block.data
    parse = PARSERS[kind]

    def read(
        path: str, split: str, key: str
    ) -> tuple[Sequence[sources.Record], dict[str, int], str]:
        revision = data.revision if path == data.path else None
        records = sources.read(kind, path, split, revision, key, conditions, columns)
        records = layouts.uniform(records, kind, data.column, data.layout, f"{stage}.data.layout")
        bad: dict[str, int] = {}
        if data.bad_rows == "drop":
            records, bad = without_bad(records, lambda row, at: parse(row, at, data.column))
            if not records:
                reasons = ", ".join(f"{count} {reason}" for reason, count in bad.items())
                raise BadInput(f"{key}: no row of {path} can be read ({reasons})")
        layout = records.layouts() if isinstance(records, layouts.Uniform) else ""
        return records, bad, layout

    key = f"{stage}.data.path"
    train, bad, layout = read(data.path, data.split, key)
    held_out: Sequence[sources.Record] = []
    bad_held_out: dict[str, int] = {}
    if data.validation_path is not None:
        split = data.split
        if data.validation_path == BODINHO or is_function(data.validation_path):
            split = "validation"
        held_out, bad_held_out, _ = read(
            data.validation_path, split, f"{stage}.data.validation_path"
        )
    elif data.path == BODINHO and data.split == "train":
        held_out, bad_held_out, _ = read(data.path, "validation", key)
    elif data.validation_share and len(train) > 1:
        train, held_out = _hold_out(train, data, seed)
    held_out = sources.sample(held_out, data.validation_rows, seed)
    return Rows(train, held_out, layout, bad, bad_held_out)


PARSERS: dict[RowKind, Callable[[Any, str, str], object]] = {
    "text": parse_text,
    "masked": parse_text,
    "chat": parse_chat,
    "pair": parse_pair,
    "prompt": parse_prompt,
}


def without_bad(
    records: Sequence[sources.Record], parse: Callable[[Any, str], object]
) -> tuple[Sequence[sources.Record], dict[str, int]]:
    """The records that can be read, and by reason how many others there are."""
    sound, bad = array("q"), dict[str, int]()
    for number in range(len(records)):
        where = ""
        try:
            where, fields = records[number]
            parse(fields, where)
        except BadInput as error:
            text = str(error)
            reason = text.removeprefix(f"{where}: ") if where else _PLACE.sub("", text)
            bad[reason] = bad.get(reason, 0) + 1
        else:
            sound.append(number)
    if isinstance(records, layouts.Uniform):
        return records.picked(sound), bad
    return sources.Sound(records, sound), bad


# Where a row stands, before a complaint about it.
_PLACE = re.compile(r"^.*?(?:, line|, row| row) \d+: ")


def _hold_out(
    records: Sequence[sources.Record], data: DataConfig, seed: int
) -> tuple[Sequence[sources.Record], Sequence[sources.Record]]:
    """Rows to train on, and a random share of them that is held out.

    What is drawn are contents, each with all of its rows, so that none is on both sides. Where
    no content repeats, these are the rows themselves.
    """
    groups: dict[bytes, array[int]] = {}
    for number, (_, fields) in enumerate(records):
        groups.setdefault(_content(fields, data.column), array("q")).append(number)
    if len(groups) < 2:
        return records, []
    count = max(1, round(data.validation_share * len(groups)))
    count = min(count, data.validation_rows or count)  # the others are trained on
    members = list(groups.values())
    drawn = random.Random(seed).sample(range(len(members)), count)
    chosen = {number for group in drawn for number in members[group]}
    left = array("q", (i for i in range(len(records)) if i not in chosen))
    return sources.Picked(records, left), sources.Picked(records, sorted(chosen))


def _content(fields: Any, column: str) -> bytes:
    """A digest of what a row is held out by: a preference's prompt, else the row's column."""
    value = fields.get(column)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0].get("content") if value[0].get("role") == "user" else value
    if isinstance(value, str):
        value = value.strip()
    line = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(line.encode(), digest_size=16).digest()


def render_rows(records: Sequence[sources.Record], render: Render) -> Split:
    """Rows as trees, with a ledger of what became of them."""
    ledger = Ledger(rows=len(records), digest=sources.digest(records))
    trees, ends = Forest(), 0
    for where, fields in records:
        rendered = render(where, fields)
        ledger.cut += rendered.cut
        if rendered.dropped:
            ledger.drop(rendered.dropped)
        trees.extend(rendered.trees)
        ledger.tokens += sum(t.tokens for t in rendered.trees)
        ledger.supervised += sum(t.supervised for t in rendered.trees)
        ends += sum(t.completions[-1].supervised[-1] for t in rendered.trees if t.completions)
    ledger.sequences = len(trees)
    ledger.ends_supervised = ends / len(trees) if trees else 0.0
    return Split(trees, ledger)


def note_dropped(ledger: Ledger, count: int, reason: str = DROPPED) -> None:
    """Enters the rows that were dropped before they were rendered."""
    ledger.rows += count
    ledger.drop(reason, count)
