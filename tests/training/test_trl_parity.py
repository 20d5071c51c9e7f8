"""Twenty steps of supervised fine-tuning equal those of trl's SFTTrainer, a second implementation.

Same token ids, same network, same LoRA start, same order of rows. trl pads each step's rows into
one batch and divides by its supervised tokens; drbode packs them into micro-batches of different
sizes. Anything that depended on how a step is split would part the two.
"""

import copy
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from lightning.pytorch.loggers.logger import Logger
from peft import LoraConfig as PeftLora
from peft import get_peft_model
from torch import Tensor
from trl import SFTConfig, SFTTrainer

from drbode.config import DataConfig, StageConfig
from drbode.data.splits import Ledger, Split
from drbode.data.steps import StepLoader
from drbode.models.base import Policy
from drbode.models.methods import wrap
from drbode.training import module as training
from drbode.training.context import StageContext
from drbode.training.stages import LAST, run_stage
from drbode.trees import Completion, Tree
from tests.conftest import run_context, settings, tiny, words

STEPS, ROWS_A_STEP, SEED = 20, 4, 3
WARMUP_STEPS = 2

STAGE = StageConfig(
    optimizer="adamw",
    learning_rate=0.01,  # large, so that the losses move far within the twenty steps
    schedule="linear",
    warmup_ratio=WARMUP_STEPS / STEPS,
    weight_decay=0.0,
    betas=[0.9, 0.98],
    max_grad_norm=1.0,
    epochs=2.0,
    steps=None,
    tokens=None,
    global_batch_size=ROWS_A_STEP,
    max_tokens=48,
    max_length="auto",
    validate_every=None,
    patience=None,
    keep_best=False,
    checkpoint_every=1000,
    checkpoints=0,
    data=DataConfig(
        path="none",
        revision=None,
        split="train",
        rows=None,
        validation_path=None,
        validation_share=0.0,
        validation_rows=None,
        column="data",
    ),
)


class Kept(Logger):
    """Keeps the training metrics of every step as they were logged."""

    name = "kept"
    version = ""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[str, float]] = []

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """There are none."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {n.removeprefix("sft/train/"): v for n, v in metrics.items() if "/train/" in n}
        if values:
            self.steps.append(values)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small gain nothing from threads, and wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows() -> list[Tree]:
    """Prompts and completions of very different lengths, so that means of means would differ.

    Of a few ids only, so that there is something to learn.
    """
    draw = random.Random(0)

    def ids(low: int, high: int) -> list[int]:
        return [draw.randrange(8) for _ in range(draw.randint(low, high))]

    completions = [ids(2, 30) for _ in range(STEPS * ROWS_A_STEP // 2)]
    return [Tree(ids(1, 15), [Completion(c, [True] * len(c))]) for c in completions]


def in_drbode(
    policy: Policy, trees: list[Tree], folder: Path
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    kept = Kept()
    run_stage(
        StageContext(
            policy,
            "sft",
            STAGE,
            Split(trees, Ledger()),
            None,
            run_context(folder, seed=SEED, loggers=[kept]),
            folder=folder,
            step_offset=0,
        )
    )
    assert (folder / LAST).is_file()
    return kept.steps, policy.state()


def in_trl(
    network: Any, start: dict[str, Tensor], trees: list[Tree], folder: Path
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """trl on the trees in the order they are given in."""
    network = get_peft_model(
        network,
        PeftLora(
            task_type="CAUSAL_LM",
            r=4,
            lora_alpha=8,
            lora_dropout=0.0,
            target_modules="all-linear",
        ),
    )
    trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
    assert trained.keys() == start.keys()
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(start[name])

    data = [
        {
            "input_ids": prompt + completion.ids,
            "completion_mask": [0] * len(prompt) + [1] * len(completion.ids),
        }
        for prompt, (completion,), _ in trees
    ]
    beta1, beta2 = STAGE.betas
    trainer = SFTTrainer(
        network,
        SFTConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            max_length=None,
            completion_only_loss=True,
            train_sampling_strategy="sequential",
            per_device_train_batch_size=ROWS_A_STEP,
            num_train_epochs=1,
            learning_rate=STAGE.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=WARMUP_STEPS,
            optim="adamw_torch",
            adam_beta1=beta1,
            adam_beta2=beta2,
            weight_decay=0.0,
            max_grad_norm=STAGE.max_grad_norm,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_list(data),
        processing_class=words(),
    )
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return history, {n: p.detach().clone() for n, p in trained.items()}


def test_twenty_steps_equal_trl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    network = tiny("qwen3")
    theirs_network = copy.deepcopy(network)
    policy = Policy(network, tokenizer=None)
    wrap(policy, settings("lora.r=4", f"seed={SEED}").tuning())
    # peft starts B at zero, where A has no gradient; off it, every tensor matters from step one.
    torch.manual_seed(SEED)
    for parameter in policy.trainable().values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    start = policy.state()
    trees = rows()
    loader = StepLoader(trees, STAGE, SEED)
    assert {len(step) for step in loader.plan} == {ROWS_A_STEP}
    splits = [[len(batch.targets) for batch in step.batches] for step in loader]
    assert len(splits) == STEPS
    assert all(len(set(split)) > 1 for split in splits), "steps of unequal micro-batches"

    (tmp_path / "drbode").mkdir()
    ours, our_end = in_drbode(policy, trees, tmp_path / "drbode")
    in_order = [trees[i] for step in loader.plan for i in step]
    theirs, their_end = in_trl(theirs_network, start, in_order, tmp_path / "trl")

    def series(steps: list[dict[str, float]], name: str) -> Tensor:
        return torch.tensor([step[name] for step in steps], dtype=torch.float64)

    assert len(ours) == len(theirs) == STEPS
    for name in ("loss", "grad_norm", "learning_rate"):
        torch.testing.assert_close(
            series(ours, name),
            series(theirs, name),
            atol=1e-4,
            rtol=0,
            msg=lambda m, n=name: f"{n}: {m}",
        )
    # Were nothing learnt, or nothing clipped, agreement would say little.
    losses, norms = series(ours, "loss"), series(ours, "grad_norm")
    assert losses[:3].mean() - losses[-3:].mean() > 0.2
    assert norms.min() < 1.0 < norms.max()

    assert any(not torch.allclose(our_end[n], start[n], atol=1e-2) for n in start)
    for name, tensor in our_end.items():
        torch.testing.assert_close(tensor, their_end[name], atol=1e-4, rtol=0)
