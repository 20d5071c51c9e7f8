"""Raw text: tokenised once, cut with a stride, counted in bytes, mixed and ended as asked."""

import dataclasses
import json
import math
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from drbode.config import BadInput, CptConfig
from drbode.data import corpus, sources
from drbode.data.bodinho import QUESTIONS
from drbode.data.contamination import DROPPED, Check
from drbode.data.corpus import Cut, pieces, tokenised
from drbode.data.prompts import Renderer
from drbode.data.replay import TextSteps
from drbode.data.rows import parse_question
from drbode.data.splits import StageRows
from drbode.models.base import Policy, bodinho_folder
from drbode.training.cpt import CPTModule
from drbode.trees import Batch, Completion, Tree, pack
from tests.conftest import VOCABULARY, settings, tiny

TEXTS = ["A dengue é uma doença. " * n for n in (1, 9, 3, 5, 2)] + ["Não há ação sem pão."]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(bodinho_folder())


def letters(*extra: str) -> PreTrainedTokenizerFast:
    """A token a letter, w1 ends; `extra` are merges, such as 'a b' for one token ab."""
    names = ["w0", "w1", *"abcd", *(pair.replace(" ", "") for pair in extra)]
    core = Tokenizer(
        models.BPE({n: i for i, n in enumerate(names)}, [tuple(p.split()) for p in extra])
    )
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="w0", eos_token="w1")


def cpt(**changes: Any) -> CptConfig:
    block = settings("stages=cpt").cpt
    data = {k.removeprefix("data_"): v for k, v in changes.items() if k.startswith("data_")}
    replay = {k.removeprefix("replay_"): v for k, v in changes.items() if k.startswith("replay_")}
    own = {k: v for k, v in changes.items() if not k.startswith(("data_", "replay_"))}
    return dataclasses.replace(
        block,
        data=dataclasses.replace(block.data, **data),
        replay=dataclasses.replace(block.replay, **replay),
        **own,
    )


def write(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def read(path: str) -> Any:
    return sources.read("text", path, "train", None, "cpt.data.path")


def text(trees: list[Tree], size: int = 3) -> list[Any]:
    return [(tree.prompt, tree.completions[0].ids) for tree in trees[:size]]


def test_pieces_by_hand() -> None:
    ids = list(range(10))
    assert text(Cut(4).trees(ids)) == [([], [0, 1, 2, 3]), ([], [4, 5, 6, 7]), ([], [8, 9])]
    assert text(Cut(4, 1).trees(ids)) == [([], [0, 1, 2, 3]), ([3], [4, 5, 6]), ([6], [7, 8, 9])]
    assert text(Cut(4, 2).trees(ids), 9) == [
        ([], [0, 1, 2, 3]),
        ([2, 3], [4, 5]),
        ([4, 5], [6, 7]),
        ([6, 7], [8, 9]),
    ]


@pytest.mark.parametrize("max_length", [2, 3, 7])
@pytest.mark.parametrize("stride", [0, 1, 3, 6])
def test_every_token_is_trained_once_and_counted(max_length: int, stride: int) -> None:
    """Without a stride all but the first token of a piece."""
    if stride >= max_length:
        return
    cut = Cut(max_length, stride)
    for length in range(30):
        trees = cut.trees(list(range(length)))
        assert all(0 < tree.tokens <= max_length for tree in trees)
        assert all(tree.supervised for tree in trees)
        predicted = pack(trees).targets.tolist()
        firsts = set(range(0, length, max_length)) if stride == 0 else {0}
        assert predicted == [i for i in range(length) if i not in firsts]
        found = cut.totals(np.array([length, 1]))
        assert found == (
            len(trees),
            sum(t.tokens for t in trees),
            sum(t.supervised for t in trees),
        )


@pytest.mark.parametrize("stride", [0, 4])
def test_trees_of_the_memory_map_are_those_in_memory(
    tokenizer: Any, stride: int, tmp_path: Path
) -> None:
    renderer = Renderer(tokenizer, 16)
    records = read(write(tmp_path / "a.jsonl", TEXTS))
    chosen = sources.Picked(records, [5, 1, 2])
    found = pieces(chosen, renderer, "text", stride, tmp_path)
    in_memory = [
        tree
        for ids in renderer.texts([TEXTS[i] for i in (5, 1, 2)])
        for tree in Cut(16, stride).trees(ids)
    ]
    assert list(found) == found[:] == in_memory
    assert [found.tokens(i) for i in range(len(found))] == [t.tokens for t in in_memory]
    assert found.totals.supervised == sum(t.supervised for t in in_memory)


def test_a_corpus_is_tokenised_once_and_anew_when_its_content_changes(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    whole = Renderer.texts

    def counted(self: Renderer, texts: list[str]) -> list[list[int]]:
        calls.append(len(texts))
        return whole(self, texts)

    monkeypatch.setattr(Renderer, "texts", counted)
    renderer = Renderer(tokenizer, 16)
    first = read(write(tmp_path / "a.jsonl", TEXTS))
    tokenised(first, renderer, "text", tmp_path)
    tokenised(first, Renderer(tokenizer, 8), "text", tmp_path)
    tokenised(read(write(tmp_path / "b.jsonl", TEXTS)), renderer, "text", tmp_path)
    assert calls == [6]  # the second of another max_length, the third the same in another file
    tokenised(
        read(write(tmp_path / "c.jsonl", [*TEXTS[:-1], "Outro."])), renderer, "text", tmp_path
    )
    tokenised(first, Renderer(letters(), 16), "text", tmp_path)
    assert calls == [6, 6, 6]


def test_an_interrupted_tokenising_leaves_nothing_half(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = read(write(tmp_path / "a.jsonl", TEXTS))
    renderer = Renderer(tokenizer, 16)
    monkeypatch.setattr(corpus, "BATCH", 50)
    whole, calls = Renderer.texts, []

    def interrupted(self: Renderer, texts: list[str]) -> list[list[int]]:
        calls.append(texts)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(self, texts)

    monkeypatch.setattr(Renderer, "texts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tokenised(records, renderer, "text", tmp_path)
    (lock,) = (tmp_path / "texts").iterdir()
    killed = tmp_path / "texts" / f"part.1.{lock.stem}"  # as a process that was killed leaves it
    killed.mkdir()
    (killed / "ids").write_bytes(b"12")
    found = tokenised(records, renderer, "text", tmp_path)
    assert len(found.ends) == len(TEXTS)
    assert {path.name for path in (tmp_path / "texts").iterdir()} == {lock.name, lock.stem}


def test_files_of_every_kind_hold_the_same_texts(tokenizer: Any, tmp_path: Path) -> None:
    from pyarrow import Table, parquet

    texts = ["Um texto\nem duas linhas.", "Outro.", "Não."]
    (tmp_path / "a.txt").write_text("\n\nUm texto\nem duas linhas.\n\n \nOutro.\n\nNão.\n")
    rows = [{"text": t, "other": 1} for t in texts]
    parquet.write_table(Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=2)
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    renderer = Renderer(tokenizer, 64)
    for kind in ("txt", "parquet", "jsonl"):
        block = cpt(data_path=str(tmp_path / f"a.{kind}"), data_validation_share=0.0)
        split, _ = StageRows("cpt", block, renderer, 0, tmp_path).splits()
        assert [tree.completions[0].ids for tree in split.trees] == renderer.texts(texts)
    records = read(str(tmp_path / "a.txt"))
    assert [where.rpartition(" ")[2] for where, _ in records] == ["3", "7", "9"]
    assert [fields["text"] for _, fields in records[1:]] == texts[1:]


def test_a_document_does_not_attend_to_another(tokenizer: Any, tmp_path: Path) -> None:
    """A piece's logps are the same beside any others; its context counts."""
    policy = Policy(tiny("qwen3"), None)
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCABULARY, (40,), generator=drawn).tolist()
    (first, second, *_), other = Cut(16, 4).trees(ids), Tree([], [Completion([5] * 9, [True] * 9)])
    with torch.no_grad():
        beside = [
            policy.logps(pack(trees))[-second.supervised :]
            for trees in ([second], [first, second], [other, first, second])
        ]
        alone = second._replace(prompt=[9, 9, 9, 9])
        changed = policy.logps(pack([alone]))
    torch.testing.assert_close(beside[0], beside[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(beside[0], beside[2], atol=1e-5, rtol=0)
    assert (beside[0] - changed).abs().max() > 1e-3


def loader(tmp_path: Path, tokenizer: Any, **changes: Any) -> TextSteps:
    block = cpt(
        data_path=write(tmp_path / "own.jsonl", TEXTS * 5),
        replay_path=write(tmp_path / "general.jsonl", ["O rio é fundo e frio. " * 2] * 7),
        data_validation_share=0.0,
        global_batch_size=4,
        **changes,
    )
    split, _ = StageRows("cpt", block, Renderer(tokenizer, 16), 0, tmp_path).splits()
    return TextSteps(split, block, seed=0)


@pytest.mark.parametrize("stride", [0, 5])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_stage_ends_at_exactly_the_tokens(
    tokenizer: Any, stride: int, share: float, tmp_path: Path
) -> None:
    whole = loader(tmp_path, tokenizer, stride=stride, replay_share=share, steps=9)
    uncut = [tree for number in range(9) for tree in whole.rows(number)]
    for tokens in range(20, 200, 7):
        steps = list(loader(tmp_path, tokenizer, stride=stride, replay_share=share, tokens=tokens))
        assert sum(step.tokens for step in steps) == tokens
        assert all(step.supervised for step in steps)
        ids = [i for step in steps for batch in step.batches for i in batch.input_ids.tolist()]
        together = [i for t in uncut for i in (*t.prompt, *t.completions[0].ids)]
        assert ids == together[:tokens]


def test_tokens_that_hold_nothing_to_predict_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cpt.tokens: 1 hold no token"):
        loader(tmp_path, tokenizer, tokens=1)


def test_replayed_text_has_its_share_of_the_tokens_at_every_moment(
    tokenizer: Any, tmp_path: Path
) -> None:
    made = loader(tmp_path, tokenizer, replay_share=0.3, epochs=2.0)
    own = len(made.trees.pieces)
    order = [i for step in made.plan for i in step]
    assert sorted(i for i in order if i < own) == sorted([*range(own)] * 2)
    seen = replayed = 0
    for index in order:
        seen += made.trees.tokens(index)
        replayed += made.trees.tokens(index) * (index >= own)
        assert abs(replayed - 0.3 * seen) <= 16  # a piece
    trees = [tree for number in range(len(made)) for tree in made.rows(number)]
    assert sum(t.tokens for t in trees) == seen
    general = {tuple(t.completions[0].ids) for t in made.trees.general}
    assert sum(t.tokens for t in trees if tuple(t.completions[0].ids) in general) == replayed


def test_replayed_text_is_checked_against_the_benchmark(tokenizer: Any, tmp_path: Path) -> None:
    row = QUESTIONS["test"]()[0]
    question = parse_question(row, "exam.jsonl, line 1")
    asks = f"{question.stem} {question.alternatives[question.answer]}"
    general = write(tmp_path / "general.jsonl", [*TEXTS, asks])
    block = cpt(
        data_path=write(tmp_path / "own.jsonl", TEXTS * 5), replay_path=general, replay_share=0.3
    )

    def loaded(check: Check | None) -> Any:
        split, _ = StageRows(
            "cpt", block, Renderer(tokenizer, 16), 0, tmp_path, check=check
        ).splits()
        return split

    check = Check([question], "drop")
    without, whole = loaded(check), loaded(None)
    assert check.dropped("cpt") == [f"{general}, line 7"]
    assert without.ledger.replay.dropped == {DROPPED: 1}
    assert without.ledger.replay.rows == whole.ledger.replay.rows == 7
    assert len(without.replay) < len(whole.replay)
    stopped = Check([question], "stop")
    loaded(stopped)
    with pytest.raises(BadInput, match=r"^cpt.replay.path: .*general.jsonl, line 7: asks"):
        stopped.refuse()


def test_of_two_processes_that_want_a_corpus_one_tokenises_it(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = read(write(tmp_path / "a.jsonl", TEXTS))
    calls = tmp_path / "calls"
    together = get_context("fork").Barrier(2)

    def slow(_: Renderer, texts: list[str]) -> list[list[int]]:
        with calls.open("a") as file:
            file.write(f"{len(texts)} texts\n")
        time.sleep(0.3)
        return [[n, n] for n in range(len(texts))]

    def wanted() -> None:
        renderer = Renderer(tokenizer, 16)
        together.wait(30)
        found = tokenised(records, renderer, "text", tmp_path)
        assert [list(found.document(n)) for n in range(6)] == [[n, n] for n in range(6)]

    monkeypatch.setattr(Renderer, "texts", slow)
    both = [get_context("fork").Process(target=wanted) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert calls.read_text() == "6 texts\n"


def test_near_duplicates_are_dropped_also_of_what_is_held_out(
    tokenizer: Any, tmp_path: Path
) -> None:
    def words(start: int) -> str:
        return " ".join(f"palavra{i}" for i in range(start, start + 60))

    path = write(tmp_path / "a.jsonl", [words(0), words(1000), words(0) + " fim", words(2000)])
    held_out = write(tmp_path / "b.jsonl", [words(2000)])
    block = cpt(data_path=path, data_validation_path=held_out, near_duplicates=0.8)
    train, validation = StageRows("cpt", block, Renderer(tokenizer, 2048), 0, tmp_path).splits()
    assert validation is not None
    assert (train.ledger.rows, train.ledger.sequences) == (4, 2)
    assert train.ledger.dropped == {"nearly repeats another": 2}
    kept = Renderer(tokenizer, 2048).texts([words(0), words(1000)])
    assert [tree.completions[0].ids for tree in train.trees] == kept
    assert validation.ledger.dropped == {}


class Uniform:
    """A policy that finds every next token as probable as a table says."""

    def __init__(self, nats: dict[int, float]) -> None:
        self.nats = nats

    def logps(self, batch: Batch) -> torch.Tensor:
        return torch.tensor([-self.nats[int(t)] for t in batch.targets])


def bits_per_byte(tokenizer: Any, nats: dict[int, float], texts: list[str], path: Path) -> float:
    block = cpt(
        data_path=write(path / "t.jsonl", ["abcd"]),
        data_validation_path=write(path / "v.jsonl", texts),
        stride=1,
    )
    _, held_out = StageRows("cpt", block, Renderer(tokenizer, 8), 0, path).splits()
    assert held_out is not None
    module = CPTModule(
        Uniform(nats),
        "cpt",
        block,
        steps=1,
        step_offset=0,
        machine=None,
        end=1,
        document_end=1,
        predicted_bytes=held_out.ledger.predicted_bytes,
    )
    module.on_validation_epoch_start()
    for tree in held_out.trees:
        module.validation_step(pack([tree]), 0)
    return module.held_out_metrics()["bits_per_byte"]


def test_bits_per_byte_are_those_of_the_text_whatever_the_tokens(tmp_path: Path) -> None:
    """Each letter has probability 1/4 by itself: 2 bits a byte, also where two are one token."""
    letter, end = math.log(4), 3.0
    texts = ["cabab" * 3, "dabcab"]
    alone = letters()
    joined = letters("a b")
    singles = {1: end} | {alone.convert_tokens_to_ids(c): letter for c in "abcd"}
    pairs = {1: end} | {joined.convert_tokens_to_ids(c): letter for c in "abcd"}
    pairs[joined.convert_tokens_to_ids("ab")] = 2 * letter
    for tokenizer, nats in ((alone, singles), (joined, pairs)):
        assert bits_per_byte(tokenizer, nats, texts, tmp_path) == pytest.approx(2.0, abs=1e-6)
    assert len(alone("dabcab")["input_ids"]) > len(joined("dabcab")["input_ids"])


def test_a_stride_as_long_as_a_piece_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    block = cpt(data_path=write(tmp_path / "a.jsonl", TEXTS), stride=16)
    with pytest.raises(BadInput, match=r"cpt.stride: expected less than the 16 tokens"):
        StageRows("cpt", block, Renderer(tokenizer, 16), 0, tmp_path).splits()
