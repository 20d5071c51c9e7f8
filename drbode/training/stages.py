"""Runs a stage: one objective, one data set, one optimizer, on the policy of the run."""

import importlib
import logging
import math
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from drbode.config import BadInput, Stage, StageConfig
from drbode.models.base import Policy
from drbode.models.heads import RewardModel
from drbode.record import StageResult
from drbode.training import checkpoints
from drbode.training.callbacks import CsvLogger, PeakMemory, StageBar, StageCheckpoint
from drbode.training.checkpoints import Checkpoints
from drbode.training.checksums import load_tensors, read_checked, save_tensors, write_checked
from drbode.training.context import StageContext, Training
from drbode.training.finite import all_finite, not_finite
from drbode.training.module import TrainingModule

LAST = "last.safetensors"  # the trainable tensors as the stage handed them on
HEAD = "head"  # beside them, of a reward model
ENDED = "ended.json"  # what the stage came to; written last, it says that the stage has ended


def run_stage(context: StageContext[Any]) -> tuple[StageResult, RewardModel | None]:
    """Trains the policy in place; a stage that leaves a reward model returns it beside its result.

    Such a stage leaves the policy as it was. Where an interrupted run of the stage left checkpoints
    in the context's folder, it goes on from the newest; a stage that had ended is not trained
    again. Raises BadInput where a loss, a gradient or a weight is not finite.
    """
    if (ended := _ended(context)) is not None:
        return ended, restore_stage(context.policy, context.folder)
    policy, traits = context.policy, context.traits
    lightning.seed_everything(context.run.seed, verbose=False)
    aside = traits.leaves == "reward model"
    before = policy.state() if aside else {}
    with nullcontext() if traits.dropout else policy.without_dropout():
        training = _implementation(context.stage).build(context)
        result = _fit(context, training)
    training.module.check_finite()
    tensors = policy.state()
    reward = training.module.reward_model()
    if reward is not None:
        tensors[HEAD] = reward.head.cpu()
        policy.load_state(before)
    save_tensors(tensors, context.folder / LAST)
    logged = training.module.progress.logged
    write_checked(context.folder / ENDED, {"result": asdict(result), "logged": logged})
    return result, reward


def _ended(context: StageContext[Any]) -> StageResult | None:
    """What the stage came to, where it ended before its run was interrupted."""
    path = context.folder / ENDED
    if not path.is_file():
        return None
    try:
        ended = read_checked(path)
        result = StageResult(**ended["result"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadInput(f"{path}: is damaged ({error}); {checkpoints.REMEDY}") from None
    _forget_metrics(context, ended["logged"])
    return result


def _forget_metrics(context: StageContext[Any], logged: int) -> None:
    """Leaves the stage's first metrics: an interrupted run may have logged more than it kept."""
    for logger in context.run.loggers:
        if isinstance(logger, CsvLogger):
            logger.keep_first(context.stage, logged)


def check_stage(stage: Stage, config: StageConfig, policy: Policy) -> None:
    """Raises BadInput, before any stage is trained, where a stage could not begin later on."""
    check = getattr(_implementation(stage), "check", None)  # of stages that have one
    if check is not None:
        check(policy, config)


def restore_stage(policy: Policy, folder: Path) -> RewardModel | None:
    """Puts the policy where a finished stage left it.

    Of a stage that left a reward model, and the policy alone, it returns the model.
    """
    path = folder / LAST
    tensors = load_tensors(path, "use force=true to start over")
    head = tensors.pop(HEAD, None)
    if head is None:
        try:
            policy.load_state(tensors)
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from None
        return None
    return RewardModel(tensors, head).to(policy.device)


def _implementation(stage: Stage) -> Any:
    """The module `drbode/training/<stage>.py`, whose `build` makes the stage's Training."""
    return importlib.import_module(f"drbode.training.{stage}")


@dataclass(frozen=True)
class _Rhythm:
    """How optimizer steps, the loader's batches and validations follow each other."""

    steps_a_batch: int  # optimizer steps that one batch of the loader makes
    validate_every: int  # batches

    @classmethod
    def of(cls, config: StageConfig, training: Training) -> "_Rhythm":
        batches = len(training.loader)
        steps_a_batch = training.module.steps // batches
        wanted = config.validate_every or training.module.steps
        return cls(steps_a_batch, min(math.ceil(wanted / steps_a_batch), batches))


def _fit(context: StageContext[Any], training: Training) -> StageResult:
    """Trains and validates the module; what that came to."""
    config, run, policy = context.config, context.run, context.policy
    loader, module, held_out = training
    rhythm = _Rhythm.of(config, training)
    memory, best = PeakMemory(), _best(context.folder)
    if run.trainer.gradient_checkpointing:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    checkpoint = _newest(context.folder)
    done = 0 if checkpoint is None else int(checkpoint.stem)
    loader.start = done // rhythm.steps_a_batch
    logged = 0
    if checkpoint is not None:
        logged = checkpoints.read(checkpoint, module.state_dict())["drbode"]["progress"]["logged"]
    _forget_metrics(context, logged)
    _check_weights(context)
    context.folder.mkdir(parents=True, exist_ok=True)  # the run keeps what it has logged from here
    with _quiet(), _ctrl_c():
        trainer = _trainer(context, training, rhythm, [memory, *([best] if held_out else [])])
        if held_out and checkpoint is None and module.validates_first:
            trainer.validate(module, held_out, verbose=False)
        trainer.fit(module, loader, held_out, ckpt_path=checkpoint, weights_only=True)
        if held_out and module.progress.validated_at != module.progress.steps:
            trainer.validate(module, held_out, verbose=False)
    if config.keep_best and held_out:
        _take_best(best, module)
    module.to(run.machine.accelerator)  # Lightning leaves it on the CPU
    return _result(context, module, memory.peak_gib)


def _check_weights(context: StageContext[Any]) -> None:
    """Raises BadInput where the stage would begin with weights that are not finite."""
    if not all_finite(context.policy.network.parameters()):
        raise not_finite(context.stage, "a weight", 0, learned=False)


def _result(context: StageContext[Any], module: TrainingModule, peak_gib: float) -> StageResult:
    progress = module.progress
    after = {name: value for name, value in progress.validation.items() if name != "loss"}
    before = {f"{n}_before": value for n, value in progress.before.items() if n != "loss"}
    return StageResult(
        steps=progress.steps,
        tokens=progress.tokens,
        seconds=progress.seconds,
        tokens_per_second=progress.tokens / progress.seconds,
        peak_memory_gib=peak_gib,
        train_loss=progress.train["loss"],
        validation_loss=progress.validation.get("loss"),
        measures=after | before,
        ended_by=_ended_by(context.config, progress.steps < module.steps),
        optimizer=context.config.optimizer,
        dropout="as configured" if context.traits.dropout else "off",
        warnings=module.warnings(),
    )


def _trainer(
    context: StageContext[Any], training: Training, rhythm: _Rhythm, listeners: list[Callback]
) -> lightning.Trainer:
    config, run = context.config, context.run
    validates = training.held_out is not None
    callbacks = list(listeners)
    if config.checkpoints:  # after what it holds the state of
        callbacks.append(_checkpoints(config, context.folder, rhythm, validates))
    if config.patience is not None:
        # Said outright: Lightning takes an interval of 1 step for one of 1 epoch.
        callbacks.append(
            EarlyStopping(
                "validation/loss", patience=config.patience, check_on_train_epoch_end=False
            )
        )
    if run.trainer.progress:
        callbacks.append(StageBar(context.stage))
    return lightning.Trainer(
        accelerator="gpu" if run.machine.accelerator == "cuda" else "cpu",
        devices=1,
        precision=run.machine.precision,
        max_epochs=1,  # to Lightning a stage is one epoch of optimizer steps
        logger=list(run.loggers),
        callbacks=callbacks,
        enable_progress_bar=run.trainer.progress,
        enable_model_summary=False,
        enable_checkpointing=bool(config.checkpoints or validates),
        num_sanity_val_steps=0,
        val_check_interval=rhythm.validate_every,
        limit_val_batches=None if validates else 0,
        use_distributed_sampler=False,
        plugins=[Checkpoints(training.module)],
    )


def _checkpoints(
    config: StageConfig, folder: Path, rhythm: _Rhythm, validates: bool
) -> StageCheckpoint:
    """Keeps the newest checkpoints, named by their step, which ends a batch."""
    a_batch = rhythm.steps_a_batch
    return StageCheckpoint(
        folder,
        filename="{step:06d}",
        monitor="step",
        mode="max",
        save_top_k=config.checkpoints,
        every_n_train_steps=math.ceil(config.checkpoint_every / a_batch) * a_batch,
        auto_insert_metric_name=False,
        validated_every=rhythm.validate_every * a_batch if validates else None,
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
    if score is None or module.progress.validation["loss"] <= float(score):
        return
    state = checkpoints.read(Path(best.best_model_path), module.state_dict())["state_dict"]
    with torch.no_grad():
        for name, parameter in module.trainable().items():
            parameter.copy_(state[name])
    module.progress.validation = module.progress.best_validation


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's hints, which are about settings that are ours."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        yield


@contextmanager
def _ctrl_c() -> Iterator[None]:
    """Passes Ctrl-C on, of which Lightning makes a SystemExit, with the signal switched off."""
    try:
        yield
    except SystemExit:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from None


def _newest(folder: Path) -> Path | None:
    """The checkpoint of the most steps that an interrupted run of this stage left."""
    left = sorted(folder.glob("[0-9]*.ckpt"), key=lambda path: int(path.stem))
    return left[-1] if left else None


def _ended_by(config: StageConfig, early: bool) -> str:
    if early:
        return "early stopping"
    if config.steps is not None:
        return "steps"
    return "epochs" if config.tokens is None else "tokens"
