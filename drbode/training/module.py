"""What the LightningModules of all objectives share: the optimizer step, and its metrics."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import bitsandbytes
import lightning
import torch
from torch import Tensor, nn
from transformers import get_scheduler

from drbode.config import Optimizer, Stage, StageConfig
from drbode.data.steps import Step
from drbode.models.base import Policy
from drbode.models.heads import RewardModel
from drbode.models.machine import Machine
from drbode.training.finite import FiniteWatch, all_finite, not_finite
from drbode.trees import Batch

LOG_EVERY = 10  # steps that a logged training metric is averaged over


class Sums(NamedTuple):
    """An objective, and what is logged beside it, summed over the units of a batch."""

    loss: Tensor
    metrics: Mapping[str, Tensor] = MappingProxyType({})


@dataclass
class Progress:
    """How far a stage has come and what it has measured so far, as a checkpoint keeps it."""

    steps: int = 0  # of the optimizer
    tokens: int = 0
    seconds: float = 0.0  # spent in optimizer steps, over all continuations of the stage
    train: dict[str, float] = field(default_factory=dict)  # of the last steps logged
    validation: dict[str, float] = field(default_factory=dict)  # of the last one
    best_validation: dict[str, float] = field(default_factory=dict)  # of the lowest loss
    before: dict[str, float] = field(default_factory=dict)  # of one before the first step, if any
    validated_at: int | None = None  # the step of the last validation
    logged: int = 0  # metrics written, each a row of metrics.csv
    stopped: bool = False  # early, so that a stage that goes on from here is at its end


class TrainingModule(lightning.LightningModule, ABC):
    """Trains a policy by whole optimizer steps.

    The loss of a step is summed over its micro-batches and divided once by the step's units
    (supervised tokens, or pairs), so how the rows are split into micro-batches changes nothing.
    Optimization is manual, for the number of micro-batches of a step varies with the lengths of its
    rows. `step_offset` is the number of optimizer steps of the run's earlier stages.
    """

    def __init__(
        self,
        policy: Policy,
        stage: Stage,
        config: StageConfig,
        *,
        steps: int,
        step_offset: int,
        machine: Machine,
        end: int,
    ) -> None:
        """`end` is the id of the token that ends an answer, for objectives that write some."""
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold the trainable tensors alone
        self.policy = policy
        self.stage = stage
        self.config = config
        self.steps = steps
        self.step_offset = step_offset
        self.machine = machine
        self.end = end
        self.progress = Progress()
        self._watch = FiniteWatch()
        self._window = _Window()
        self._paused = 0.0
        self._resumed: Mapping[str, Any] | None = None
        self._held_out = Totals()

    def trainable(self) -> dict[str, nn.Parameter]:
        """What the optimizer moves, by the names it has in a checkpoint."""
        return {f"policy.network.{name}": p for name, p in self.policy.trainable().items()}

    validates_first = False  # whether held-out rows are looked at before the first step

    def reward_model(self) -> RewardModel | None:
        """The reward model that was trained, apart from the policy, if one was."""
        return None

    @abstractmethod
    def sums(self, batch: Any) -> Sums:
        """The objective and its metrics, summed over the units of a micro-batch."""

    @abstractmethod
    def units(self, batch: Any) -> int:
        """What a mean is taken over: supervised tokens, pairs."""

    def configure_optimizers(self) -> Any:
        optimizer = _adamw(self.trainable().values(), self.config)
        schedule = get_scheduler(
            "constant_with_warmup" if self.config.schedule == "constant" else self.config.schedule,
            optimizer,
            num_warmup_steps=math.ceil(self.config.warmup_ratio * self.steps),
            num_training_steps=self.steps,
        )
        return [optimizer], [schedule]

    def on_train_start(self) -> None:
        self._window = _Window()
        if self._resumed is not None:  # it goes on where the interrupted run stopped drawing
            self._window = _Window(self._resumed["window"])
            torch.set_rng_state(self._resumed["rng"].cpu())
            torch.cuda.set_rng_state_all([state.cpu() for state in self._resumed["cuda_rng"]])
            if self.progress.stopped:
                self.trainer.should_stop = True

    def training_step(self, step: Step, _index: int) -> None:
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        units = sum(self.units(batch) for batch in step.batches)
        losses = []
        for batch in step.batches:
            sums = self.sums(batch)
            self.manual_backward(sums.loss / units)
            self._window.totals.add(sums, self.units(batch))
            losses.append(sums.loss.detach())
        norm = self._clip(optimizer)
        self._watch.add(self.progress.steps + 1, torch.stack(losses).sum(), norm)
        rate = float(schedule.get_last_lr()[0])  # type: ignore[union-attr]
        optimizer.step()  # type: ignore[union-attr]
        schedule.step()  # type: ignore[union-attr]
        optimizer.zero_grad()  # type: ignore[union-attr]
        self.progress.steps += 1
        self.progress.tokens += step.tokens
        self._window.add(step, norm)
        if self._window.count == LOG_EVERY or self.progress.steps == self.steps:
            metrics = self._close_window(rate)
            self.log("loss", metrics["loss"], prog_bar=True, logger=False)
            self.log("tokens/s", metrics["tokens_per_second"], prog_bar=True, logger=False)

    def on_train_end(self) -> None:
        if self._window.count:  # early stopping ended the stage in between
            self._close_window(float(self.lr_schedulers().get_last_lr()[0]))  # type: ignore[union-attr]

    def check_finite(self) -> None:
        """Raises BadInput where a loss, a gradient norm or a trained weight is not finite.

        It waits for the device: called where metrics are read, and before anything is saved.
        """
        self._watch.refuse(self.stage)
        if not all_finite(self.trainable().values()):
            steps = self.progress.steps
            raise not_finite(self.stage, "a trained weight", steps, learned=steps > 0)

    def _close_window(self, rate: float) -> dict[str, float]:
        self._watch.refuse(self.stage)
        seconds, metrics = self._window.close()
        self._window = _Window()
        self.progress.seconds += seconds
        self.progress.train = metrics
        self.write("train", {**metrics, "learning_rate": rate, "tokens": self.progress.tokens})
        return metrics

    def _clip(self, optimizer: Any) -> Tensor:
        """The norm of the gradients before they are clipped."""
        limit = self.config.max_grad_norm
        gradients = [p.grad for p in self.trainable().values() if p.grad is not None]
        norm: Tensor = torch.nn.utils.get_total_norm(gradients)
        if limit is not None:
            self.clip_gradients(optimizer, limit, "norm")
        return norm

    def validation_step(self, batch: Batch, _index: int) -> None:
        self._held_out.add(self.sums(batch), self.units(batch))

    def on_validation_epoch_start(self) -> None:
        self._held_out = Totals()
        self._paused = time.perf_counter()

    def on_validation_epoch_end(self) -> None:
        """The means over all validation rows: sums are divided once."""
        means = self._held_out.means()
        self.check_validation(means["loss"])  # before anything is sampled from what is broken
        self.close_validation(means | self.held_out_metrics())

    def check_validation(self, loss: float) -> None:
        """Raises BadInput where the loss of a validation, or what led to it, is not finite."""
        self._watch.refuse(self.stage)
        if not math.isfinite(loss):
            steps = self.progress.steps
            raise not_finite(self.stage, "the validation loss", steps, learned=steps > 0)

    def close_validation(self, metrics: dict[str, float]) -> None:
        """Keeps and logs what a validation came to."""
        progress = self.progress
        if progress.steps == 0:
            progress.before = metrics
        else:
            progress.validation, progress.validated_at = metrics, progress.steps
            if metrics["loss"] < progress.best_validation.get("loss", math.inf):
                progress.best_validation = metrics
        self._window.began += time.perf_counter() - self._paused
        self.log("validation/loss", metrics["loss"], prog_bar=True, logger=False)
        self.write("validation", metrics)

    def held_out_metrics(self) -> dict[str, float]:
        """What an objective measures beside the means of its sums at the end of a validation."""
        return {}

    def warnings(self) -> list[str]:
        """What a person should know of the stage, a sentence each, once it is done."""
        return []

    def write(self, split: str, metrics: Mapping[str, float]) -> None:
        """Logs under `stage/split/name` against the run's cumulative optimizer step."""
        named = {f"{self.stage}/{split}/{name}": value for name, value in metrics.items()}
        for logger in self.loggers:
            logger.log_metrics(named, step=self.step_offset + self.progress.steps)
        self.progress.logged += len(named)

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:  # type: ignore[override]
        return {name: p.detach() for name, p in self.trainable().items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.progress.stopped = bool(self.trainer.should_stop)
        checkpoint["drbode"] = {
            "progress": asdict(self.progress),
            "window": self._window.state(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._resumed = checkpoint["drbode"]
        self.progress = Progress(**checkpoint["drbode"]["progress"])


def _adamw(parameters: Iterable[torch.nn.Parameter], config: StageConfig) -> torch.optim.Optimizer:
    """AdamW, its state in plain memory or in pages that move between GPU and CPU (QLoRA)."""
    rate, (beta1, beta2) = config.learning_rate, config.betas
    assert rate != "auto", "resolved at the door"
    options: dict[str, Any] = {
        "lr": rate,
        "betas": (beta1, beta2),
        "weight_decay": config.weight_decay,
    }
    assert config.optimizer != "auto", "resolved by the machine"
    kinds: dict[Optimizer, Callable[..., torch.optim.Optimizer]] = {
        "adamw": torch.optim.AdamW,
        "paged_adamw_32bit": bitsandbytes.optim.PagedAdamW32bit,
        "paged_adamw_8bit": bitsandbytes.optim.PagedAdamW8bit,
    }
    return kinds[config.optimizer](parameters, **options)


@contextmanager
def own_draws() -> Iterator[None]:
    """Draws of a measurement: the same each time, and without effect on those of the training."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class Totals:
    """Sums over batches, and the number of units they are divided by, once."""

    # Not torchmetrics' MeanMetric: it weighs each value of a batch, where these come summed, and an
    # objective names its metrics only as it gives them.

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.units = 0

    def add(self, sums: Sums, units: int) -> None:
        for name, value in {"loss": sums.loss, **sums.metrics}.items():
            before = self.sums.get(name)
            self.sums[name] = value.detach() if before is None else before + value.detach()
        self.units += units

    def means(self) -> dict[str, float]:
        return {name: float(total) / self.units for name, total in self.sums.items()}


class _Window:
    """Sums over the steps since metrics were last logged; `state` is what another one held."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self.totals = Totals()
        self.tokens = self.count = 0
        self.norm: float | Tensor = 0.0
        self.began = time.perf_counter()
        if state is not None:
            self.totals.sums, self.totals.units = dict(state["sums"]), state["units"]
            self.tokens, self.count, self.norm = state["tokens"], state["count"], state["norm"]
            self.began -= state["seconds"]

    def state(self) -> dict[str, Any]:
        """Plain data that a checkpoint can hold."""
        return {
            "sums": self.totals.sums,
            "units": self.totals.units,
            "tokens": self.tokens,
            "count": self.count,
            "norm": float(self.norm),
            "seconds": self.seconds if self.count else 0.0,
        }

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def add(self, step: Step, norm: Tensor) -> None:
        self.tokens += step.tokens
        self.norm = self.norm + norm.double()  # read when it is logged, not at every step
        self.count += 1

    def close(self) -> tuple[float, dict[str, float]]:
        """Seconds the steps took, and their metrics."""
        seconds = self.seconds
        return seconds, {
            **self.totals.means(),
            "grad_norm": float(self.norm) / self.count,
            "tokens_per_second": self.tokens / seconds,
        }
