"""Multiruns: in one process and in others, as grids and as searches, and what is run again.

Most go through a door that is open like train's and whose jobs do next to nothing.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from omegaconf import OmegaConf

from drbode import config, multirun, train
from drbode.config import BadInput
from tests import offline_wandb
from tests.conftest import NO_GENERAL
from tests.test_train import door

ROOT = Path(__file__).parent.parent

DOOR = """
import json, os, sys
from pathlib import Path
from drbode import config

def job(tree, overrides, multirun):
    rate, seed = tree["sft"]["learning_rate"], tree["seed"]
    folder = Path(tree["output_dir"]) / name(tree)
    folder.mkdir(parents=True)
    mine = {"pid": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS")}
    (folder / "ran.json").write_text(json.dumps(mine))
    if seed == 7:
        raise config.BadInput("seed: not 7")
    if seed == 8:
        raise ValueError("eight")
    if seed == 9:
        os._exit(1)
    if rate != "auto" and rate > 0.002:
        raise ValueError("it diverges")
    return config.Done(folder, None if rate == "auto" else -abs(rate - 1e-3))

def failed(tree, overrides, error):
    folder = Path(tree["output_dir"]) / name(tree)
    (folder / "failed").write_text(str(error))
    return config.Done(folder)

def name(tree):
    return config.load(tree, (), multirun=True).run_name()

if __name__ == "__main__":
    config.open_door("train", job, failed, name)
"""


def small_door(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    (cwd / "small.py").write_text(DOOR)
    kept = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return subprocess.run(
        [sys.executable, "small.py", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
    )


def ran(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in folder.glob("outputs/*/ran.json")]


# --- in other processes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("launcher", "threads"),
    [
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], max(1, os.cpu_count() // 2)),
        (["hydra/launcher=submitit_local"], max(1, os.cpu_count() // 4)),
    ],
)
def test_jobs_in_other_processes_share_threads_and_fail_alone(
    launcher: list[str], threads: int, tmp_path: Path
) -> None:
    words = ["-m", *launcher, "method=full", "lora.r=4,8", "seed=0,1,7,8"]
    done = small_door(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stdout.count("run once") == 4
    jobs = ran(tmp_path)
    assert len(jobs) == 4
    assert {int(j["threads"]) for j in jobs} == {threads}
    assert len({j["pid"] for j in jobs}) > 1
    told = sorted(p.read_text() for p in tmp_path.glob("outputs/*/failed"))
    assert told == ["eight", "seed: not 7"]
    failures = re.findall(r"failed: .* seed=(\d)\b.*: (?:seed: not 7|eight)", done.stderr)
    assert sorted(failures) == ["7", "8"]


@pytest.mark.parametrize(
    ("launcher", "options", "jobs", "threads"),
    [
        ("basic", {}, 4, None),
        ("joblib", {"n_jobs": 2}, 4, 4),
        ("joblib", {"n_jobs": 2}, 1, 8),
        ("joblib", {"n_jobs": -1}, 40, 1),
        ("joblib", {"n_jobs": 99}, 40, 1),
        ("submitit_local", {}, 3, 2),
        ("submitit_slurm", {"cpus_per_task": 6}, 40, 6),
        ("submitit_slurm", {"cpus_per_task": None}, 40, 1),
    ],
)
def test_eight_cores_are_shared_by_the_jobs_that_run_at_a_time(
    launcher: str,
    options: dict[str, Any],
    jobs: int,
    threads: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(multirun, "_cores", lambda: 8)
    assert multirun._threads(launcher, OmegaConf.create(options), jobs) == threads


def test_the_exit_code_is_that_of_the_jobs_and_threads_asked_for_stand(tmp_path: Path) -> None:
    words = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,8"]
    done = small_door(*words, cwd=tmp_path, OMP_NUM_THREADS="5")
    assert done.returncode == 1
    assert {j["threads"] for j in ran(tmp_path)} == {"5"}


def test_a_process_that_dies_is_told_in_a_sentence(tmp_path: Path) -> None:
    words = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,9"]
    done = small_door(*words, cwd=tmp_path)
    assert done.returncode == 1
    assert "a job's process ended without a word" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("launcher", config.SWEEP_PLUGINS)
def test_a_launcher_that_is_not_installed_is_told_with_what_to_do(
    launcher: str, tmp_path: Path
) -> None:
    """As where `hydra_plugins` holds no package but this one's."""
    (tmp_path / "hydra_plugins").mkdir()
    path = f"__path__ = [{str(ROOT / 'hydra_plugins')!r}]"
    (tmp_path / "hydra_plugins" / "__init__.py").write_text(path)
    paths = f"{tmp_path}:{ROOT}"
    done = small_door("-m", f"hydra/launcher={launcher}", cwd=tmp_path, PYTHONPATH=paths)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: hydra/launcher: {launcher} is not installed; pip install 'drbode[sweep]'\n"
    )


# --- in one process, and again -----------------------------------------------------------------

CELLS = ["sft.max_tokens=16384,1024", "lora.r=4,8", "seed=0,-1"]
GRID = [
    "method=full",
    "sft.steps=1",
    "sft.global_batch_size=128",
    "benchmark.questions=4",
    *NO_GENERAL,
    "trainer.progress=false",
    "trainer.threads=1",
]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("grid")
    return folder, door("train", "-m", *CELLS, *GRID, cwd=folder)


def finished(folder: Path) -> dict[int, tuple[Path, dict[str, Any]]]:
    """The finished runs by their `sft.max_tokens`."""
    read = {p.parent: json.loads(p.read_text()) for p in folder.glob("outputs/*/record.json")}
    return {
        r["config"]["sft"]["max_tokens"]: (p, r)
        for p, r in read.items()
        if r["status"] == "finished"
    }


def wandb_run(folder: Path) -> tuple[Any, dict[str, Any], set[str]]:
    """The one offline W&B run in a folder, read back, with its config and metrics."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    found, metrics = None, set()
    for row in offline_wandb.records(path):
        if row.WhichOneof("record_type") == "run":
            found = row.run
        for item in row.history.item:
            metrics.add(item.key or item.nested_key[0])
    assert found is not None
    asked = {u.key: json.loads(u.value_json) for u in found.config.update}
    return found, asked, metrics


def test_equal_jobs_run_once_and_failed_ones_leave_a_record(grid: Any) -> None:
    folder, done = grid
    assert done.returncode == 2, done.stderr
    assert done.stdout.count("run once") == 2
    assert set(finished(folder)) == {1024, 16384}
    records = [json.loads(p.read_text()) for p in folder.glob("outputs/*/record.json")]
    failed = [r for r in records if r["status"] == "failed"]
    assert len(failed) == 4
    assert all("seed: expected" in r["error"] for r in failed)


def test_a_multirun_ends_in_the_table_of_its_jobs(grid: Any) -> None:
    """In the terminal, on disk, and in W&B in the group of the jobs; failed ones stand in it."""
    folder, done = grid
    shown = done.stdout[done.stdout.index("what came out") :]
    assert "no result (BadInput: seed: expected" in shown
    assert "with one seed nothing tells" in shown
    (table,) = folder.glob("outputs/tables/sft.max_tokens-lora.r-seed-*")
    text = (table / "table.md").read_text()
    for size in (1024, 16384):
        assert f"sft.max_tokens={size}" in text
    assert {"index.html", "table.csv", "table.tex", "pareto.png"} <= set(os.listdir(table))
    summary, _, metrics = wandb_run(table)
    jobs = [wandb_run(run)[0] for run, _ in finished(folder).values()]
    assert {job.run_group for job in jobs} == {summary.run_group}
    assert summary.run_group.startswith("multirun 20")
    assert {"table", "pareto"} <= metrics


def test_each_job_of_a_process_has_a_wandb_run_and_a_memory_peak_of_its_own(grid: Any) -> None:
    runs = finished(grid[0])
    ids = set()
    for size, (folder, _) in runs.items():
        logged, asked, metrics = wandb_run(folder)
        ids.add(logged.run_id)
        assert logged.display_name == folder.name
        assert asked["sft"]["max_tokens"] == size
        assert "sft/benchmark/accuracy" in metrics
    assert len(ids) == 2
    peaks = {size: r["stages"]["sft"]["peak_memory_gib"] for size, (_, r) in runs.items()}
    assert peaks[1024] < peaks[16384] - 0.1  # which came first, in the same process


def test_a_job_after_another_is_what_it_is_alone(
    grid: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["sft.max_tokens=1024", *GRID, "logger=csv"]
    train.job(config.compose("train", words), words, False)
    alone, after = (finished(f)[1024][1]["stages"]["sft"] for f in (tmp_path, grid[0]))
    assert alone["validation_loss"] == after["validation_loss"]
    assert alone["train_loss"] == after["train_loss"]


def test_the_same_command_runs_what_is_missing_or_failed(grid: Any) -> None:
    folder, _ = grid
    small, large = (finished(folder)[size][0] / "record.json" for size in (1024, 16384))
    written = large.stat().st_mtime_ns
    small.unlink()
    done = door("train", "-m", *CELLS, *GRID, cwd=folder)
    assert done.stdout.count("is finished") == 1
    assert done.stdout.count("trained before") == 1
    assert done.stderr.count("failed: ") == 4  # tried again, as they are as wrong as they were
    assert small.exists()
    assert large.stat().st_mtime_ns == written


def test_a_failed_run_is_tried_again(
    grid: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(grid[0])
    path = finished(grid[0])[1024][0] / "record.json"
    record = json.loads(path.read_text())
    words = ["sft.max_tokens=1024", *GRID]
    train.job(config.compose("train", words), words, True)
    assert "is finished" in capsys.readouterr().out
    path.write_text(json.dumps(record | {"status": "failed", "error": "no", "stages": {}}))
    train.job(config.compose("train", words), words, True)
    assert json.loads(path.read_text())["status"] == "finished"


def test_threads_of_one_job_are_not_those_of_the_next() -> None:
    import torch

    from drbode.models.machine import THREADS, resolve

    asked = [
        config.load(config.compose("train", [f"trainer.threads={n}"]), []) for n in (3, "auto")
    ]
    found = [resolve(a.trainer, a.model, a.traits).threads for a in asked]
    torch.set_num_threads(1)
    assert found == [3, THREADS]


# --- a search ----------------------------------------------------------------------------------

SEARCH = ["sweep=search", "method=full", "hydra.sweeper.startup=2"]


def trials(folder: Path, state: str) -> list[dict[str, Any]]:
    storage = f"sqlite:///{folder}/outputs/search.db"
    (name,) = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    return [t.params for t in study.trials if t.state.name == state]


def test_a_search_goes_on_from_where_it_stopped_and_failures_do_not_end_it(tmp_path: Path) -> None:
    done = small_door(*SEARCH, "hydra.sweeper.trials=4", cwd=tmp_path)
    complete, failed = trials(tmp_path, "COMPLETE"), trials(tmp_path, "FAIL")
    assert len(complete) + len(failed) == 4
    assert failed  # rates that diverge
    assert done.returncode == 1
    best = min((abs(t["sft.learning_rate"] - 1e-3), t["sft.learning_rate"]) for t in complete)
    assert f"best accuracy: {-best[0]:.4f} with sft.learning_rate={best[1]}" in done.stdout
    again = small_door(*SEARCH, "hydra.sweeper.trials=4", cwd=tmp_path)
    assert f"{len(complete)} trials are finished, of 4" in again.stdout
    assert len(trials(tmp_path, "COMPLETE")) + len(trials(tmp_path, "FAIL")) == 4 + len(failed)
    count = len(trials(tmp_path, "COMPLETE"))
    drawn = [t["sft.learning_rate"] for t in trials(tmp_path, "COMPLETE")]
    assert len(set(drawn)) == len(drawn)
    done = small_door(*SEARCH, f"hydra.sweeper.trials={count}", cwd=tmp_path)
    assert done.returncode == 0
    assert "===" not in done.stdout


def test_a_trial_that_was_interrupted_is_taken_up_and_none_is_drawn_twice(tmp_path: Path) -> None:
    at_random = [*SEARCH, "hydra.sweeper.startup=9"]
    small_door(*at_random, "hydra.sweeper.trials=1", cwd=tmp_path)
    storage = f"sqlite:///{tmp_path}/outputs/search.db"
    (name,) = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    space = study.trials[0].distributions
    stopped = study.ask(space).params
    small_door(*at_random, "hydra.sweeper.trials=2", cwd=tmp_path)
    # It stands there once as interrupted, and once as it came out.
    assert [*trials(tmp_path, "COMPLETE")[1:], *trials(tmp_path, "FAIL")[1:]] == [stopped]
    small_door(*at_random, "hydra.sweeper.trials=3", cwd=tmp_path)
    drawn = [*trials(tmp_path, "COMPLETE"), *trials(tmp_path, "FAIL")]
    assert len({t["sft.learning_rate"] for t in drawn}) == len(drawn) - 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["-m", "hydra/sweeper=optuna", "seed=1,2"],
            ["objective", "maximises one", "validation_loss"],
        ),
        (["sweep=search", "benchmark.split=test"], ["benchmark.split", "set benchmark.split=val"]),
        (["sweep=search", "benchmark.split=validation,test"], ["benchmark.split", "got test"]),
        (["sweep=search", "hydra.sweeper.trials=0"], ["hydra.sweeper.trials", "at least 1"]),
        (["sweep=search", "sft.learning_rate=1e-3"], ["nothing is searched"]),
        (["-m", "seed=1,2", "objective=accuracy"], ["objective", "only a search"]),
        (["objective=accuracy"], ["objective", "only a search"]),
        (["-m", "sft.learning_rate=interval(1e-4,1e-2)"], ["sft.learning_rate", "interval"]),
        (["-m", "hydra/launcher=jobli"], ["hydra/launcher", "no option jobli", "mean joblib?"]),
        (["-m", "lora.rr=1,2"], ["lora.rr", "did you mean lora.r"]),
    ],
)
def test_what_cannot_be_searched_is_told_in_a_sentence(
    words: list[str], expected: list[str], tmp_path: Path
) -> None:
    done = door("train", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    for word in expected:
        assert word in done.stderr
    assert not list(tmp_path.glob("outputs/*/record.json"))


def test_a_loss_needs_rows_to_be_taken_of(tmp_path: Path) -> None:
    words = ["objective=validation_loss", "sft.data.path=x", "sft.data.validation_share=0"]
    with pytest.raises(BadInput, match=r"objective: sft, the last stage, has no validation rows"):
        config.load(config.compose("train", words), words, True)


def test_what_is_searched_for_makes_no_other_run() -> None:
    names = {
        config.load(config.compose("train", words), words, True).run_name()
        for words in ([], ["objective=accuracy"], ["objective=validation_loss"])
    }
    assert len(names) == 1


# --- with real jobs ----------------------------------------------------------------------------

REAL = [*NO_GENERAL, "sft.steps=1", "benchmark.questions=4", "logger=csv", "trainer.progress=false"]


@pytest.mark.slow
def test_a_search_of_three_real_trials_two_at_a_time(tmp_path: Path) -> None:
    words = ["sweep=search", "objective=validation_loss", "hydra.sweeper.trials=3"]
    words += ["hydra.sweeper.parallel=2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = door("train", *words, *REAL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    losses = [
        json.loads(p.read_text())["stages"]["sft"]["validation_loss"]
        for p in tmp_path.glob("outputs/*/record.json")
    ]
    assert len(losses) == 3
    assert f"best validation_loss: {-min(losses):.4f}" in done.stdout


@pytest.mark.slow
def test_two_real_jobs_by_submitit_train_their_common_stage_once(tmp_path: Path) -> None:
    """The second waits for the first's stage, and takes it from there."""
    words = ["-m", "hydra/launcher=submitit_local", "benchmark.questions=4,5"]
    done = door("train", *words, *(w for w in REAL if "questions" not in w), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done: ") == 2
    assert len(list(tmp_path.glob("outputs/.cache/stages/*/result.json"))) == 1
    said = "".join(p.read_text() for p in tmp_path.glob("outputs/.multirun/.submitit/*/*.out"))
    assert said.count("trained before") == 1


# --- W&B's own sweeps --------------------------------------------------------------------------


def test_the_wandb_sweep_file_gives_arguments_that_the_door_takes() -> None:
    sweep = yaml.safe_load((ROOT / "experiments/wandb_sweep.yaml").read_text())
    command = sweep["command"]
    assert command[command.index("-m") + 1 :][0] == "${program}"
    assert sweep["program"] == "drbode.train"
    words = [w for w in command if "=" in w]
    stage, _, measure = sweep["metric"]["name"].partition("/")
    assert measure == "benchmark/accuracy"
    for pick in (min, max):
        values = {
            key: pick(p["values"]) if "values" in p else p[pick.__name__]
            for key, p in sweep["parameters"].items()
        }
        asked = [*words, *(f"{key}={value}" for key, value in values.items())]
        found = config.load(config.compose("train", asked), asked)
        assert stage in found.stages
        assert (found.benchmark.split, found.wandb.mode) == ("validation", "online")
