"""A stage's rows as optimizer steps: what is trained on, in which order, and a ledger of it."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from drbode.config import BODINHO, BadInput, MlmConfig, SftConfig, Stage, StageConfig
from drbode.data import sources
from drbode.data.bodinho import Conditions
from drbode.data.contamination import DROPPED, Check
from drbode.data.prompts import Rendered, Renderer
from drbode.data.rows import parse_chat, parse_pair, parse_prompt, parse_text
from drbode.data.trees import Forest, Tree, pack, within


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

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Split:
    trees: Sequence[Tree]
    ledger: Ledger


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
    conditions: Conditions = "default",
    choose: "Choose | None" = None,
    check: Check | None = None,
) -> tuple[Split, Split | None]:
    """Training and validation rows of a stage, rendered.

    Validation rows come from `validation_path`, from bodinho's own split, or are held out of the
    training rows. `check` looks through the training rows and what is held out of them; `choose`
    leaves some training rows out. Raises BadInput where no supervised token is left.
    """
    data = block.data
    kind, columns, render = _reader(stage, block, renderer)
    train, held_out = read_rows(kind, columns, stage, block, seed, conditions)
    train = sources.sample(train, data.rows, seed)
    own = data.validation_path is None and data.path != BODINHO  # held out of the training rows
    chosen, rest = train, held_out
    if check is not None:
        chosen = check.sift(train, columns, stage, "train")
        rest = check.sift(held_out, columns, stage, "validation") if own else held_out
    kept = render_rows(chosen if choose is None else choose(chosen, render), render)
    note_dropped(kept.ledger, len(train) - len(chosen))
    if not kept.trees:
        why = ", ".join(f"{n} {reason}" for reason, n in kept.ledger.dropped.items())
        raise BadInput(
            f"{stage}.data.path: no supervised token is left of {data.path} "
            f"({why or 'all rows are empty'}); raise {stage}.max_length or mend the rows"
        )
    validation = render_rows(rest, render) if held_out else None
    if validation:
        note_dropped(validation.ledger, len(held_out) - len(rest))
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
        chosen = set(random.Random(seed).sample(range(len(train)), count))
        held_out = sources.Picked(train, sorted(chosen))
        train = sources.Picked(train, [i for i in range(len(train)) if i not in chosen])
    return train, held_out


def prompt_columns(column: str) -> sources.Columns:
    """A prompt, and answers to it where they are."""
    return sources.Columns((column,), ("chosen", "rejected"))


Render = Callable[[str, Any], Rendered]
Choose = Callable[[Sequence[sources.Record], Render], Sequence[sources.Record]]


def _reader(
    stage: Stage, block: StageConfig, renderer: Renderer
) -> tuple[sources.Kind, sources.Columns, Render]:
    """The kind of rows that a stage reads, what it reads of them, and what makes trees of one."""
    column = block.data.column
    alone = sources.Columns((column,))
    pair = sources.Columns((column, "chosen", "rejected"))
    match stage:
        case "cpt":
            return "text", alone, lambda where, row: renderer.text(parse_text(row, where, column))
        case "mlm":
            assert isinstance(block, MlmConfig)
            pairs = block.nsp
            return (
                "text",
                alone,
                lambda where, row: renderer.masked(parse_text(row, where, column), pairs),
            )
        case "sft" if isinstance(block, SftConfig) and block.format == "chapter":
            return "chat", alone, lambda where, row: renderer.lines(parse_chat(row, where, column))
        case "sft":
            return "chat", alone, lambda where, row: renderer.chat(parse_chat(row, where, column))
        case "ppo":
            return (
                "pair",
                prompt_columns(column),
                lambda where, row: renderer.opening(parse_prompt(row, where, column)),
            )
        case "dpo" | "reward":
            return "pair", pair, lambda where, row: renderer.pair(parse_pair(row, where, column))


def render_rows(records: Sequence[sources.Record], render: Render) -> Split:
    """Rows as trees, with a ledger of what became of them."""
    ledger = Ledger(rows=len(records), digest=sources.digest(records))
    trees, ends = Forest(), 0
    for where, fields in records:
        rendered = render(where, fields)
        ledger.cut += rendered.cut
        if rendered.dropped:
            ledger.dropped[rendered.dropped] = ledger.dropped.get(rendered.dropped, 0) + 1
        trees.extend(rendered.trees)
        ledger.tokens += sum(t.tokens for t in rendered.trees)
        ledger.supervised += sum(t.supervised for t in rendered.trees)
        ends += sum(t.completions[-1].supervised[-1] for t in rendered.trees if t.completions)
    ledger.sequences = len(trees)
    ledger.ends_supervised = ends / len(trees) if trees else 0.0
    return Split(trees, ledger)


def note_dropped(ledger: Ledger, count: int) -> None:
    """Enters the rows that were dropped before they were rendered."""
    if count:
        ledger.rows += count
        ledger.dropped[DROPPED] = count


class StepLoader:
    """Yields optimizer steps: `global_batch_size` sequences each, shuffled anew every epoch.

    A step never spans two epochs, so the last step of an epoch may be smaller. The order follows
    from the seed alone. `start` is the first step to yield, for a run that is continued.
    """

    def __init__(self, trees: Sequence[Tree], config: StageConfig, seed: int) -> None:
        self.trees = trees
        self.max_tokens = config.max_tokens
        self.start = 0
        self.plan = _plan(trees, config, seed)

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Step]:
        for indices in self.plan[self.start :]:
            trees = [self.trees[i] for i in indices]
            yield Step(
                [pack(group) for group in within(trees, self.max_tokens)],
                rows=len(trees),
                tokens=sum(t.tokens for t in trees),
                supervised=sum(t.supervised for t in trees),
            )

    def state_dict(self) -> dict[str, int]:
        """Nothing of its own: what Lightning asks of a loader that can be continued."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """`start` was set before."""


def _plan(trees: Sequence[Tree], config: StageConfig, seed: int) -> list[list[int]]:
    """The indices of the sequences of every step of the stage."""
    size = config.global_batch_size
    tokens = 0
    steps: list[list[int]] = []
    rows_left = math.inf
    if config.steps is None and config.tokens is None:
        rows_left = max(1, round(config.epochs * len(trees)))
    order = random.Random(seed)
    while True:
        indices = list(range(len(trees)))
        order.shuffle(indices)
        for at in range(0, len(indices), size):
            step = indices[at : at + int(min(size, rows_left))]
            steps.append(step)
            rows_left -= len(step)
            if rows_left <= 0 or len(steps) == config.steps:
                return steps
            if config.tokens is not None:
                tokens += sum(trees[i].tokens for i in step)
                if tokens >= config.tokens:
                    return steps
