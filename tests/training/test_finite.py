"""What is NaN or infinite stops a stage, says where, and is neither saved nor kept for others."""

from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch

from drbode import config, record, train
from drbode.config import BadInput
from drbode.data.prompts import Renderer
from drbode.data.splits import StageRows
from drbode.models.base import Policy
from drbode.models.methods import wrap
from drbode.training import module as training
from drbode.training.context import StageContext
from drbode.training.cpt import CPTModule
from drbode.training.dpo import DPOModule
from drbode.training.finite import FiniteWatch, all_finite
from drbode.training.mlm import MLMModule
from drbode.training.module import Sums, TrainingModule
from drbode.training.ppo import PPOModule
from drbode.training.reward import RewardModule
from drbode.training.sft import CLMModule
from drbode.training.stages import run_stage
from tests.conftest import NO_GENERAL, run_context, settings, tiny
from tests.data import test_corpus as of_cpt
from tests.objectives import test_mlm as of_mlm
from tests.training import test_dpo as of_dpo
from tests.training import test_ppo as of_ppo
from tests.training import test_reward as of_reward
from tests.training import test_stages as of_sft

EVERY = {"checkpoints": 9, "checkpoint_every": 1}


def run_sft(folder: Path, **changes: Any) -> None:
    stage = of_sft.block(epochs=2.0, **EVERY | changes)
    of_sft.run(of_sft.policy(), stage, folder, of_sft.split())


def run_cpt(folder: Path) -> None:
    texts = of_cpt.write(folder / "texts.jsonl", ["".join(t) for t in permutations("abcd")])
    block = of_cpt.cpt(
        data_path=texts,
        data_validation_share=0.2,
        optimizer="adamw",
        learning_rate=1e-2,
        steps=6,
        global_batch_size=2,
        validate_every=2,
        **EVERY,
    )
    renderer = Renderer(of_cpt.letters(), 8)
    rows, held_out = StageRows("cpt", block, renderer, 0, folder).splits()
    policy = Policy(tiny("qwen3"), of_cpt.letters())
    wrap(policy, settings("lora.r=4").tuning())
    context = run_context(folder)
    checkpoints = folder / "checkpoints"
    run_stage(StageContext(policy, "cpt", block, rows, held_out, context, checkpoints, 0))


def run_mlm(folder: Path) -> None:
    of_mlm.run(of_mlm.policy(), of_mlm.block(epochs=3.0, **EVERY), folder)


def run_dpo(folder: Path) -> None:
    stage = of_dpo.dpo_stage(steps=6, kl_prompts=2, validate_every=2, **EVERY)
    of_dpo.run(of_dpo.policy(), stage, folder, of_dpo.pairs())


def run_reward(folder: Path) -> None:
    of_reward.run(of_reward.policy("lora"), folder, steps=6, **EVERY)


def run_ppo(folder: Path) -> None:
    stage = of_ppo.ppo_stage(steps=12, validate_every=4, **EVERY)
    of_ppo.run(of_ppo.policy(), stage, folder, of_ppo.prompts(3))


STAGES: dict[type[TrainingModule], Callable[[Path], None]] = {
    CLMModule: run_sft,
    CPTModule: run_cpt,
    MLMModule: run_mlm,
    DPOModule: run_dpo,
    RewardModule: run_reward,
    PPOModule: run_ppo,
}


def left(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".ckpt", ".safetensors"))


def broken_from(step: int, kind: type[TrainingModule], patch: pytest.MonkeyPatch) -> None:
    """The loss of the kind's modules is NaN from a step on."""
    sums = kind.sums

    def breaks(self: Any, batch: Any) -> Sums:
        right = sums(self, batch)
        if self.training and self.progress.steps + 1 >= step:
            return Sums(right.loss * float("nan"), right.metrics)
        return right

    patch.setattr(kind, "sums", breaks)


@pytest.mark.parametrize(
    ("kind", "run", "every"),
    [(CLMModule, run_sft, 1), *((kind, run, 100) for kind, run in STAGES.items())],
)
def test_a_loss_that_is_nan_at_a_step_stops_the_stage(
    kind: type[TrainingModule],
    run: Callable[[Path], None],
    every: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether or not metrics are read before something is saved."""
    monkeypatch.setattr(training, "LOG_EVERY", every)
    step = 3
    broken_from(step, kind, monkeypatch)
    with pytest.raises(BadInput, match=rf"^\w+: the loss at step {step} is NaN or infinite.*lower"):
        run(tmp_path)
    checkpoints = [path for path in left(tmp_path) if path.parent.name != ".cache"]
    assert not [path for path in checkpoints if path.name == "last.safetensors"]
    assert not list(tmp_path.rglob("ended.json"))
    for path in checkpoints:
        kept = torch.load(path, weights_only=True)
        assert kept["global_step"] < step
        assert all_finite(kept["state_dict"].values())


@pytest.mark.parametrize("run", STAGES.values())
def test_weights_that_are_nan_stop_a_stage_before_its_first_step(
    run: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Policy.hidden

    def breaks(self: Policy, *batch: Any, **named: Any) -> Any:
        return load(self, *batch, **named) * float("nan")

    monkeypatch.setattr(Policy, "hidden", breaks)
    with pytest.raises(BadInput, match=r"(NaN or infinite).*weights of model.path"):
        run(tmp_path)
    assert not left(tmp_path)


def test_weights_of_the_base_that_are_nan_are_seen_at_the_start(tmp_path: Path) -> None:
    made = of_sft.policy()
    next(made.network.parameters()).data.view(-1)[5] = float("nan")
    with pytest.raises(BadInput, match=r"sft: a weight before the first step is"):
        of_sft.run(made, of_sft.block(), tmp_path)


@pytest.mark.parametrize("validated", [False, True])
def test_a_weight_that_breaks_at_the_last_step_is_seen(
    validated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No loss of the training follows it."""
    step = torch.optim.AdamW.step

    def breaks(self: Any, *given: Any, **named: Any) -> Any:
        done = step(self, *given, **named)
        if self.state[self.param_groups[0]["params"][0]]["step"] == 2:
            self.param_groups[0]["params"][0].data[0] = float("nan")
        return done

    monkeypatch.setattr(torch.optim.AdamW, "step", breaks)
    held_out = of_sft.split() if validated else None
    with pytest.raises(BadInput, match=r"at step 2 is NaN or infinite.* lower sft.learning_rate"):
        of_sft.run(of_sft.policy(), of_sft.block(steps=2), tmp_path, held_out)
    assert not left(tmp_path)


def test_the_first_of_both_is_named() -> None:
    one, broken = torch.tensor(1.0), torch.tensor(float("inf"))
    watch = FiniteWatch()
    watch.refuse("sft")
    watch.add(1, one, one)
    watch.refuse("sft")
    watch.add(2, one, broken)
    watch.add(3, broken, broken)
    watch.add(4, one, one)
    with pytest.raises(BadInput, match="sft: the gradient norm at step 2 "):
        watch.refuse("sft")


def train_in(folder: Path, patch: pytest.MonkeyPatch, *more: str) -> None:
    patch.chdir(folder)
    words = ["sft.steps=3", "benchmark=generate", "benchmark.questions=1", *NO_GENERAL, *more]
    words += ["benchmark.max_new_tokens=2", "sft.data.validation_rows=2", "sft.data.rows=20"]
    words += ["trainer.progress=false", "trainer.threads=1", "logger=csv"]
    train.job(config.compose("train", words), words, False)


def test_a_run_that_is_stopped_is_not_finished_and_nothing_of_it_is_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_from(2, CLMModule, monkeypatch)
    with pytest.raises(BadInput, match=r"^sft: the loss at step 2 is NaN or infinite"):
        train_in(tmp_path, monkeypatch)
    assert not list(tmp_path.rglob("last.safetensors"))
    assert not list(tmp_path.glob("outputs/.cache/stages/*/result.json"))
    (path,) = tmp_path.glob("outputs/*/record.json")
    left = record.read_record(path.parent)
    assert left is not None
    assert left.status == "failed"
    assert not left.stages


def test_a_model_that_computes_nan_is_refused_before_it_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match=r"^model.path: .* NaN or infinite.*lora.alpha"):
        train_in(tmp_path, monkeypatch, "lora.alpha=1e300")
    assert not list(tmp_path.glob("outputs/*/record.json"))
