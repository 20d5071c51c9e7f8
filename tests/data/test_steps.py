"""A stage's rows as optimizer steps."""

import dataclasses
from typing import Any

import pytest
from transformers import AutoTokenizer

from drbode import config
from drbode.config import BadInput, StageConfig
from drbode.data.prompts import Renderer
from drbode.data.splits import StageRows
from drbode.data.steps import StepLoader
from drbode.models.base import bodinho_folder
from drbode.trees import Completion, Tree


def stage(name: str = "sft", **changes: Any) -> StageConfig:
    block = getattr(config.build(config.TrainConfig, config.compose("train")), name)
    data = {k.removeprefix("data_"): v for k, v in changes.items() if k.startswith("data_")}
    own = {k: v for k, v in changes.items() if not k.startswith("data_")}
    return dataclasses.replace(block, data=dataclasses.replace(block.data, **data), **own)


def rows(*lengths: int) -> list[Tree]:
    return [Tree([1], [Completion([2] * n, [True] * n)]) for n in lengths]


def test_an_epoch_sees_every_row_once_in_a_new_order() -> None:
    loader = StepLoader(rows(*range(1, 11)), stage(epochs=2, global_batch_size=4), seed=0)
    assert [len(step) for step in loader.plan] == [4, 4, 2, 4, 4, 2]
    first, second = ([n for step in loader.plan[i : i + 3] for n in step] for i in (0, 3))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_half_an_epoch_is_half_the_rows() -> None:
    loader = StepLoader(rows(*range(1, 11)), stage(epochs=1.5, global_batch_size=4), seed=0)
    assert sum(map(len, loader.plan)) == 15


def test_the_order_follows_the_seed() -> None:
    plans = [StepLoader(rows(*range(1, 30)), stage(), seed).plan for seed in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]


def test_a_stage_ends_by_steps_or_tokens_over_epochs() -> None:
    trees = rows(*[4] * 10)  # 5 tokens each
    assert len(StepLoader(trees, stage(steps=7, global_batch_size=4), 0)) == 7
    loader = StepLoader(trees, stage(tokens=41, global_batch_size=4), 0)
    assert sum(step.tokens for step in loader) == 50  # 20 + 20 + 10, the first total past 41


def test_a_step_counts_the_tokens_of_all_its_micro_batches() -> None:
    loader = StepLoader(rows(3, 4, 5, 6), stage(epochs=1, global_batch_size=4, max_tokens=9), 0)
    (step,) = loader
    assert step.supervised == 3 + 4 + 5 + 6
    assert step.tokens == step.supervised + 4
    assert sum(len(batch.targets) for batch in step.batches) == step.supervised
    assert len(step.batches) > 1
    assert all(b.tokens <= 9 for b in step.batches)


def test_it_goes_on_from_where_it_is_told() -> None:
    loader = StepLoader(rows(*range(1, 20)), stage(global_batch_size=4), 0)
    every = [step.tokens for step in loader]
    loader.start = 3
    assert [step.tokens for step in loader] == every[3:]


class Words:
    """A tokenizer of one token a character, with ChatML."""

    chat_template = "yes"
    eos_token_id = 1
    all_special_ids = (1,)

    def get_vocab(self) -> dict[str, int]:
        return {}

    get_added_vocab = get_vocab

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1 if c == "$" else ord(c) for c in text]}

    def convert_ids_to_tokens(self, _: int) -> str:
        return "$"

    def apply_chat_template(
        self, turns: list[dict[str, str]], add_generation_prompt: bool, **_: Any
    ) -> str:
        said = "".join(f"{t['role'][0]}{t['content']}$" for t in turns)
        return said + "a" * add_generation_prompt


def test_the_ledger_says_what_became_of_the_rows(tmp_path: Any) -> None:
    lines = [
        f'{{"data": [{{"role": "user", "content": "{u}"}}, '
        f'{{"role": "assistant", "content": "{a}"}}]}}'
        for u, a in [("xx", "yyy"), ("x" * 50, "y"), ("x", "y")]
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    block = stage(data_path=str(tmp_path / "rows.jsonl"), data_validation_share=0.0)
    train, validation = StageRows(
        "sft", block, Renderer(Words(), 20), seed=0, cache=tmp_path
    ).splits()
    assert validation is None
    ledger = train.ledger
    assert (ledger.rows, ledger.sequences, ledger.cut) == (3, 2, 0)
    assert ledger.dropped == {"longer than 20 tokens": 1}
    assert ledger.supervised == 4 + 2  # yyy$ and y$
    assert ledger.tokens == (5 + 4) + (4 + 2)  # uxx$a yyy$ and ux$a y$
    assert ledger.ends_supervised == 1.0
    with pytest.raises(BadInput, match=r"no supervised token is left .*3 longer than 3 tokens"):
        StageRows("sft", block, Renderer(Words(), 3), seed=0, cache=tmp_path).splits()


def test_validation_rows_are_held_out_of_the_training_rows(tmp_path: Any) -> None:
    lines = [f'{{"text": "row number {n}"}}' for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    block = stage("cpt", data_path=str(tmp_path / "rows.jsonl"), data_validation_share=0.25)
    renderer = Renderer(AutoTokenizer.from_pretrained(bodinho_folder()), 64)
    train, validation = StageRows("cpt", block, renderer, seed=0, cache=tmp_path).splits()
    assert validation is not None
    assert (train.ledger.rows, validation.ledger.rows) == (30, 10)
    told = [{tuple(t.completions[0].ids) for t in split.trees} for split in (train, validation)]
    assert not told[0] & told[1]


@pytest.mark.parametrize("own_file", [True, False])
def test_of_many_validation_rows_a_sample_is_taken(own_file: bool, tmp_path: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(f'{{"text": "row number {n}"}}' for n in range(40)))
    source = {"data_validation_path": str(path)} if own_file else {"data_validation_share": 0.5}
    block = stage("cpt", data_path=str(path), data_validation_rows=6, **source)
    renderer = Renderer(AutoTokenizer.from_pretrained(bodinho_folder()), 64)
    train, validation = StageRows("cpt", block, renderer, seed=0, cache=tmp_path).splits()
    assert validation is not None
    assert validation.ledger.rows == 6
    assert train.ledger.rows == (40 if own_file else 34)  # what is not held out is trained on


def test_a_single_row_is_trained_on_and_not_held_out(tmp_path: Any) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "only one"}')
    block = stage("cpt", data_path=str(tmp_path / "rows.jsonl"))
    renderer = Renderer(AutoTokenizer.from_pretrained(bodinho_folder()), 64)
    train, validation = StageRows("cpt", block, renderer, seed=0, cache=tmp_path).splits()
    assert train.ledger.rows == 1
    assert validation is None
