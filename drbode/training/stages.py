"""Runs a stage: one objective, one data set, one optimizer, on the policy of the run."""

import logging
import math
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import accumulate
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
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from drbode.config import (
    BadInput,
    CptConfig,
    DpoConfig,
    MlmConfig,
    PpoConfig,
    RewardConfig,
    Stage,
    StageConfig,
    TrainerConfig,
    loss_traits,
)
from drbode.data.masking import MaskedSteps, held_out_batches, masker, plain
from drbode.data.prompts import Renderer
from drbode.data.replay import TextSteps
from drbode.data.steps import Split, StepLoader
from drbode.data.trees import Tree, Trees, pack, within
from drbode.models.base import Policy, read_tensors
from drbode.models.heads import RewardModel, load_reward_model
from drbode.models.machine import Machine
from drbode.record import whole
from drbode.training import checkpoints
from drbode.training.callbacks import CsvLogger, PeakMemory, StageBar, StageCheckpoint
from drbode.training.checkpoints import Checkpoints
from drbode.training.clm import CLMModule, TextModule
from drbode.training.dpo import DPOModule
from drbode.training.mlm import MLMModule
from drbode.training.module import TrainingModule
from drbode.training.ppo import PPOModule, Prompts, Score, score_function, updates
from drbode.training.reference import with_reference
from drbode.training.reward import RewardModule

LAST = "last.safetensors"  # the trainable tensors as the stage handed them on
HEAD = "head"  # beside them, of a reward model
PREFERENCES: tuple[Stage, ...] = ("dpo", "reward", "ppo")  # in which dropout is off


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
    measures: dict[str, float]
    ended_by: str
    optimizer: str
    dropout: str
    warnings: list[str]  # what a person should know of it, a sentence each

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Surroundings:
    """What a stage knows of the run that it is part of."""

    seed: int
    machine: Machine
    trainer: TrainerConfig
    loggers: Sequence[Logger]
    end: int  # id of the token that ends an answer
    folder: Path  # of the run
    cache: Path  # folder of what other runs may use again
    base: Mapping[str, Tensor]  # the trainable tensors as the run began, where a stage asks
    probe: Callable[[], float]  # the policy's accuracy on the benchmark, now
    reward: RewardModel | None  # of the run's stage `reward`, once it is done


def run_stage(
    policy: Policy,
    stage: Stage,
    config: StageConfig,
    train: Split,
    validation: Split | None,
    run: Surroundings,
    *,
    folder: Path,
    step_offset: int,
) -> tuple[StageResult, RewardModel | None]:
    """Trains the policy in place; stage `reward` leaves it as it was and returns its model.

    Checkpoints go to `folder`, and where an interrupted run of this stage left some there, it goes
    on from the newest. `step_offset` is the number of optimizer steps of the run's earlier stages.
    """
    lightning.seed_everything(run.seed, verbose=False)
    before = policy.state() if stage == "reward" else {}
    still = policy.without_dropout() if stage in PREFERENCES else nullcontext()
    with still:
        result, module = _train(
            policy, stage, config, train, validation, run, folder=folder, step_offset=step_offset
        )
    tensors = policy.state()
    reward = None
    if isinstance(module, RewardModule):
        reward = module.reward_model()
        tensors[HEAD] = reward.head.cpu()
        policy.load_state(before)
    with whole(folder / LAST) as draft:
        save_file(tensors, draft)
    return result, reward


def _train(
    policy: Policy,
    stage: Stage,
    config: StageConfig,
    train: Split,
    validation: Split | None,
    run: Surroundings,
    *,
    folder: Path,
    step_offset: int,
) -> tuple[StageResult, TrainingModule]:
    machine = run.machine
    loader, module, held_out = _module(
        policy, stage, config, train, validation, run, folder, step_offset
    )
    a_batch = module.steps // len(loader)  # optimizer steps that one batch of the loader makes
    every = min(math.ceil((config.validate_every or module.steps) / a_batch), len(loader))
    memory, best = PeakMemory(), _best(folder)
    callbacks: list[Callback] = [memory]
    if held_out:
        callbacks.append(best)
    if config.checkpoints:  # after what it holds the state of
        callbacks.append(
            _checkpoints(config, folder, a_batch, every * a_batch if held_out else None)
        )
    if config.patience is not None:
        # Said outright: Lightning takes an interval of 1 step for one of 1 epoch.
        callbacks.append(
            EarlyStopping(
                "validation/loss", patience=config.patience, check_on_train_epoch_end=False
            )
        )
    if run.trainer.progress:
        callbacks.append(StageBar(stage))
    if run.trainer.gradient_checkpointing:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    checkpoint = _newest(folder)
    done = 0 if checkpoint is None else int(checkpoint.stem)
    loader.start = done // a_batch
    for logger in run.loggers:
        if isinstance(logger, CsvLogger):
            logger.forget_after(step_offset + done)
    with _quiet():
        trainer = lightning.Trainer(
            accelerator="gpu" if machine.accelerator == "cuda" else "cpu",
            devices=1,
            precision=machine.precision,
            max_epochs=1,  # to Lightning a stage is one epoch of optimizer steps
            logger=list(run.loggers),
            callbacks=callbacks,
            enable_progress_bar=run.trainer.progress,
            enable_model_summary=False,
            enable_checkpointing=bool(config.checkpoints or held_out),
            num_sanity_val_steps=0,
            val_check_interval=every,
            limit_val_batches=None if held_out else 0,
            use_distributed_sampler=False,
            plugins=[Checkpoints(module.state_dict)],
        )
        try:
            if held_out and checkpoint is None and isinstance(module, TextModule):
                trainer.validate(module, held_out, verbose=False)
            trainer.fit(module, loader, held_out, ckpt_path=checkpoint, weights_only=True)
        except SystemExit:  # what Lightning makes of Ctrl-C, with the signal switched off
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None
        if held_out and module.validated_at != module.optimizer_steps:
            trainer.validate(module, held_out, verbose=False)
    if config.keep_best and held_out:
        _take_best(best, module)
    module.to(machine.accelerator)  # Lightning leaves it on the CPU
    return StageResult(
        steps=module.optimizer_steps,
        tokens=module.tokens_seen,
        seconds=module.seconds,
        tokens_per_second=module.tokens_seen / module.seconds,
        peak_memory_gib=memory.peak_gib,
        train_loss=module.train_metrics["loss"],
        validation_loss=module.validation.get("loss"),
        measures={n: v for n, v in module.validation.items() if n != "loss"}
        | {f"{n}_before": v for n, v in module.before.items() if n != "loss"},
        ended_by=_ended_by(config, module.optimizer_steps < module.steps),
        optimizer=config.optimizer,
        dropout="off" if stage in PREFERENCES else "as configured",
        warnings=module.warnings(),
    ), module


def restore_stage(policy: Policy, folder: Path) -> RewardModel | None:
    """Puts the policy where the finished stage of an interrupted run left it.

    Of stage `reward`, which leaves the policy alone, it returns the model.
    """
    path = folder / LAST
    tensors = read_tensors(path, "use force=true to start over")
    head = tensors.pop(HEAD, None)
    if head is None:
        try:
            policy.load_state(tensors)
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from None
        return None
    return RewardModel(tensors, head).to(policy.device)


def _module(
    policy: Policy,
    stage: Stage,
    config: StageConfig,
    train: Split,
    validation: Split | None,
    run: Surroundings,
    folder: Path,
    step_offset: int,
) -> tuple[StepLoader, TrainingModule, DataLoader[Any] | None]:
    """The stage's steps, its objective, and what it is validated on."""
    loader: StepLoader
    if isinstance(config, CptConfig):
        loader = TextSteps(train, config, run.seed)
    else:
        loader = StepLoader(train.trees, config, run.seed)
    common: dict[str, Any] = {
        "policy": policy,
        "stage": stage,
        "config": config,
        "steps": len(loader),
        "step_offset": step_offset,
        "machine": run.machine,
        "end": run.end,
    }
    match config:
        case DpoConfig():
            base = run.base if config.reference == "base" else None

            def referred(split: Split) -> Split:
                if not loss_traits(config.loss).needs_reference:
                    return split
                return with_reference(
                    policy, split, config.max_tokens, run.machine, run.cache, base
                )

            loader.trees = referred(train).trees
            validation = None if validation is None else referred(validation)
            asked = [] if validation is None else validation.trees[: config.kl_prompts]
            module: TrainingModule = DPOModule(prompts=[t.prompt for t in asked], **common)
        case RewardConfig():
            module = RewardModule(**common)
        case PpoConfig():
            loader = Prompts(train.trees, config, run.seed)
            common["steps"] = len(loader) * updates(config)
            module = PPOModule(
                reward=_score(policy, config, run.reward),
                probe=run.probe,
                table=run.folder / "rollouts.jsonl",
                **common,
            )
            return loader, module, _groups(validation, config.rollouts)
        case MlmConfig():
            masks = masker(policy.tokenizer, config)
            loader = MaskedSteps(train.trees, config, run.seed, masks)
            rows = [] if validation is None else validation.trees
            texts = [plain(tree) for tree in rows[: config.pseudo_perplexity_rows]]
            module = MLMModule(texts=texts, **common)
            held_out = held_out_batches(rows, config.max_tokens, masks, run.seed)
            return loader, module, DataLoader(held_out, batch_size=None) if rows else None  # type: ignore[arg-type]
        case CptConfig():
            module = TextModule(
                document_end=Renderer(policy.tokenizer, policy.context).document_end,
                predicted_bytes=None if validation is None else validation.ledger.predicted_bytes,
                **common,
            )
        case _:
            module = CLMModule(**common)
    return loader, module, _batches(validation, config.max_tokens)


def check_score(policy: Policy, config: PpoConfig) -> None:
    """Raises BadInput where what PPO's rollouts are scored by is not to be had."""
    if config.reward != "reward":
        _score(policy, config, None)


def _score(policy: Policy, config: PpoConfig, own: RewardModel | None) -> RewardModel | Score:
    """What PPO's rollouts are scored by."""
    if config.reward == "reward":
        assert own is not None, "checked at the door"
        return own
    if ":" in config.reward:
        return score_function(config.reward, "ppo.reward")
    return load_reward_model(policy, Path(config.reward), "ppo.reward")


def _checkpoints(
    config: StageConfig, folder: Path, a_batch: int, validated_every: int | None
) -> StageCheckpoint:
    """Keeps the newest checkpoints, named by their step, which ends a batch."""
    return StageCheckpoint(
        folder,
        filename="{step:06d}",
        monitor="step",
        mode="max",
        save_top_k=config.checkpoints,
        every_n_train_steps=math.ceil(config.checkpoint_every / a_batch) * a_batch,
        auto_insert_metric_name=False,
        validated_every=validated_every,
    )


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


def _take_best(best: ModelCheckpoint, module: TrainingModule) -> None:
    """Puts the best tensors back in place, unless the last ones are as good."""
    score = best.best_model_score
    if score is None or module.validation["loss"] <= float(score):
        return
    state = checkpoints.read(Path(best.best_model_path), module.state_dict())["state_dict"]
    with torch.no_grad():
        for name, parameter in module.trainable().items():
            parameter.copy_(state[name])
    module.validation = module.best_validation


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's hints, which are about settings that are ours."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        yield


def _batches(split: Split | None, max_tokens: int) -> DataLoader[Any] | None:
    return None if split is None else _in_order(_Packed(split.trees, max_tokens))


def _groups(split: Split | None, size: int) -> DataLoader[Any] | None:
    """The first prompts that are held out, as many as an iteration has."""
    return None if split is None else _in_order([split.trees[:size]])


class _Packed(Sequence[Trees]):
    """Trees in batches, packed as they are come to: all at once may not fit into memory."""

    def __init__(self, trees: Sequence[Tree], max_tokens: int) -> None:
        self.trees = trees
        self.ends = list(accumulate(len(group) for group in within(trees, max_tokens)))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        return pack(self.trees[self.ends[index - 1] if index else 0 : self.ends[index]])


def _in_order(batches: Sequence[Any]) -> DataLoader[Any]:
    # A generator of its own: a DataLoader draws, though nothing is shuffled, and the training's
    # draws are not to depend on how often it is validated.
    return DataLoader(batches, batch_size=None, generator=torch.Generator())  # type: ignore[arg-type]


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
