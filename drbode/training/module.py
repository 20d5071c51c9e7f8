"""What the LightningModules of all objectives share: the optimizer step, and its metrics."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
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
from drbode.trees import Batch

LOG_EVERY = 10  # steps that a logged training metric is averaged over


class Sums(NamedTuple):
    """An objective, and what is logged beside it, summed over the units of a batch."""

    loss: Tensor
    metrics: Mapping[str, Tensor] = MappingProxyType({})


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
        self.optimizer_steps = 0
        self.tokens_seen = 0
        self.seconds = 0.0  # spent in optimizer steps, over all continuations of the stage
        self.train_metrics: dict[str, float] = {}  # of the last steps logged
        self.validation: dict[str, float] = {}  # of the last validation
        self.best_validation: dict[str, float] = {}  # of the lowest loss
        self.before: dict[str, float] = {}  # of a validation before the first step, if any
        self.validated_at: int | None = None
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

    def training_step(self, step: Step, _index: int) -> None:
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        units = sum(self.units(batch) for batch in step.batches)
        for batch in step.batches:
            sums = self.sums(batch)
            self.manual_backward(sums.loss / units)
            self._window.totals.add(sums, self.units(batch))
        norm = self._clip(optimizer)
        rate = float(schedule.get_last_lr()[0])  # type: ignore[union-attr]
        optimizer.step()  # type: ignore[union-attr]
        schedule.step()  # type: ignore[union-attr]
        optimizer.zero_grad()  # type: ignore[union-attr]
        self.optimizer_steps += 1
        self.tokens_seen += step.tokens
        self._window.add(step, norm)
        if self._window.count == LOG_EVERY or self.optimizer_steps == self.steps:
            found = self._close_window(rate)
            self.log("loss", found["loss"], prog_bar=True, logger=False)
            self.log("tokens/s", found["tokens_per_second"], prog_bar=True, logger=False)

    def on_train_end(self) -> None:
        if self._window.count:  # early stopping ended the stage in between
            self._close_window(float(self.lr_schedulers().get_last_lr()[0]))  # type: ignore[union-attr]

    def _close_window(self, rate: float) -> dict[str, float]:
        seconds, metrics = self._window.close()
        self._window = _Window()
        self.seconds += seconds
        self.train_metrics = metrics
        self.write("train", {**metrics, "learning_rate": rate, "tokens": self.tokens_seen})
        return metrics

    def _clip(self, optimizer: Any) -> float:
        limit = self.config.max_grad_norm
        gradients = [p.grad for p in self.trainable().values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if limit is not None:
            self.clip_gradients(optimizer, limit, "norm")
        return float(norm)

    def validation_step(self, batch: Batch, _index: int) -> None:
        self._held_out.add(self.sums(batch), self.units(batch))

    def on_validation_epoch_start(self) -> None:
        self._held_out = Totals()
        self._paused = time.perf_counter()

    def on_validation_epoch_end(self) -> None:
        """The means over all validation rows: sums are divided once."""
        self.close_validation(self._held_out.means() | self.held_out_metrics())

    def close_validation(self, found: dict[str, float]) -> None:
        """Keeps and logs what a validation came to."""
        if self.optimizer_steps == 0:
            self.before = found
        else:
            self.validation, self.validated_at = found, self.optimizer_steps
            if found["loss"] < self.best_validation.get("loss", math.inf):
                self.best_validation = found
        self._window.began += time.perf_counter() - self._paused
        self.log("validation/loss", found["loss"], prog_bar=True, logger=False)
        self.write("validation", found)

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
            logger.log_metrics(named, step=self.step_offset + self.optimizer_steps)

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:  # type: ignore[override]
        return {name: p.detach() for name, p in self.trainable().items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["drbode"] = {
            "optimizer_steps": self.optimizer_steps,
            "tokens_seen": self.tokens_seen,
            "seconds": self.seconds,
            "window": self._window.state(),
            "train_metrics": self.train_metrics,
            "validation": self.validation,
            "best_validation": self.best_validation,
            "before": self.before,
            "validated_at": self.validated_at,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        ours = self._resumed = checkpoint["drbode"]
        self.optimizer_steps = ours["optimizer_steps"]
        self.tokens_seen = ours["tokens_seen"]
        self.seconds = ours["seconds"]
        self.train_metrics = ours["train_metrics"]
        self.validation = ours["validation"]
        self.best_validation = ours["best_validation"]
        self.before = ours["before"]
        self.validated_at = ours["validated_at"]


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
        self.norm = 0.0
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
            "norm": self.norm,
            "seconds": self.seconds if self.count else 0.0,
        }

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def add(self, step: Step, norm: float) -> None:
        self.tokens += step.tokens
        self.norm += norm
        self.count += 1

    def close(self) -> tuple[float, dict[str, float]]:
        """Seconds the steps took, and their metrics."""
        seconds = self.seconds
        return seconds, {
            **self.totals.means(),
            "grad_norm": self.norm / self.count,
            "tokens_per_second": self.tokens / seconds,
        }
