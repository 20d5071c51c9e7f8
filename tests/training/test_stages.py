"""The optimizer step, resuming, early stopping: on a tiny network, no network needed."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from drbode.config import StageConfig
from drbode.data.splits import Ledger, Split
from drbode.data.steps import StepLoader
from drbode.models.base import Policy
from drbode.models.machine import Machine
from drbode.models.methods import wrap
from drbode.training import stages
from drbode.training.context import StageContext
from drbode.training.stages import restore_stage, run_stage
from drbode.trees import Completion, Tree
from tests.conftest import VOCABULARY, run_context, settings, tiny

CPU = Machine("cpu", "32-true", "fp32", "sdpa", 1)


def block(**changes: Any) -> StageConfig:
    plain = settings().sft
    small = {
        "learning_rate": 1e-2,
        "optimizer": "adamw",
        "global_batch_size": 8,
        "epochs": 2.0,
        "validate_every": None,
        "checkpoints": 0,
        "warmup_ratio": 0.0,
    }
    return dataclasses.replace(plain, **small | changes)


def split(count: int = 20) -> Split:
    drawn = torch.Generator().manual_seed(0)

    def ids(low: int, high: int) -> list[int]:
        n = int(torch.randint(low, high, (1,), generator=drawn))
        return torch.randint(VOCABULARY, (n,), generator=drawn).tolist()

    completions = [ids(1, 9) for _ in range(count)]
    trees = [Tree(ids(2, 12), [Completion(c, [True] * len(c))]) for c in completions]
    return Split(trees, Ledger())


def policy(method: Any = "lora", dropout: float = 0.0) -> Policy:
    made = Policy(tiny("qwen3"), None)
    lora = ("lora.r=4", f"lora.dropout={dropout}") if method == "lora" else ()
    wrap(made, settings(f"method={method}", *lora).tuning())
    return made


def run(
    made: Policy, stage: StageConfig, folder: Path, validation: Split | None = None
) -> stages.StageResult:
    return run_stage(
        StageContext(
            made,
            "sft",
            stage,
            split(),
            validation,
            run_context(folder),
            folder=folder / "checkpoints",
            step_offset=0,
        )
    )[0]


def assert_same(one: Policy, two: Policy, tolerance: float) -> None:
    for name, tensor in one.state().items():
        torch.testing.assert_close(
            two.state()[name], tensor, atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("method", ["lora", "full"])
def test_one_micro_batch_of_8_equals_8_of_1(method: str, tmp_path: Path) -> None:
    """Also in each epoch's last step, which has 4 rows: 20 rows in steps of 8."""
    whole, single = policy(method), policy(method)
    # SGD-like closeness: the first steps of Adam divide by tiny second moments.
    results = [
        run(made, block(max_tokens=budget, learning_rate=1e-3), tmp_path / str(budget))
        for made, budget in ((whole, 10_000), (single, 1))
    ]
    assert results[0].steps == results[1].steps == 6
    assert results[0].train_loss == pytest.approx(results[1].train_loss, abs=1e-6)
    assert_same(whole, single, 1e-5)


def test_gradients_of_a_step_do_not_depend_on_its_micro_batches() -> None:
    from drbode.training.clm import CLMModule

    gradients = []
    for budget in (10_000, 1):
        made = policy("full")
        stage = block(max_tokens=budget)
        step = next(iter(StepLoader(split().trees, stage, 0)))
        module = CLMModule(made, "sft", stage, steps=1, step_offset=0, machine=CPU, end=1)
        for batch in step.batches:
            (module.sums(batch).loss / step.supervised).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in made.trainable().values()]))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=0)


def test_training_lowers_the_loss_and_is_the_same_every_time(tmp_path: Path) -> None:
    made, again = policy(dropout=0.1), policy(dropout=0.1)
    result = run(made, block(epochs=15), tmp_path / "a", split())
    repeated = run(again, block(epochs=15), tmp_path / "b", split())
    assert result.validation_loss is not None
    assert result.validation_loss < 4 < 4.57  # ln 97 is a uniform guess
    assert repeated.validation_loss == result.validation_loss
    assert_same(made, again, 0)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_resumed_equals_uninterrupted(
    dropout: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = block(epochs=6, checkpoints=2, checkpoint_every=3)
    straight, resumed = policy(dropout=dropout), policy(dropout=dropout)
    expected = run(straight, stage, tmp_path / "straight", split())

    from drbode.training import clm

    calls = {"left": 12}
    sums = clm.CLMModule.sums

    def stops(self: Any, batch: Any) -> Any:
        calls["left"] -= 1
        if calls["left"] == 0:
            raise RuntimeError("the power goes out")
        return sums(self, batch)

    monkeypatch.setattr(clm.CLMModule, "sums", stops)
    with pytest.raises(RuntimeError, match="power"):
        run(resumed, stage, tmp_path / "resumed", split())
    monkeypatch.setattr(clm.CLMModule, "sums", sums)
    left = sorted(path.name for path in (tmp_path / "resumed" / "checkpoints").glob("0*.ckpt"))
    assert left == ["000006.ckpt", "000009.ckpt"]
    again = policy(dropout=dropout)
    result = run(again, stage, tmp_path / "resumed", split())
    assert (result.steps, result.tokens) == (expected.steps, expected.tokens)
    assert result.validation_loss == expected.validation_loss
    assert_same(straight, again, 0)


def test_early_stopping_and_the_best_weights(tmp_path: Path) -> None:
    """Random rows cannot be learned for others: the validation loss turns up."""
    drawn = torch.Generator().manual_seed(9)
    ids = torch.randint(VOCABULARY, (6, 8), generator=drawn).tolist()
    other = Split([Tree(i[:3], [Completion(i[3:], [True] * 5)]) for i in ids], Ledger())
    stage = block(epochs=60, validate_every=1, patience=1, learning_rate=0.1)
    stopped = run(policy(), stage, tmp_path / "stopped", other)
    assert stopped.ended_by == "early stopping"
    assert stopped.steps < 180
    assert stopped.seconds > 0  # also where it stops before the first metrics are due
    assert stopped.train_loss > 0
    made = policy()
    stage = block(epochs=60, validate_every=3, patience=2, keep_best=True)
    run(made, stage, tmp_path / "best", other)
    best = torch.load(tmp_path / "best" / "checkpoints" / "best.ckpt", weights_only=True)
    for name, tensor in made.state().items():
        assert torch.equal(tensor, best["state_dict"][f"policy.network.{name}"])


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    """With plain Adam the size of a gradient cancels out; its direction over steps does not."""
    free, bound = policy(), policy()
    run(free, block(max_grad_norm=None), tmp_path / "free")
    run(bound, block(max_grad_norm=1e-3), tmp_path / "bound")
    moved = [
        sum(float((p.state()[n] - t).abs().sum()) for n, t in policy().state().items())
        for p in (free, bound)
    ]
    assert moved[0] != moved[1]


def test_a_finished_stage_is_taken_up_from_its_folder(tmp_path: Path) -> None:
    made, other = policy(), policy()
    run(made, block(), tmp_path)
    restore_stage(other, tmp_path / "checkpoints")
    assert_same(made, other, 0)


def test_metrics_stand_under_stage_split_and_name(tmp_path: Path) -> None:
    run(policy(), block(validate_every=2), tmp_path, split())
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "step,stage,split,name,value"
    kinds = {tuple(line.split(",")[1:4]) for line in lines[1:]}
    assert {("sft", "train", "loss"), ("sft", "validation", "loss")} <= kinds
    assert [line.split(",")[0] for line in lines if "validation" in line] == ["2", "4", "6"]
