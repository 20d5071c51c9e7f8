"""The arithmetic of the benchmarks: ratios, the floor, and what stops a comparison."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from drbode.trees import Completion, Tree

FOLDER = Path(__file__).parents[1] / "experiments" / "benchmarks"
sys.path.insert(0, str(FOLDER))

import costs  # noqa: E402
import harness  # noqa: E402
import workload  # noqa: E402

SETTING = workload.Setting("small", "cpu", "lora", 16, 4, 2, None, None)
RUN = workload.Run(
    arm="drbode",
    rows=4,
    tokens=40,
    seconds=2.0,
    first_step=5.0,
    loaded_gib=0.5,
    peak_gib=1.0,
    losses=[2.0, 1.0],
    threads=1,
    matrix_gflops=100.0,
    operations=5e10,
    floor=0.5,
)
WORK = workload.Work(
    stage="sft",
    unit="rows",
    peers={
        "trl": {"batch": "whole"},
        "trl packed": {"batch": "whole", "padding_free": True},
        "trl single": {"batch": "single"},
    },
    targets=(workload.Target("trl", 3, 2),),
    trees=lambda _: [],
    peer=lambda *_: [],
    head=True,
)


def peer(**changes: object) -> workload.Run:
    return replace(
        RUN, **{"arm": "trl", "seconds": 6.0, "peak_gib": 2.5, "operations": 1e11, **changes}
    )


def result(*peers: workload.Run) -> harness.Result:
    rounds = [{"drbode": RUN, "trl": own} for own in peers]
    return harness.Result(WORK, SETTING, ("drbode", "trl"), rounds)


def test_ratios_are_those_within_a_round() -> None:
    found = result(peer(), peer(seconds=8.0), peer(seconds=10.0))
    assert found.ratios("trl", lambda run: run.rows_per_second) == [3.0, 4.0, 5.0]
    row = found.table().splitlines()[-1]
    assert row.startswith("| trl | 0.50 | 5 | 6 | 5.0 | 2.50 | 2.00 | 2.00 |")
    assert "| 4.00 (3.00-5.00) | 2.50 (2.50-2.50) | 4.00 (4.00-4.00) | 0.0e+00 |" in row
    assert found.verdicts() == [
        "trl: 4.00 times as fast (target 3), 1/4.00 of the memory (target 1/2)"
    ]


def test_the_largest_difference_of_a_loss_is_over_all_steps_and_rounds() -> None:
    assert result(peer(), peer(losses=[2.0, 1.25])).loss_difference("trl") == 0.25
    with pytest.raises(ValueError, match="shorter"):
        result(peer(losses=[2.0])).loss_difference("trl")


def test_the_floor_counts_every_token_that_a_token_sees() -> None:
    # Prompt of 3, completions of 2 and 1: 3 + 2 + 1 pairs in the prompt, 4 + 5 and 4 after it.
    tree = Tree([5, 6, 7], [Completion([8, 9], [True, True]), Completion([8], [True])])
    matrices = 2 * (6 * (384 * 64 * 16 + 3 * 384 * 1024) * 6 + 384 * 32_768 * 3)
    attention = 4 * 6 * 6 * 64 * (6 + 9 + 4)
    assert costs.operations(WORK, "drbode", SETTING, [tree]) == 2 * matrices + 3 * attention
    twice = replace(WORK, forward=1)
    assert costs.operations(twice, "drbode", SETTING, [tree]) == 3 * matrices + 4 * attention


@pytest.mark.parametrize(
    ("arm", "lengths"),
    [
        ("trl", [5, 5, 5, 5, 2, 2]),  # steps of two rows, each padded to its longest side
        ("trl packed", [5, 4, 2, 2, 2, 1]),
        ("trl single", [5, 5, 2, 2, 2, 2]),
    ],
)
def test_a_peer_reads_every_side_with_its_prompt_and_padding(arm: str, lengths: list[int]) -> None:
    trees = [
        Tree(list(range(prompt)), [Completion([8] * n, [True] * n) for n in (one, other)])
        for prompt, one, other in ((3, 2, 1), (0, 2, 2), (0, 2, 1))
    ]
    assert costs._peer_lengths(WORK.peers[arm], SETTING, trees) == lengths
    tokens, seen = sum(lengths), sum(n * (n + 1) // 2 for n in lengths)
    matrices = 2 * tokens * (6 * (384 * 64 * 16 + 3 * 384 * 1024) + 384 * 32_768)
    assert costs.operations(WORK, arm, SETTING, trees) == (2 * matrices + 3 * 4 * 6 * 6 * 64 * seen)


def test_who_begins_moves_on() -> None:
    assert [harness.turns("abc", number)[0] for number in range(4)] == ["a", "b", "c", "a"]
    assert harness.turns("abc", 1) == ("b", "c", "a")


@pytest.mark.parametrize(("loss", "agrees"), [(1.0005, True), (1.01, False), (float("nan"), False)])
def test_arms_that_do_not_train_alike_are_no_comparison(
    loss: float, agrees: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runs = {"drbode": RUN, "trl": peer(losses=[2.0, loss])}
    monkeypatch.setattr(harness, "measure", runs.__getitem__)
    record = tmp_path / "records" / "sft.json"
    monkeypatch.setattr(
        sys, "argv", ["sft.py", "--rounds", "1", "--peers", "trl", "--output", str(record)]
    )
    if agrees:
        harness.main(WORK, "Title.")
    else:
        with pytest.raises(SystemExit, match="not trained alike"):
            harness.main(WORK, "Title.")
    assert json.loads(record.read_text())["setting"]["shape"] == "small"
