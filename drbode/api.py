"""The program from Python: train, evaluate, compare and load, as the command line does.

    from drbode.api import compare, train

    runs = [train("method=lora", f"seed={seed}") for seed in (0, 1)]
    table = compare([run.folder for run in runs])

Every function takes the words of the command line, `key=value`. For a mistake in them it raises
BadInput, whose text says what to do. Importing this module imports no torch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from drbode import config
from drbode import evaluate as evaluate_door
from drbode import train as train_door
from drbode.config import BadInput
from drbode.record import Run, read_record

if TYPE_CHECKING:
    from drbode.models.base import Policy
    from drbode.reporting.table import AblationTable

__all__ = ["BadInput", "Run", "compare", "evaluate", "load", "train"]


def train(*overrides: str) -> Run:
    """`python -m drbode.train`: makes a run, or takes up the one of the same settings.

    The run's `record` holds what it came to: `run.record.measures["sft/accuracy"]`. A sweep is a
    loop over calls. Raises BadInput for settings that do not fit, or input that is malformed.
    """
    tree = config.compose("train", overrides)
    return _run(train_door.job(tree, list(overrides), multirun=False).folder)


def evaluate(*overrides: str) -> Run:
    """`python -m drbode.evaluate`: scores a model on a benchmark; raises BadInput as `train`."""
    tree = config.compose("evaluate", overrides)
    return _run(evaluate_door.job(tree, list(overrides), multirun=False).folder)


def compare(
    folders: Sequence[Path | str], baseline: str | None = None, measure: str = "accuracy"
) -> "AblationTable":
    """The table of some runs: variants over their seeds, and which differences are real.

    `baseline` is a variant's overrides, the first run's where it is None; `measure` is what
    variants are compared by. `to_markdown()` and `to_csv()` write the table, and
    `drbode.reporting.figures` draws it. Raises BadInput where a folder holds no whole record.
    """
    from drbode.reporting.runs import read_runs
    from drbode.reporting.table import build_table

    runs, complaints = read_runs([Path(folder) / "record.json" for folder in folders])
    if complaints or not runs:
        raise BadInput("\n".join(complaints) or "folders: there is no run to compare; give some")
    return build_table(runs, baseline, measure)


def load(path: Path | str, *overrides: str) -> "Policy":
    """The model of a stage's folder, such as `run.folder / "sft"`, with its tokenizer.

    `policy.network` is the transformers or peft model and `policy.tokenizer` its tokenizer. Raises
    BadInput where the model is not to be had.
    """
    from drbode.models import machine as machines
    from drbode.models.base import load_policy, quantization_of

    tree = config.compose("evaluate", [f"model.path='{path}'", *overrides])
    settings = config.build(config.EvaluateConfig, tree)
    machine = machines.resolve(settings.trainer, settings.model, None)
    policy = load_policy(
        settings.model,
        machine.torch_dtype,
        machine.attention,
        quantization=quantization_of(settings.model),
        kind=None,
    )
    policy.network.to(machine.accelerator)
    return policy


def _run(folder: Path) -> Run:
    record = read_record(folder)
    assert record is not None, "the run has just written it"
    return Run(folder, record)
