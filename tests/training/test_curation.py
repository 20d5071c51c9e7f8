"""How hard rows are to a model, against logits in plain transformers; and a run that curates."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from drbode import config, train
from drbode.data.bodinho import CHATS
from drbode.models.base import Policy
from drbode.models.methods import wrap
from drbode.training.curation import difficulty
from drbode.trees import Completion, Tree
from tests.conftest import NO_GENERAL, run_context, settings, tiny, words


def tree(prompt: list[int], answer: list[int], learned: int | None = None) -> Tree:
    supervised = [i >= len(answer) - (learned or len(answer)) for i in range(len(answer))]
    return Tree(prompt, [Completion(answer, supervised)])


def written(network: Any, prompt: list[int], count: int) -> list[int]:
    """What the network writes, the most probable token each time."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(network(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@torch.no_grad()
def test_difficulty_is_the_mean_loss_and_whether_the_model_writes_the_answer(
    tmp_path: Path,
) -> None:
    plain = tiny("qwen3")
    answer = written(plain, [5, 6, 7], 4)
    wrong = [*answer[:2], (answer[2] + 1) % 97, answer[3]]
    rows = [
        [tree([5, 6, 7], answer)],
        [tree([5, 6, 7], wrong)],
        [tree([5, 6, 7], answer), tree([8, 9], [3, 4])],
        [tree([5, 6], [7, *answer], learned=4)],
    ]
    policy = Policy(tiny("qwen3"), words())
    wrap(policy, settings("lora.dropout=0.5").tuning())
    policy.network.train()
    machine = run_context(tmp_path).machine
    measured = difficulty(policy, iter(rows), 4096, machine)
    assert [one.answered for one in measured] == [True, False, False, True]
    for row, one in zip(rows, measured, strict=True):
        losses = []
        for prompt, (completion,), _ in row:
            ids = torch.tensor([[*prompt, *completion.ids]])
            logps = plain(ids).logits[0].log_softmax(-1)
            for i, learned in enumerate(completion.supervised):
                if learned:
                    losses.append(-float(logps[len(prompt) + i - 1, completion.ids[i]]))
        assert one.loss == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    for parameter in policy.trainable().values():  # now dropout would show
        parameter.normal_(std=0.1)
    measured = difficulty(policy, iter(rows), 4096, machine)
    assert measured == difficulty(policy, iter(rows), 4096, machine)
    assert policy.network.training  # as it was
    apart = difficulty(policy, iter(rows), 1, machine)
    assert [one.loss for one in apart] == pytest.approx([one.loss for one in measured], abs=1e-5)


@pytest.fixture
def run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    rows = CHATS["train"]("default")[:24]
    rows.append({"data": [{"role": "user", "content": "Sem resposta?"}]})
    rows.append(
        {
            "data": [
                {"role": "user", "content": "Which virus causes dengue in humans?"},
                {"role": "assistant", "content": "a virus of this family, of course."},
            ]
        }
    )
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*more: str) -> tuple[Path, dict[str, Any]]:
        quick = ["sft.steps=1", "benchmark.questions=5", "trainer.progress=false", "logger=csv"]
        overrides = [*quick, "trainer.threads=1", *NO_GENERAL, *more]
        done = train.job(config.compose("train", overrides), overrides, False)
        return done.folder, json.loads((done.folder / "record.json").read_text())

    return run


def test_a_run_trains_on_the_rows_chosen_alone(
    run_it: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ["sft.data.path=rows.jsonl", "sft.data.validation_path=bodinho"]
    run, record = run_it("sft.curation=limo", "sft.curation_n=4", *source)
    said = " ".join(capsys.readouterr().out.split())
    assert "limo, 4 of 26 rows" in said
    assert "near duplicates" in said
    data = record["data"]["stages"]["sft"]
    assert data["train"]["rows"] == 4
    assert data["train"]["dropped"] == {}
    assert data["validation"]["rows"] == 360  # all of bodinho's
    assert record["data"]["curation"]["seconds"] > 0
    assert record["data"]["curation"]["funnel"][0] == {
        "filter": "validity",
        "before": 26,
        "dropped": 1,
        "left": 25,
    }
    with (run / "curation/funnel.csv").open(newline="") as file:
        table = [
            {k: v if k == "filter" else int(v) for k, v in r.items()} for r in csv.DictReader(file)
        ]
    assert table == record["data"]["curation"]["funnel"]
    assert (run / "curation/funnel.png").read_bytes().startswith(b"\x89PNG")
    chosen = [json.loads(x) for x in (run / "curation/chosen.jsonl").read_text().splitlines()]
    dropped = [json.loads(x) for x in (run / "curation/dropped.jsonl").read_text().splitlines()]
    where = [row["curation"]["where"] for row in chosen] + [row["where"] for row in dropped]
    assert sorted(where) == sorted(f"rows.jsonl, line {n}" for n in range(1, 27))
    # The file of what was chosen is a set of its own.
    path = f"sft.data.path={run / 'curation/chosen.jsonl'}"
    again, second = run_it(path, "sft.data.validation_path=bodinho")
    assert not (again / "curation").exists()
    same = ("rows", "tokens", "supervised")
    ledger = second["data"]["stages"]["sft"]["train"]
    assert [ledger[k] for k in same] == [data["train"][k] for k in same]
    assert second["stages"]["sft"]["validation_loss"] == record["stages"]["sft"]["validation_loss"]


def test_a_run_says_that_fewer_rows_are_left_than_asked_for(
    run_it: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sft.data.path=rows.jsonl", "sft.data.validation_share=0"]
    _, record = run_it("sft.curation=diverse", *words)
    said = " ".join(capsys.readouterr().out.split())
    assert "WARNING: fewer than the 100 asked for (sft.curation_n)" in said
    counts = record["data"]["curation"]
    assert counts["asked"] == 100
    assert counts["chosen"] == record["data"]["stages"]["sft"]["train"]["rows"] == 25
