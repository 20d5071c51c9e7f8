"""python -m drbode.train: takes a model through stages of training, measured before and after."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drbode import config
from drbode.config import Done, Outcome, TrainConfig

if TYPE_CHECKING:
    from drbode.record import Record


def job(tree: Mapping[str, Any], overrides: list[str], multirun: bool) -> Done:
    """What Hydra calls, once a run or once a job of a multirun."""
    return train(config.load(tree, overrides, multirun), overrides)


def name(tree: Mapping[str, Any]) -> str:
    """The run that a job of a multirun would make."""
    return config.load(tree, (), multirun=True).run_name()


def failed(tree: Mapping[str, Any], overrides: list[str], error: Exception) -> Done:
    """A job of a multirun that came to nothing still leaves a record that says why."""
    from drbode import record

    try:
        run = name(tree)
    except config.BadInput:
        run = f"invalid-{config.digest(overrides)}"
    folder = Path(tree["output_dir"]) / run
    if not (folder / "record.json").exists():
        record.write_failed(folder, overrides, error)
    return Done(folder)


def train(settings: TrainConfig, overrides: list[str]) -> Done:
    """Makes a run, goes on with it, or shows it where it has been done."""
    from drbode import record
    from drbode.reporting import summary

    folder = Path(settings.output_dir) / settings.run_name()
    with record.open_run(folder, settings.effective(), overrides, settings.force) as run:
        if run.finished:
            print(f"{folder} is finished; force=true does it again")
        else:
            # Heavy imports stand here, so that --help and a mistake are answered without them.
            from drbode.session.session import run_session

            run_session(settings.resolved(), run)
        summary.show_run(run)
    return Done(folder, _objective(settings, run.record), settings.wandb)


def finished(outcomes: list[Outcome]) -> None:
    """The table of a multirun's jobs, which ends it."""
    from drbode.reporting import outputs

    folders = list(dict.fromkeys(o.done.folder for o in outcomes if o.done is not None))
    records = [folder / "record.json" for folder in folders]
    if not records:
        return
    words = [word.partition("=") for outcome in outcomes for word in outcome.overrides]
    keys = dict.fromkeys(key for key, _, _ in words)
    swept = [key for key in keys if len({value for k, _, value in words if k == key}) > 1]
    name = "-".join([*swept, config.digest(sorted(folder.name for folder in folders))])
    wandb = next((o.done.wandb for o in outcomes if o.done and o.done.wandb), None)
    print()
    outputs.report(records, folders[0].parent / "tables" / name.replace("/", "."), wandb=wandb)


def _objective(settings: TrainConfig, record: "Record") -> float | None:
    """What a search maximises, after the last stage; a loss counts as its negative."""
    last = record.stages[settings.stages[-1]]
    match settings.objective:
        case "accuracy":
            return float(last.summary["accuracy"])
        case "validation_loss":
            assert last.validation_loss is not None, "one of the rules"
            return -last.validation_loss
        case None:
            return None


if __name__ == "__main__":
    config.open_door("train", job, failed, name, finished)
