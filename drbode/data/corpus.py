"""Raw text as trees: tokenised once into a memory map, and cut where it is too long.

Nothing here grows with the corpus but some bytes a document and a piece: rows are read as a stream,
token ids lie in a file, and a tree is made when it is asked for.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from drbode.config import digest
from drbode.data import sources
from drbode.data.prompts import Renderer
from drbode.data.rows import parse_text
from drbode.record import exclusive, whole
from drbode.trees import Completion, Tree

BATCH = 2_000_000  # characters that are tokenised at a time
LAYOUT = 1  # of the files below; another number where it changes
NEIGHBOURS = 16  # tokens before one that are decoded with it: in between some lose a space

Integers = NDArray[np.int64]


class Totals(NamedTuple):
    """What the pieces of documents come to."""

    sequences: int
    tokens: int
    supervised: int


@dataclass(frozen=True)
class Cut:
    """How a document is cut into pieces of at most `max_length` tokens.

    A piece begins with the last `stride` tokens of the one before it, as its prompt: they are
    context, and every token but the document's first is predicted once. Without a stride nothing
    precedes a piece's first token, which then is not predicted.
    """

    max_length: int
    stride: int = 0

    @property
    def new(self) -> int:
        """Tokens that a piece goes on by."""
        return self.max_length - self.stride

    def counts(self, lengths: Integers) -> Integers:
        """The number of pieces of documents; none of one without a token to predict.

        10 tokens in pieces of 4: 4, 4, 2; with a stride of 1: 4, 1 + 3, 1 + 3.
        """
        # Without a stride a last piece of a single token predicts nothing, and is left out.
        left = lengths - self.max_length - (self.stride == 0)
        counts: Integers = (lengths > 1) * (1 + np.maximum(0, -(-left // self.new)))
        return counts

    def span(self, length: int, piece: int) -> tuple[int, int, int]:
        """Where in its document a piece's context, and what it goes on by, begin; where it ends."""
        if piece == 0:
            return 0, 0, min(self.max_length, length)
        start = self.max_length + (piece - 1) * self.new
        return start - self.stride, start, min(start + self.new, length)

    def tree(self, ids: Sequence[int] | NDArray[Any], piece: int) -> Tree:
        context, start, end = self.span(len(ids), piece)
        prompt, piece_ids = (
            [int(i) for i in ids[a:b]] for a, b in ((context, start), (start, end))
        )
        return Tree(prompt, [Completion(piece_ids, [True] * len(piece_ids))])

    def trees(self, ids: Sequence[int]) -> list[Tree]:
        """A document as one tree, or several that follow each other where it is too long."""
        return [self.tree(ids, n) for n in range(int(self.counts(np.array([len(ids)]))[0]))]

    def totals(self, lengths: Integers) -> Totals:
        counts = self.counts(lengths)
        lengths, counts = lengths[counts > 0], counts[counts > 0]
        alone = np.zeros_like(lengths)
        if self.stride == 0:
            alone = (lengths > self.max_length) & (lengths % self.max_length == 1)
        tokens = lengths - alone + self.stride * (counts - 1)
        firsts = counts if self.stride == 0 else np.ones_like(counts)
        supervised = lengths - alone - firsts
        return Totals(int(counts.sum()), int(tokens.sum()), int(supervised.sum()))

    def unpredicted_bytes(self, tokenizer: Any, ids: Sequence[int] | NDArray[Any]) -> int:
        """UTF-8 bytes of a document's tokens that nothing predicts: its first, and its pieces'.

        `ids` end with the token that ends the document, which stands for no bytes.
        """
        starts = range(0, len(ids) - 1, self.max_length) if self.stride == 0 else (0,)
        total = 0
        for at in starts:
            around = [int(i) for i in ids[max(0, at - NEIGHBOURS) : at + 1]]
            after, before = (
                tokenizer.decode(part, skip_special_tokens=True).encode()
                for part in (around, around[:-1])
            )
            total += len(after) - len(before)
        return total


class Corpus:
    """Documents of token ids in a folder: all their ids in a row, where each ends, its UTF-8 bytes.

    The ids take 2 bytes each where the vocabulary allows it, else 4, on the disk; of them memory
    holds what is being read.
    """

    def __init__(self, folder: Path, kind: type[np.unsignedinteger[Any]]) -> None:
        self.ids = np.memmap(folder / "ids", kind, "r")
        self.ends = np.memmap(folder / "ends", np.int64, "r")
        self.bytes = np.memmap(folder / "bytes", np.int64, "r")

    def document(self, index: int) -> NDArray[Any]:
        start = self.ends[index - 1] if index else 0
        return self.ids[start : self.ends[index]]

    def lengths(self, documents: Integers) -> Integers:
        starts = np.where(documents > 0, self.ends[documents - 1], 0)
        lengths: Integers = self.ends[documents] - starts
        return lengths


def tokenised(
    records: Sequence[sources.Record], renderer: Renderer, column: str, cache: Path
) -> Corpus:
    """The documents of `records`, from `cache` where they have been tokenised before.

    Found again by the records' content and the tokenizer, whatever file they stand in and however
    long the pieces are. Another process that wants the same waits, and then finds it done.
    """
    kind = np.uint16 if len(renderer.tokenizer) <= np.iinfo(np.uint16).max + 1 else np.uint32
    content = [LAYOUT, sources.digest(records), column, _identity(renderer)]
    name = digest(content, 24)
    folder = cache / "texts" / name
    with exclusive(folder.with_name(f"{name}.lock")):
        if not folder.is_dir():
            for left in folder.parent.glob(f"part.*.{name}"):  # by a process that was killed
                for file in left.iterdir():
                    file.unlink()
                left.rmdir()
            with whole(folder) as draft:
                draft.mkdir()
                _write(records, renderer, column, draft, kind)
    return Corpus(folder, kind)


def _write(
    records: Sequence[sources.Record],
    renderer: Renderer,
    column: str,
    folder: Path,
    kind: type[np.unsignedinteger[Any]],
) -> None:
    end = 0
    with (
        (folder / "ids").open("wb") as ids,
        (folder / "ends").open("wb") as ends,
        (folder / "bytes").open("wb") as sizes,
    ):
        for texts in _batches(records, column):
            documents = renderer.texts(texts)
            lengths = np.fromiter(map(len, documents), np.int64, len(documents))
            flat = itertools.chain.from_iterable(documents)
            ids.write(np.fromiter(flat, kind, int(lengths.sum())).tobytes())
            ends.write((end + lengths.cumsum()).tobytes())
            sizes.write(np.array([len(text.encode()) for text in texts], np.int64).tobytes())
            end += int(lengths.sum())


def _batches(records: Sequence[sources.Record], column: str) -> Iterator[list[str]]:
    texts: list[str] = []
    held = 0
    for where, fields in records:
        texts.append(parse_text(fields, where, column).text)
        held += len(texts[-1])
        if held >= BATCH:
            yield texts
            texts, held = [], 0
    if texts:
        yield texts


def _identity(renderer: Renderer) -> list[Any]:
    """What the ids of a text depend on."""
    tokenizer = renderer.tokenizer
    if tokenizer.is_fast:
        core = json.loads(tokenizer.backend_tokenizer.to_str())
        core["truncation"] = core["padding"] = None  # as the last call left them
    else:
        core = [sorted(tokenizer.get_vocab().items()), repr(tokenizer.init_kwargs)]
    return [type(tokenizer).__name__, renderer.document_end, core]


class Pieces(Sequence[Tree]):
    """The trees of some of a corpus's documents, one after the other, each made on demand."""

    def __init__(self, corpus: Corpus, documents: Integers, cut: Cut) -> None:
        self.corpus = corpus
        self.documents = documents
        self.cut = cut
        lengths = corpus.lengths(documents)
        counts = cut.counts(lengths)
        self.ends = counts.cumsum()  # a document's pieces in the row of all
        self.totals = cut.totals(lengths)
        self.empty = int((counts == 0).sum())

    def __len__(self) -> int:
        return self.totals.sequences

    @overload
    def __getitem__(self, index: int) -> Tree: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tree]: ...
    def __getitem__(self, index: int | slice) -> Tree | list[Tree]:
        every = range(len(self))[index]
        if isinstance(every, range):
            return [self[i] for i in every]
        document, piece = self._place(every)
        return self.cut.tree(self.corpus.document(document), piece)

    def tokens(self, index: int) -> int:
        """Of a piece, without reading it."""
        document, piece = self._place(index)
        context, _, end = self.cut.span(len(self.corpus.document(document)), piece)
        return end - context

    def predicted_bytes(self, tokenizer: Any) -> int:
        """UTF-8 bytes that the predicted tokens stand for."""
        read = [i for i, n in zip(self.documents, np.diff(self.ends, prepend=0), strict=True) if n]
        documents = (self.corpus.document(i) for i in read)
        unpredicted = (self.cut.unpredicted_bytes(tokenizer, ids) for ids in documents)
        return int(self.corpus.bytes[read].sum()) - sum(unpredicted)

    def _place(self, index: int) -> tuple[int, int]:
        """A piece's document in the corpus, and its number in it."""
        at = int(np.searchsorted(self.ends, index, side="right"))
        return int(self.documents[at]), index - (int(self.ends[at - 1]) if at else 0)


def pieces(
    records: Sequence[sources.Record], renderer: Renderer, column: str, stride: int, cache: Path
) -> Pieces:
    """The trees of the records' texts."""
    corpus, documents = _documents(records, renderer, column, cache)
    return Pieces(corpus, documents, Cut(renderer.max_length, stride))


def _documents(
    records: Sequence[sources.Record], renderer: Renderer, column: str, cache: Path
) -> tuple[Corpus, Integers]:
    """The corpus of the whole source, and which of its documents are meant."""
    if isinstance(records, sources.Picked):
        corpus, documents = _documents(records.whole, renderer, column, cache)
        return corpus, documents[np.asarray(records.indices, np.int64)]
    return tokenised(records, renderer, column, cache), np.arange(len(records))
