"""Runs a stage: one objective, one data set, one optimizer, on the policy of the run."""

import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import Logger
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from drbode.config import Stage, StageConfig, TrainerConfig
from drbode.data.steps import Split, StepLoader
from drbode.data.trees import Trees, pack, within
from drbode.models.base import Policy
from drbode.models.machine import Machine
from drbode.training.callbacks import CsvLogger, PeakMemory, StageBar
from drbode.training.clm import CLMModule
from drbode.training.module import TrainingModule

LAST = "last.safetensors"  # the trainable tensors as the stage handed them on


@dataclass(frozen=True)
class StageResult:
    """What training a stage came to; `seconds` are those of its steps, validation left out."""

    steps: int
    tokens: int
    seconds: float
    tokens_per_second: float
    peak_memory_gib: float
    train_loss: float
    validation_loss: float | None
    ended_by: str
    optimizer: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_stage(
    policy: Policy,
    stage: Stage,
    config: StageConfig,
    train: Split,
    validation: Split | None,
    *,
    seed: int,
    machine: Machine,
    trainer_config: TrainerConfig,
    loggers: Sequence[Logger],
    folder: Path,
    step_offset: int,
) -> StageResult:
    """Trains the policy in place.

    Checkpoints go to `folder`, and where an interrupted run of this stage left some there, it goes
    on from the newest. `step_offset` is the number of optimizer steps of the run's earlier stages.
    """
    lightning.seed_everything(seed, verbose=False)
    loader = StepLoader(train.trees, config, seed)
    module = _module(policy, stage, config, len(loader), step_offset)
    held_out = _batches(validation, config.max_tokens)
    memory, best = PeakMemory(), _best(folder)
    callbacks: list[Callback] = [memory, *_checkpoints(config, folder)]
    if held_out:
        callbacks.append(best)
    if config.patience is not None:
        # Said outright: Lightning takes an interval of 1 step for one of 1 epoch.
        callbacks.append(
            EarlyStopping(
                "validation/loss", patience=config.patience, check_on_train_epoch_end=False
            )
        )
    if trainer_config.progress:
        callbacks.append(StageBar(stage))
    if trainer_config.gradient_checkpointing:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    checkpoint = _newest(folder)
    if checkpoint is not None:
        loader.start = int(checkpoint.stem)
        for logger in loggers:
            if isinstance(logger, CsvLogger):
                logger.forget_after(step_offset + loader.start)
    with _quiet():
        trainer = lightning.Trainer(
            accelerator="gpu" if machine.accelerator == "cuda" else "cpu",
            devices=1,
            precision=machine.precision,
            max_epochs=1,  # to Lightning a stage is one epoch of optimizer steps
            logger=list(loggers),
            callbacks=callbacks,
            enable_progress_bar=trainer_config.progress,
            enable_model_summary=False,
            enable_checkpointing=bool(config.checkpoints or held_out),
            num_sanity_val_steps=0,
            val_check_interval=min(config.validate_every or len(loader), len(loader)),
            limit_val_batches=None if held_out else 0,
            use_distributed_sampler=False,
        )
        try:
            trainer.fit(module, loader, held_out, ckpt_path=checkpoint, weights_only=True)
        except SystemExit:  # what Lightning makes of Ctrl-C, with the signal switched off
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None
        if held_out and module.validated_at != module.optimizer_steps:
            trainer.validate(module, held_out, verbose=False)
    if config.keep_best and held_out:
        _take_best(policy, best, module)
    policy.network.to(machine.accelerator)  # Lightning leaves it on the CPU
    folder.mkdir(parents=True, exist_ok=True)
    save_file(policy.state(), folder / LAST)
    return StageResult(
        steps=module.optimizer_steps,
        tokens=module.tokens_seen,
        seconds=module.seconds,
        tokens_per_second=module.tokens_seen / module.seconds,
        peak_memory_gib=memory.peak_gib,
        train_loss=module.train_loss,
        validation_loss=module.validation.get("loss"),
        ended_by=_ended_by(config, module.optimizer_steps < len(loader)),
        optimizer=config.optimizer,
    )


def restore_stage(policy: Policy, folder: Path) -> None:
    """Puts the policy where the finished stage of an interrupted run left it."""
    policy.load_state(load_file(folder / LAST))


def _module(
    policy: Policy, stage: Stage, config: StageConfig, steps: int, step_offset: int
) -> TrainingModule:
    match stage:
        case "cpt" | "sft":
            return CLMModule(policy, stage, config, steps, step_offset)


def _checkpoints(config: StageConfig, folder: Path) -> list[Callback]:
    """Keeps the newest checkpoints, named by their step."""
    if not config.checkpoints:
        return []
    return [
        ModelCheckpoint(
            folder,
            filename="{step:06d}",
            monitor="step",
            mode="max",
            save_top_k=config.checkpoints,
            every_n_train_steps=config.checkpoint_every,
            auto_insert_metric_name=False,
        )
    ]


def _best(folder: Path) -> ModelCheckpoint:
    """Keeps the trainable tensors of the lowest validation loss."""
    return ModelCheckpoint(
        folder,
        filename="best",
        monitor="validation/loss",
        save_weights_only=True,
        save_on_train_epoch_end=False,
        enable_version_counter=False,
    )


def _take_best(policy: Policy, best: ModelCheckpoint, module: TrainingModule) -> None:
    """Puts the best tensors into the policy, unless the last ones are as good."""
    score = best.best_model_score
    if score is None or module.validation["loss"] <= float(score):
        return
    state = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    policy.load_state({n.removeprefix("policy.network."): t for n, t in state.items()})
    module.validation = module.best_validation


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's hints, which are about settings that are ours."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        yield


def _batches(split: Split | None, max_tokens: int) -> DataLoader[Trees] | None:
    """The validation rows, packed once and kept."""
    if split is None:
        return None
    batches = [pack(group) for group in within(split.trees, max_tokens)]
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def _newest(folder: Path) -> Path | None:
    """The checkpoint of the most steps that an interrupted run of this stage left."""
    found = sorted(folder.glob("[0-9]*.ckpt"), key=lambda path: int(path.stem))
    return found[-1] if found else None


def _ended_by(config: StageConfig, early: bool) -> str:
    if early:
        return "early stopping"
    if config.steps is not None:
        return "steps"
    return "epochs" if config.tokens is None else "tokens"
