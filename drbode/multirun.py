"""Starts the jobs of a multirun, in this process or in others, as a grid or as a search."""

import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    IntervalSweep,
    Override,
    RangeSweep,
)
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig

from drbode import config
from drbode.config import BadInput, Outcome, Task

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # what PyTorch takes its number of threads from
NOT_IN_STUDY = ("output_dir", "force", "reuse_stages", "logger", "wandb")
Words = Sequence[str]  # overrides, as on the command line


class Jobs:
    """The jobs of one multirun, each a list of overrides."""

    def __init__(self, context: HydraContext, task: Any, master: DictConfig) -> None:
        self.context = context
        self.task = cast(Task, task)
        self.task.group = f"multirun {datetime.now():%Y-%m-%d %H:%M:%S}"
        self.master = master
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=task, config=master
        )
        self.started = 0
        self.known: dict[str, tuple[Words, Outcome]] = {}  # by the name of the run

    def tree(self, words: Words) -> dict[str, Any]:
        """The config of one job, as plain data."""
        return config.plain(self.context.config_loader.load_sweep_config(self.master, list(words)))

    def run(self, jobs: Sequence[Words]) -> list[Outcome]:
        """Runs them and gives the outcome of each; equal ones are run once."""
        names = [self._name(number, words) for number, words in enumerate(jobs)]
        new: dict[str, Words] = {}
        for name, words in zip(names, jobs, strict=True):
            first = self.known[name][0] if name in self.known else new.setdefault(name, words)
            if first is not words:
                print(f"{' '.join(words)}: the same run as {' '.join(first)}: run once")
        if new:
            outcomes = self._launch(list(new.values()))
            for (name, words), outcome in zip(new.items(), outcomes, strict=True):
                self.known[name] = words, outcome
            self.task.outcomes += outcomes
        return [self.known[name][1] for name in names]

    def _name(self, number: int, words: Words) -> str:
        tree = self.tree(words)  # also so that a mistake in the words ends it all before it begins
        try:
            return self.task.name(tree) if self.task.name else f"{self.started + number}"
        except BadInput:
            return f"invalid {' '.join(words)}"  # the job will say why

    def _launch(self, jobs: Sequence[Words]) -> list[Outcome]:
        launcher = str(self.master.hydra.runtime.choices["hydra/launcher"])
        sys.stdout.flush()
        try:
            with _shared(_threads(launcher, self.master.hydra.launcher, len(jobs))):
                returns = self.launcher.launch([list(w) for w in jobs], self.started)
            outcomes = [cast(Outcome, r.return_value) for r in returns]
        except Exception as error:
            if type(error).__module__.split(".")[0] not in ("joblib", "submitit"):
                raise
            print(
                f"failed: a job's process ended without a word ({type(error).__name__}), maybe for "
                "want of memory; what it had begun stands in its record, and the same command runs "
                "what is missing",
                file=sys.stderr,
            )
            outcomes = [Outcome(list(words), 1, None, str(error)) for words in jobs]
        self.started += len(jobs)
        if launcher.startswith("submitit"):  # whose jobs write to files of their own
            for outcome in outcomes:
                _tell(outcome)
        return outcomes


def _tell(outcome: Outcome) -> None:
    words = " ".join(outcome.overrides)
    if outcome.error is not None:
        print(f"failed: {words}: {outcome.error}", file=sys.stderr)
    elif outcome.done is not None:
        print(f"done: {words}: {outcome.done.folder}")


def _threads(launcher: str, options: DictConfig, jobs: int) -> int | None:
    """CPU threads for each of the jobs that run at a time; None: PyTorch's default."""
    match launcher:
        case "joblib":
            n_jobs = int(options.n_jobs)  # -1: as many as there are cores
            at_a_time = min(n_jobs if n_jobs > 0 else max(1, _cores() + 1 + n_jobs), jobs)
        case "submitit_local":  # starts all at once
            at_a_time = jobs
        case "submitit_slurm":
            return int(options.cpus_per_task or 1)
        case _:
            return None
    return max(1, _cores() // at_a_time)


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


@contextmanager
def _shared(threads: int | None) -> Iterator[None]:
    """Sets the number of threads of the processes started meanwhile, where nothing else sets it."""
    new = [name for name in THREADS if threads is not None and name not in os.environ]
    os.environ.update(dict.fromkeys(new, str(threads)))
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]


def _parse(jobs: Jobs, params: Mapping[str, Any], arguments: Words) -> list[Override]:
    """The overrides; of several for one key only the last counts."""
    words = [*(f"{key}={value}" for key, value in params.items()), *arguments]
    parser = OverridesParser.create(config_loader=jobs.context.config_loader)
    return list({o.get_key_element(): o for o in parser.parse_overrides(words)}.values())


# --- a grid ------------------------------------------------------------------------------------


def grid(jobs: Jobs, params: Mapping[str, Any], arguments: Words, batch: int | None) -> None:
    """Every combination of what is swept."""
    axes = []
    for override in _parse(jobs, params, arguments):
        key = override.get_key_element()
        if key == "objective":
            raise BadInput("objective: only a search reads it; leave it out, or add sweep=search")
        if not override.is_sweep_override():
            axes.append([f"{key}={override.get_value_element_as_str()}"])
        elif override.is_discrete_sweep():
            axes.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            raise BadInput(
                f"{key}: an interval has no end of values; give the values, or add sweep=search"
            )
    cells: list[Words] = list(itertools.product(*axes))
    for start in range(0, len(cells), batch or len(cells)):
        jobs.run(cells[start : start + (batch or len(cells))])


# --- a search ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SearchOptions:
    """`conf/hydra/sweeper/optuna.yaml`, but for what is searched."""

    trials: int
    parallel: int
    startup: int
    seed: int
    storage: str

    def check(self) -> None:
        """Raises BadInput for what is out of range."""
        for name in ("trials", "parallel", "startup"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise BadInput(
                    f"hydra.sweeper.{name}: expected a whole number at least 1, got {value}"
                )


def search(jobs: Jobs, params: Mapping[str, Any], arguments: Words, options: SearchOptions) -> None:
    """Trials of what is swept until `options.trials` of them have finished.

    A trial that fails is not counted and does not end the search; the same command draws another.
    """
    options.check()
    study, space, fixed = _study(jobs, _parse(jobs, params, arguments), options)
    finished = _trials(study, "COMPLETE")
    if finished:
        print(f"{study.study_name}: {len(finished)} trials are finished, of {options.trials}")
    for number in range(len(finished), options.trials, options.parallel):
        count = min(options.parallel, options.trials - number)
        trials = [study.ask(space) for _ in range(count)]
        words = [[*fixed, *(f"{k}={v}" for k, v in t.params.items())] for t in trials]
        for one in words:
            config.refuse_search(jobs.tree(one))
        for trial, outcome in zip(trials, jobs.run(words), strict=True):
            if outcome.done is None or outcome.done.objective is None:
                _fail(study, trial.number)
            else:
                trial.set_user_attr("folder", str(outcome.done.folder))
                study.tell(trial, outcome.done.objective)
    _show(study, str(jobs.master.objective))


def _study(
    jobs: Jobs, overrides: Sequence[Override], options: SearchOptions
) -> tuple["Study", "dict[str, BaseDistribution]", list[str]]:
    """The study, new or continued; the distributions that it searches; the fixed overrides."""
    try:
        import optuna
    except ImportError:
        raise BadInput(
            "hydra/sweeper: optuna is not installed; pip install 'drbode[sweep]'"
        ) from None
    space = {o.get_key_element(): _distribution(o) for o in overrides if o.is_sweep_override()}
    fixed = [
        f"{o.get_key_element()}={o.get_value_element_as_str()}"
        for o in overrides
        if not o.is_sweep_override()
    ]
    if not space:
        raise BadInput("hydra/sweeper: nothing is searched; give a key choices or an interval")
    choices = [
        f"{key}={choice}"
        for key, drawn_from in space.items()
        if isinstance(drawn_from, optuna.distributions.CategoricalDistribution)
        for choice in drawn_from.choices
    ]
    for words in [[choice] for choice in choices] or [[]]:  # before the first trial
        config.refuse_search(jobs.tree([*fixed, *words]))
    shaping = sorted(w for w in fixed if w.split("=")[0].split(".")[0] not in NOT_IN_STUDY)
    content = [shaping, *(repr(pair) for pair in sorted(space.items())), jobs.master.objective]
    name = " ".join(["search", *shaping, config.digest(content)])
    storage = options.storage
    if storage.startswith("sqlite:///"):
        Path(storage.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=storage, study_name=name, direction="maximize", load_if_exists=True
    )
    for trial in _trials(study, "RUNNING"):  # that a multirun left which was stopped
        _fail(study, trial.number)
        study.enqueue_trial(trial.params)
    # Gone on with, the sampler does not draw again what it drew before.
    study.sampler = optuna.samplers.TPESampler(
        seed=options.seed + len(study.trials), n_startup_trials=options.startup
    )
    return study, space, fixed


def _distribution(override: Override) -> "BaseDistribution":
    """What optuna draws a swept key from."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    value = override.value()
    if isinstance(value, IntervalSweep):
        low, high, log = value.start, value.end, "log" in value.tags
        assert low is not None
        assert high is not None
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        return FloatDistribution(float(low), float(high), log=log)
    if isinstance(value, RangeSweep):
        values = [float(v) for v in override.sweep_string_iterator()]
        step = float(value.step)
        if all(v.is_integer() for v in (*values, step)):
            return IntDistribution(int(min(values)), int(max(values)), step=abs(int(step)))
        return FloatDistribution(min(values), max(values), step=abs(step))
    if not override.is_discrete_sweep():
        raise HydraException(f"{override.input_line}: cannot be searched")
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def _trials(study: "Study", state: str) -> "list[FrozenTrial]":
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState[state],))


def _fail(study: "Study", number: int) -> None:
    from optuna.trial import TrialState

    study.tell(number, state=TrialState.FAIL)


def _show(study: "Study", objective: str) -> None:
    finished, failed = _trials(study, "COMPLETE"), len(_trials(study, "FAIL"))
    print(f"\n{study.study_name}: {len(finished)} trials are finished, {failed} have failed")
    if not finished:
        return
    best = study.best_trial
    values = " ".join(f"{key}={value}" for key, value in best.params.items())
    print(f"best {objective}: {best.value:.4f} with {values}: {best.user_attrs['folder']}")
