"""The door through which a config comes in; every mistake ends in one sentence.

Hydra composes plain YAML from `conf/`, whose result becomes the dataclasses of `schema`, once. Past
the door there is no `DictConfig`. Nothing here imports torch, so a mistake is answered before
anything heavy is loaded.
"""

import contextlib
import dataclasses
import os
import re
import signal
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from drbode.config.blocks import Unread, WandbConfig
from drbode.config.convert import build
from drbode.config.errors import BadInput, nearest, one_of, unwritable
from drbode.config.identity import BODINHO, PACKAGE
from drbode.config.schema import OPTIONAL_BLOCKS, ChatConfig, Objective, TrainConfig

if TYPE_CHECKING:
    from omegaconf import DictConfig

SWEEP_PLUGINS = ("joblib", "submitit_local", "submitit_slurm")  # Hydra's, of the extra `sweep`


def conf_dir() -> Path:
    """The folder of YAML: in the package where it was installed as a wheel, else beside it."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


def keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every dotted key of nested data, blocks and leaves."""
    for name, value in tree.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from keys(value, f"{prefix}{name}.")


def groups() -> dict[str, list[str]]:
    """The groups of `conf/` and their options."""
    return {
        folder.name: sorted(f.stem for f in folder.glob("*.yaml"))
        for folder in sorted(conf_dir().iterdir())
        if folder.is_dir() and folder.name not in ("stage", "hydra")
    }


def compose(door: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The tree that a door, such as `train`, is given with these overrides, as plain data.

    Raises BadInput for an override that the tree has no place for.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            tree = hydra.compose(door, list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise BadInput(_explain(door, error)) from None
    plain = OmegaConf.to_container(tree, resolve=True)
    assert isinstance(plain, dict)
    return typing.cast(dict[str, Any], plain)


def load(tree: Mapping[str, Any], overrides: Sequence[str], multirun: bool = False) -> TrainConfig:
    """The train tree, typed and checked, against the overrides that the user typed.

    An override in a block that the chosen method or stages do not read is refused in a single run.
    In a multirun it is without effect, since `effective` leaves unread blocks out.
    """
    config = build(TrainConfig, tree)
    if not multirun:
        blocks = OPTIONAL_BLOCKS - config.blocks_read()
        for key in map(_key, overrides):
            if key.split(".")[0] in blocks:
                raise BadInput(
                    f"{key}: method {config.method} with stages [{','.join(config.stages)}] does "
                    f"not read {key.split('.')[0]}; leave it out, or choose a method or stage that "
                    "reads it"
                )
        refuse_unread(overrides, config.unread())
        if config.objective is not None:
            raise BadInput("objective: only a search reads it; leave it out, or add sweep=search")
    return config


def refuse_search(tree: Mapping[str, Any]) -> None:
    """Raises BadInput where a search would have nothing to maximise, or test questions."""
    if "objective" not in tree:
        raise BadInput("hydra/sweeper: optuna searches for the best training, with drbode.train")
    config = build(TrainConfig, tree)
    if config.objective is None:
        options = one_of(typing.get_args(Objective))
        raise BadInput(f"objective: a search maximises one, got null; set it to {options}")
    benchmark = config.benchmark
    if config.objective == "accuracy" and (benchmark.path, benchmark.split) == (BODINHO, "test"):
        raise BadInput(
            "benchmark.split: a search on the test questions would choose what fits them by chance "
            "and then report it on the same, got test; set benchmark.split=validation"
        )


def refuse_unread(overrides: Sequence[str], unread: Unread) -> None:
    """Raises BadInput for an override of a key that has no effect."""
    for key in map(_key, overrides):
        if key in unread:
            raise BadInput(f"{key}: has no effect with {unread[key]}; leave it out")


def load_chat(tree: Mapping[str, Any], overrides: Sequence[str]) -> ChatConfig:
    """The chat tree, typed and checked; an override that would have no effect is refused."""
    config = build(ChatConfig, tree)
    for key in map(_key, overrides):
        for unread, why in config.unread().items():
            if key == unread or key.startswith(f"{unread}."):
                raise BadInput(f"{key}: {why}")
    return config


def _key(override: str) -> str:
    """The dotted key of a word of the command line."""
    return override.split("=")[0].lstrip("+~")


@dataclass(frozen=True)
class Done:
    """What a job leaves: the folder of its run, and what a search maximises."""

    folder: Path
    objective: float | None = None
    wandb: WandbConfig | None = None  # where the job logged, for the table of all of them


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job of a multirun, in whichever process it ran."""

    overrides: list[str]
    code: int  # 0: done; 2: the user's mistake; 1: anything else
    done: Done | None
    error: str | None


Job = Callable[[Mapping[str, Any], list[str], bool], Done | None]


@dataclass
class Task:
    """What Hydra calls, once a run or once a job of a multirun; it goes to other processes whole.

    Equal names (`name`) are one run, which a multirun starts once. A job of a multirun that fails
    is handed to `failed`, and the others go on.
    """

    job: Job
    failed: Callable[[Mapping[str, Any], list[str], Exception], Done] | None
    name: Callable[[Mapping[str, Any]], str] | None
    outcomes: list[Outcome] = dataclasses.field(default_factory=list)  # of a multirun's jobs
    group: str | None = None  # of a multirun, in W&B, unless the config names another

    def __call__(self, config: "DictConfig") -> Outcome:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        tree, state = plain(config), HydraConfig.get()
        overrides = list(state.overrides.task)
        multirun = state.mode == RunMode.MULTIRUN
        if "wandb" in tree and tree["wandb"]["group"] is None:
            tree["wandb"]["group"] = self.group
        if multirun and self.name is not None:
            print(f"\n=== {' '.join(overrides)}", flush=True)
        try:
            return Outcome(overrides, 0, self.job(tree, overrides, multirun), None)
        except Exception as raised:
            error = unwritable(raised) or raised
            if multirun:
                # Nothing is raised: Hydra would then skip the jobs that are left.
                print(f"failed: {' '.join(overrides)}: {error}", file=sys.stderr)
                done = None
                if self.failed is not None:
                    with contextlib.suppress(BadInput):  # there may be no space for a record
                        done = self.failed(tree, overrides, error)
                code = 2 if isinstance(error, BadInput) else 1
                return Outcome(overrides, code, done, str(error))
            if isinstance(error, BadInput):
                print(f"error: {error}", file=sys.stderr)
                raise SystemExit(2) from None  # which Hydra lets pass, without a message
            raise


def plain(config: "DictConfig") -> dict[str, Any]:
    """A composed config as plain data, interpolations resolved, without Hydra's part."""
    from omegaconf import OmegaConf

    tree = OmegaConf.to_container(config, resolve=True)
    return {k: v for k, v in typing.cast(dict[str, Any], tree).items() if k != "hydra"}


def open_door(
    door: str,
    job: Job,
    failed: Callable[[Mapping[str, Any], list[str], Exception], Done] | None = None,
    name: Callable[[Mapping[str, Any]], str] | None = None,
    finished: Callable[[list[Outcome]], None] | None = None,
) -> NoReturn:
    """Runs `job(tree, overrides, multirun)` on what the command line asks for, and exits.

    `finished` is handed what the jobs of a multirun came to. The exit code is 0: done; 2: the
    user's mistake, told in one sentence; 1: anything else, with its traceback.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises to here in place of exiting by itself
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    # A scheduler ends a job by SIGTERM: the run then stops as by Ctrl-C, and can be continued.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    task = Task(job, failed, name)
    main = hydra.main(config_path=str(conf_dir()), config_name=door, version_base="1.3")(task)
    try:
        main()
        if finished is not None and task.outcomes:
            finished(task.outcomes)
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {_explain(door, error)}", file=sys.stderr)
        sys.exit(2)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    sys.exit(max((outcome.code for outcome in task.outcomes), default=0))


def _explain(door: str, error: Exception) -> str:
    """Hydra's complaint about the command line, in one sentence that names the nearest key."""
    text = str(error)
    if match := re.search(r"Could not find '([\w/]+)/([^'/]+)'", text):
        group, option = match.groups()
        if option in SWEEP_PLUGINS:
            return f"{group}: {option} is not installed; pip install 'drbode[sweep]'"
        # Hydra's list also has the options of a folder of the user.
        options = re.findall(r"^\t(\S+)$", text, re.MULTILINE) or groups().get(group, [])
        return (
            f"{group}: there is no option {option}; expected {one_of(options)}"
            f"{nearest(option, options)}"
        )
    if match := re.search(r"Could not (?:override|delete|append to config)[^']*'([^']+)'", text):
        key = match.group(1).split("=")[0]
        valid = [*keys(compose(door)), *groups()]
        if key in valid:
            return f"{key}: a key that it does not have yet is added as +{key}.name=value"
        return f"{key}: there is no such key{nearest(key, valid)} (--help lists all)"
    if match := re.search(r"^(.*?)(?:\n|$)", text):
        text = match.group(1)
    return (
        f"the command line: {text}; expected key=value, or 'key=\"value\"' for text with accents "
        "(--help shows examples)"
    )
