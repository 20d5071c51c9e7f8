"""Ten steps of DPO and of a reward model equal those of trl's trainers, a second implementation.

Same token ids, same network, same start off zero, same order of pairs. trl pads each step's pairs
into one batch, the prompt once for each completion; drbode packs trees into micro-batches of
different sizes, where both completions share their prompt.
"""

import copy
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from lightning.pytorch.loggers.logger import Logger
from peft import LoraConfig as PeftLora
from peft import get_peft_model
from torch import Tensor, nn
from transformers import Qwen3ForSequenceClassification
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from drbode.config import Stage, StageConfig
from drbode.data.splits import Ledger, Split
from drbode.data.steps import StepLoader
from drbode.models.base import Policy
from drbode.models.methods import wrap
from drbode.training import module as training
from drbode.training.context import StageContext
from drbode.training.stages import run_stage
from drbode.trees import Completion, Tree
from tests.conftest import run_context, settings, tiny, words

STEPS, PAIRS_A_STEP, SEED, BETA = 10, 4, 3, 0.3

COMMON: dict[str, Any] = {
    "optimizer": "adamw",
    "learning_rate": 0.01,  # large, so that the losses move far within the ten steps
    "schedule": "linear",
    "warmup_ratio": 0.0,
    "epochs": 2.0,
    "global_batch_size": PAIRS_A_STEP,
    "max_tokens": 80,
    "validate_every": None,
    "checkpoints": 0,
}
THEIRS: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "max_length": None,
    "per_device_train_batch_size": PAIRS_A_STEP,
    "num_train_epochs": 1,
    "learning_rate": 0.01,
    "lr_scheduler_type": "linear",
    "optim": "adamw_torch",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}
LORA: dict[str, Any] = {
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "target_modules": "all-linear",
}

Series = dict[str, list[float]]


class Kept(Logger):
    """Keeps the training metrics of every step as they were logged."""

    name = "kept"
    version = ""

    def __init__(self) -> None:
        super().__init__()
        self.series: Series = {}

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """There are none."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            self.series.setdefault(name.split("/")[-1], []).append(value)


def pairs() -> list[Tree]:
    """Prompts and completions of very different lengths; most ids stand on one side alone."""
    draw = random.Random(0)

    def ids(low: int, high: int, least: int, most: int) -> list[int]:
        return [draw.randint(least, most) for _ in range(draw.randint(low, high))]

    def side(least: int, most: int) -> Completion:
        side = ids(2, 25, least, most)
        return Completion(side, [True] * len(side))

    return [
        Tree(ids(1, 15, 2, 9), [side(2, 6), side(5, 9)]) for _ in range(STEPS * PAIRS_A_STEP // 2)
    ]


def start(network: nn.Module) -> Policy:
    """The policy that a stage finds: an adapter that was trained before, so no tensor is zero."""
    policy = Policy(network, tokenizer=None)
    wrap(policy, settings("lora.r=4", f"seed={SEED}").tuning())
    torch.manual_seed(SEED)
    for parameter in policy.trainable().values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return policy


def in_drbode(
    policy: Policy, stage: Stage, config: StageConfig, trees: list[Tree], folder: Path
) -> tuple[Series, dict[str, Tensor]]:
    kept = Kept()
    _, reward = run_stage(
        StageContext(
            policy,
            stage,
            config,
            Split(trees, Ledger()),
            None,
            run_context(folder, seed=SEED, loggers=[kept]),
            folder=folder / "checkpoints",
            step_offset=0,
        )
    )
    end = policy.state() if reward is None else {**reward.state, "score": reward.head}
    return kept.series, end


def in_trl(trainer: Any) -> Series:
    """trl's own logged metrics, and its losses, which it rounds in its log."""
    losses: list[float] = []
    compute = trainer.compute_loss

    def watched(*args: Any, **named: Any) -> Tensor:
        loss: Tensor = compute(*args, **named)
        losses.append(float(loss.detach()))
        return loss

    trainer.compute_loss = watched
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return {name: [entry[name] for entry in history] for name in history[0]} | {"loss": losses}


class TokenisedDPO(DPOTrainer):
    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


def adapted(network: nn.Module, config: PeftLora, tensors: dict[str, Tensor]) -> Any:
    """trl's network, with the tensors that drbode begins with."""
    wrapped = get_peft_model(network, config)
    trained = {n: p for n, p in wrapped.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, tensor in tensors.items():
            trained.pop(name).copy_(tensor)
        for rest in trained.values():  # a head, which begins at zero
            rest.zero_()
    return wrapped


def assert_series(ours: Series, theirs: Series, names: dict[str, str], tolerance: float) -> None:
    for name, their in names.items():
        assert len(ours[name]) == len(theirs[their]) == STEPS
        torch.testing.assert_close(
            torch.tensor(ours[name], dtype=torch.float64),
            torch.tensor(theirs[their], dtype=torch.float64),
            atol=tolerance,
            rtol=0,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize(
    ("changes", "theirs"),
    [
        ({"loss": "sigmoid"}, {"loss_type": ["sigmoid"]}),
        ({"loss": "ipo"}, {"loss_type": ["ipo"]}),
        ({"loss": "hinge"}, {"loss_type": ["hinge"]}),
        # trl's `robust` with -e / (1 - 2 e) is the conservative loss with e.
        (
            {"loss": "sigmoid", "label_smoothing": 0.1},
            {"loss_type": ["robust"], "label_smoothing": -0.125},
        ),
    ],
    ids=["sigmoid", "ipo", "hinge", "label smoothing"],
)
def test_ten_steps_of_dpo_equal_trl(
    changes: dict[str, Any],
    theirs: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    network = tiny("qwen3")
    their_network = copy.deepcopy(network)
    policy, trees = start(network), pairs()
    begun = policy.state()
    config = replace(settings().dpo, **COMMON, beta=BETA, nll_weight=0.0, **changes)
    loader = StepLoader(trees, config, SEED)
    assert len(loader) == STEPS
    assert any(len({len(b.targets) for b in step.batches}) > 1 for step in loader)
    ours, our_end = in_drbode(policy, "dpo", config, trees, tmp_path / "drbode")

    trainer = TokenisedDPO(
        adapted(their_network, PeftLora(task_type="CAUSAL_LM", **LORA), begun),
        args=DPOConfig(
            output_dir=str(tmp_path / "trl"),
            beta=BETA,
            train_sampling_strategy="sequential",
            adam_beta1=config.betas[0],
            adam_beta2=config.betas[1],
            **THEIRS,
            **theirs,
        ),
        train_dataset=Dataset.from_list(
            [
                {"prompt_ids": t.prompt, "chosen_ids": c.ids, "rejected_ids": r.ids}
                for t in (trees[i] for step in loader.plan for i in step)
                for c, r in [t.completions]
            ]
        ),
        processing_class=words(),
    )
    theirs = in_trl(trainer)
    rewards = {
        "reward_chosen": "rewards/chosen",
        "reward_rejected": "rewards/rejected",
        "reward_margin": "rewards/margins",
    }
    for name in ("loss", *rewards):  # of the first step, where the weights are the same
        their = {"loss": "loss", **rewards}[name]
        assert ours[name][0] == pytest.approx(theirs[their][0], abs=1e-5)
    assert_series(ours, theirs, {"loss": "loss", **rewards, "grad_norm": "grad_norm"}, 1e-4)
    assert_series(ours, theirs, {"reward_accuracy": "rewards/accuracies"}, 1e-6)
    # Were nothing learnt, agreement would say little.
    assert ours["reward_margin"][0] == pytest.approx(0, abs=1e-5)
    assert ours["reward_margin"][-1] > 0.5
    their_end = {n: p for n, p in trainer.model.named_parameters() if n in begun}
    for name, tensor in our_end.items():
        torch.testing.assert_close(tensor, their_end[name].detach(), atol=1e-4, rtol=0)
    assert any(not torch.allclose(our_end[n], begun[n], atol=1e-2) for n in begun)


class TokenisedReward(RewardTrainer):
    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


def test_ten_steps_of_a_reward_model_equal_trl(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    network = tiny("qwen3")
    network_config = copy.deepcopy(network.config)
    network_config.num_labels, network_config.pad_token_id = 1, 0
    classifier = Qwen3ForSequenceClassification(network_config)
    classifier.model.load_state_dict(network.base_model.state_dict())
    policy, trees = start(network), pairs()
    begun = policy.state()
    config = replace(settings().reward, **COMMON, centering=0.0)
    loader = StepLoader(trees, config, SEED)
    ours, our_end = in_drbode(policy, "reward", config, trees, tmp_path / "drbode")

    trainer = TokenisedReward(
        adapted(
            classifier, PeftLora(task_type="SEQ_CLS", modules_to_save=["score"], **LORA), begun
        ),
        args=RewardConfig(
            output_dir=str(tmp_path / "trl"),
            adam_beta1=config.betas[0],
            adam_beta2=config.betas[1],
            train_sampling_strategy="sequential",
            **THEIRS,
        ),
        train_dataset=Dataset.from_list(
            [
                {"chosen_ids": t.prompt + c.ids, "rejected_ids": t.prompt + r.ids}
                for t in (trees[i] for step in loader.plan for i in step)
                for c, r in [t.completions]
            ]
        ),
        processing_class=words(),
    )
    theirs = in_trl(trainer)
    ours["mean"] = [
        (c + r) / 2 for c, r in zip(ours["score_chosen"], ours["score_rejected"], strict=True)
    ]
    ours["margin"] = [
        c - r for c, r in zip(ours["score_chosen"], ours["score_rejected"], strict=True)
    ]
    assert_series(ours, theirs, {"loss": "loss", "mean": "mean_reward", "margin": "margin"}, 1e-5)
    assert_series(ours, theirs, {"grad_norm": "grad_norm"}, 1e-4)
    assert ours["loss"][0] == pytest.approx(0.693147, abs=1e-6)
    assert ours["loss"][-1] < 0.6
    their_end = {
        "score" if ".score." in n else n: p
        for n, p in trainer.model.named_parameters()
        if p.requires_grad
    }
    assert their_end.keys() == our_end.keys()
    for name, tensor in our_end.items():
        their = their_end[name].detach().view(tensor.shape)
        torch.testing.assert_close(tensor, their, atol=1e-4, rtol=0)
