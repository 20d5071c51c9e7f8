"""Where Hydra looks for sweepers: a grid and a search, whose work is in drbode/multirun.py."""

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from drbode import multirun


class Grid(Sweeper):
    """Every combination of what is swept, as Hydra's own sweeper."""

    def __init__(self, max_batch_size: int | None, params: dict[str, Any] | None) -> None:
        self.max_batch_size = max_batch_size
        self.params = params or {}

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.jobs = multirun.Jobs(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> None:
        multirun.grid(self.jobs, self.params, arguments, self.max_batch_size)


class Search(Sweeper):
    """The best of what is swept, by optuna."""

    def __init__(self, params: dict[str, Any] | None, **options: Any) -> None:
        self.params = params or {}
        self.options = multirun.SearchOptions(**options)

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.jobs = multirun.Jobs(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> None:
        multirun.search(self.jobs, self.params, arguments, self.options)
