"""A stage's rows as optimizer steps: what is trained on, in which order, and a ledger of it."""

import itertools
import math
import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from drbode.config import (
    BODINHO,
    STAGES,
    BadInput,
    CptConfig,
    DpoConfig,
    MlmConfig,
    PpoConfig,
    RewardConfig,
    SftConfig,
    Stage,
    StageConfig,
)
from drbode.data import sources
from drbode.data.bodinho import Conditions
from drbode.data.contamination import DROPPED, Check
from drbode.data.corpus import Pieces, pieces
from drbode.data.duplicates import near_duplicates
from drbode.data.prompts import Rendered, Renderer
from drbode.data.rows import parse_chat, parse_pair, parse_prompt, parse_text
from drbode.data.trees import Forest, Tree, pack, within

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


@dataclass(frozen=True)
class Step:
    """What one optimizer step is made of: micro-batches, and the tokens its loss is divided by."""

    batches: list[Any]  # Trees, or what an objective makes of them
    rows: int
    tokens: int
    supervised: int

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Step":
        moved = [batch.to(device, non_blocking) for batch in self.batches]
        return Step(moved, self.rows, self.tokens, self.supervised)


def load_splits(
    stage: Stage,
    block: StageConfig,
    renderer: Renderer,
    seed: int,
    cache: Path,
    conditions: Conditions = "default",
    choose: "Choose | None" = None,
    check: Check | None = None,
) -> tuple[Split, Split | None]:
    """Training and validation rows of a stage, rendered.

    Validation rows come from `validation_path`, from bodinho's own split, or are held out of the
    training rows. `check` looks through the training rows and what is held out of them; `choose`
    leaves some training rows out. Texts are tokenised into `cache`. Raises BadInput where no
    supervised token is left.
    """
    data = block.data
    kind, columns = _reads(stage, data.column)
    train, held_out = read_rows(kind, columns, stage, block, seed, conditions)
    repeated = Repeated(0, 0)
    if isinstance(block, CptConfig):
        make = partial(_texts, column=data.column, block=block, renderer=renderer, cache=cache)
        if block.near_duplicates is not None:
            train, held_out, repeated = _without_repeats(train, held_out, block)
    else:
        make = partial(render_rows, render=_render(block, renderer))
    train = sources.sample(train, data.rows, seed)
    own = data.validation_path is None and data.path != BODINHO  # held out of the training rows
    chosen, rest = train, held_out
    if check is not None:
        chosen = check.sift(train, columns, stage, "train")
        rest = check.sift(held_out, columns, stage, "validation") if own else held_out
    kept = make(chosen if choose is None else choose(chosen, _render(block, renderer)))
    note_dropped(kept.ledger, len(train) - len(chosen))
    note_dropped(kept.ledger, repeated.train, REPEATED)
    if not kept.trees:
        why = ", ".join(f"{n} {reason}" for reason, n in kept.ledger.dropped.items())
        raise BadInput(
            f"{stage}.data.path: no supervised token is left of {data.path} "
            f"({why or 'all rows are empty'}); raise {stage}.max_length or mend the rows"
        )
    validation = make(rest) if held_out else None
    if isinstance(block, CptConfig):
        kept = _with_replay(kept, block, renderer, cache, check)
    if validation:
        note_dropped(validation.ledger, len(held_out) - len(rest))
        note_dropped(validation.ledger, repeated.held_out, REPEATED)
        if isinstance(validation.trees, Pieces):
            found = validation.trees.predicted_bytes(renderer.tokenizer)
            validation.ledger.predicted_bytes = found
    if stage == "mlm":
        for split in filter(None, (kept, validation)):
            split.ledger.ends_supervised = None
    if validation and validation.trees:
        return kept, validation
    if block.patience or block.keep_best:
        raise BadInput(
            f"{stage}.{'patience' if block.patience else 'keep_best'}: there are no validation "
            f"rows to watch ({kept.ledger.rows} to train on in {data.path}); set "
            f"{stage}.data.validation_path, or leave it out"
        )
    return kept, None


def read_rows(
    kind: sources.Kind,
    columns: sources.Columns,
    stage: Stage,
    block: StageConfig,
    seed: int,
    conditions: Conditions,
) -> tuple[Sequence[sources.Record], Sequence[sources.Record]]:
    """Rows to train on and rows held out of them, as they came."""
    data = block.data

    def read(path: str, split: str, key: str) -> Sequence[sources.Record]:
        revision = data.revision if path == data.path else None
        return sources.read(kind, path, split, revision, key, conditions, columns)

    key = f"{stage}.data.path"
    train = read(data.path, data.split, key)
    held_out: Sequence[sources.Record] = []
    if data.validation_path is not None:
        split = "validation" if data.validation_path == BODINHO else data.split
        held_out = read(data.validation_path, split, f"{stage}.data.validation_path")
    elif data.path == BODINHO and data.split == "train":
        held_out = read(data.path, "validation", key)
    elif data.validation_share and len(train) > 1:
        count = max(1, round(data.validation_share * len(train)))
        count = min(count, data.validation_rows or count)  # the others are trained on
        chosen = set(random.Random(seed).sample(range(len(train)), count))
        held_out = sources.Picked(train, sorted(chosen))
        left = array("q", (i for i in range(len(train)) if i not in chosen))
        train = sources.Picked(train, left)
    return train, sources.sample(held_out, data.validation_rows, seed)


def prompt_columns(column: str) -> sources.Columns:
    """A prompt, and answers to it where they are."""
    return sources.Columns((column,), ("chosen", "rejected"))


class Repeated(NamedTuple):
    """Rows that were dropped because they nearly repeat another."""

    train: int
    held_out: int


def _without_repeats(
    train: Sequence[sources.Record], held_out: Sequence[sources.Record], block: CptConfig
) -> tuple[Sequence[sources.Record], Sequence[sources.Record], Repeated]:
    """Rows without those that nearly repeat an earlier one, or any that is held out."""
    assert block.near_duplicates is not None
    texts = (
        parse_text(fields, where, block.data.column).text
        for where, fields in itertools.chain(held_out, train)
    )
    found = near_duplicates(texts, block.near_duplicates)

    def kept(records: Sequence[sources.Record]) -> sources.Picked[sources.Record]:
        alike = itertools.islice(found, len(records))
        left = array("q", (i for i, other in enumerate(alike) if other is None))
        return sources.Picked(records, left)

    rest = kept(held_out)
    own = kept(train)
    return own, rest, Repeated(len(train) - len(own), len(held_out) - len(rest))


Render = Callable[[str, Any], Rendered]
Choose = Callable[[Sequence[sources.Record], Render], Sequence[sources.Record]]


def _reads(stage: Stage, column: str) -> tuple[sources.Kind, sources.Columns]:
    """The kind of rows that a stage reads, and what it reads of them."""
    match STAGES[stage].reads:
        case "text" | "masked":
            return "text", sources.Columns((column,))
        case "chat":
            return "chat", sources.Columns((column,))
        case "prompt":
            return "pair", prompt_columns(column)
        case "pair":
            return "pair", sources.Columns((column, "chosen", "rejected"))
        case "question":
            raise AssertionError("no stage trains on questions")


def _render(block: StageConfig, renderer: Renderer) -> Render:
    """What makes trees of a row, but of raw text, of which `_texts` makes them."""
    column = block.data.column
    match block:
        case MlmConfig(nsp=pairs):
            return lambda where, row: renderer.masked(parse_text(row, where, column), pairs)
        case SftConfig(format="chapter"):
            return lambda where, row: renderer.lines(parse_chat(row, where, column))
        case SftConfig():
            return lambda where, row: renderer.chat(parse_chat(row, where, column))
        case PpoConfig():
            return lambda where, row: renderer.opening(parse_prompt(row, where, column))
        case DpoConfig() | RewardConfig():
            return lambda where, row: renderer.pair(parse_pair(row, where, column))
    raise AssertionError(f"{type(block).__name__} is rendered elsewhere")


def _texts(
    records: Sequence[sources.Record],
    column: str,
    block: CptConfig,
    renderer: Renderer,
    cache: Path,
) -> Split:
    """Texts, tokenised into `cache` and cut into pieces.

    Raises BadInput where the stride is as long as a piece.
    """
    if block.stride >= renderer.max_length:
        raise BadInput(
            f"cpt.stride: expected less than the {renderer.max_length} tokens that a piece may "
            f"have, got {block.stride}; lower it"
        )
    trees = pieces(records, renderer, column, block.stride, cache)
    ledger = Ledger(rows=len(records), digest=sources.digest(records), ends_supervised=1.0)
    ledger.sequences, ledger.tokens, ledger.supervised = trees.totals
    ledger.drop("no token to predict", trees.empty)
    return Split(trees, ledger)


def _with_replay(
    split: Split, block: CptConfig, renderer: Renderer, cache: Path, check: Check | None
) -> Split:
    """The split with the general text that is to be replayed."""
    replay, key = block.replay, "cpt.replay.path"
    if replay.share == 0:
        return split
    columns = sources.Columns((replay.column,))
    records = sources.read("text", replay.path, replay.split, replay.revision, key, columns=columns)
    rows = records if check is None else check.sift(records, columns, "cpt", "replay")
    general = _texts(rows, replay.column, block, renderer, cache)
    if not general.trees:
        raise BadInput(f"{key}: {replay.path} holds no token to predict; replay another text")
    note_dropped(general.ledger, len(records) - len(rows))
    split.ledger.replay = general.ledger
    return Split(split.trees, split.ledger, general.trees)


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


class StepLoader:
    """Yields optimizer steps: `global_batch_size` sequences each, shuffled anew every epoch.

    A step never spans two epochs, so the last step of an epoch may be smaller. The order follows
    from the seed alone. `start` is the first step to yield, for a run that is continued.
    """

    def __init__(self, trees: Sequence[Tree], config: StageConfig, seed: int) -> None:
        self.trees = trees
        self.max_tokens = config.max_tokens
        self.start = 0
        self.plan = self._plan(config, seed)

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Step]:
        for number in range(self.start, len(self.plan)):
            trees = self.rows(number)
            yield Step(
                [pack(group) for group in within(trees, self.max_tokens)],
                rows=len(trees),
                tokens=sum(t.tokens for t in trees),
                supervised=sum(t.supervised for t in trees),
            )

    def rows(self, number: int) -> list[Tree]:
        """The trees of a step."""
        return [self.tree(i) for i in self.plan[number]]

    def tree(self, index: int) -> Tree:
        return self.trees[index]

    def tokens(self, index: int) -> int:
        """Of a tree."""
        return self.tree(index).tokens

    def orders(self, rows: float, seed: int) -> "Iterator[array[int]]":
        """The indices of the trees of each epoch, as many in all as `rows` of the stage ask."""
        return shuffled(len(self.trees), rows, seed)

    def state_dict(self) -> dict[str, int]:
        """Nothing of its own: what Lightning asks of a loader that can be continued."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """`start` was set before."""

    def _plan(self, config: StageConfig, seed: int) -> "list[array[int]]":
        """The indices of the sequences of every step of the stage."""
        size, tokens = config.global_batch_size, 0
        steps: list[array[int]] = []
        rows = math.inf
        if config.steps is None and config.tokens is None:
            rows = max(1, round(config.epochs * len(self.trees)))
        for order in self.orders(rows, seed):
            for at in range(0, len(order), size):
                steps.append(order[at : at + size])
                if len(steps) == config.steps:
                    return steps
                if config.tokens is not None:
                    tokens += sum(self.tokens(i) for i in steps[-1])
                    if tokens >= config.tokens:
                        return steps
        return steps


def shuffled(count: int, rows: float, seed: int | str) -> "Iterator[array[int]]":
    """So many indices as `rows`, every epoch of them in a new order, 4 bytes an index."""
    order = random.Random(seed)
    while rows > 0:
        indices = array("i", range(count))
        order.shuffle(indices)
        yield indices[: int(min(rows, count))]
        rows -= count
