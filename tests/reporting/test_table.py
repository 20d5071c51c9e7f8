"""The ablation table on records made by hand: variants, tests, notes, and every format."""

import csv
import io
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy import stats
from statsmodels.stats.multitest import multipletests

from drbode import report
from drbode.config import BadInput
from drbode.record import Inputs, Measured, Record, from_json, measures_of
from drbode.reporting import outputs
from drbode.reporting.figures import figures
from drbode.reporting.page import to_html
from drbode.reporting.runs import read_runs, record_files
from drbode.reporting.table import AblationTable, build_table
from tests import offline_wandb
from tests.conftest import stage_record
from tests.test_train import door

ACCURACY = {  # by method and seed
    "lora": [0.70, 0.72, 0.74, 0.71, 0.73],
    "full": [0.80, 0.83, 0.82, 0.80, 0.84],
    "bitfit": [0.30, 0.33, 0.31, 0.29, 0.32],
    "adapter": [0.71, 0.70, 0.75, 0.72, 0.72],
}


def record(words: list[str], accuracy: float | None, **changes: Any) -> dict[str, Any]:
    """What a run leaves, as far as a table reads it; `accuracy` None: it failed."""
    pairs = dict(word.split("=", 1) for word in words)
    rows = {"global_batch_size": 8, "epochs": 1.0, "steps": None, "tokens": None, "data": {}}
    config = {
        "stages": ["sft"],
        "seed": int(pairs["seed"]),
        "method": pairs.get("method", "lora"),
        "lora": {"r": int(pairs.get("lora.r", 32))},
        "sft": rows | {"learning_rate": float(pairs.get("sft.learning_rate", 1e-3))},
        "trainer": {"threads": pairs.get("trainer.threads", "auto")},
    }
    if config["method"] not in ("lora", "qlora"):
        del config["lora"]
    data: dict[str, Any] = {
        "schema": 2,
        "started": f"2026-01-01T00:00:{len(words):02}{pairs['seed']}",
        "ended": "2026-01-01T00:01:00",
        "status": "finished",
        "overrides": [*words, "logger=csv"],
        "config": config,
        "versions": {"torch": "2"},
        "code": "abc",
        "git": None,
    }
    if accuracy is None:
        return data | {"status": "failed", "error": "BadInput: it is too hot"}
    part = {"accuracy": accuracy}
    summary = part | {"questions": 200, "parts": {"fáceis": part, "difíceis": part}}
    stage = replace(
        stage_record(),
        summary=summary,
        validation_loss=1 - accuracy,
        measures={"logp_accuracy": 0.9, "unheard_of": 3.0, "accuracy": 1.0},
        artefact_bytes=1 << 20,
        seconds=10.0 + len(config["method"]),
        tokens=5000,
    )
    made = Record(
        **data,
        base=Measured(summary=summary, cost={}, forgetting={}),
        stages={"sft": stage},
        model={"trainable_parameters": 1000 * len(config["method"])},
        data=Inputs(stages={}, benchmark={"digest": "d"}),
        machine={"cpu": "c", "accelerator": "cpu", "precision": "p", "dtype": "fp32"},
    )
    return with_measures(made) | changes


def with_measures(made: Record | dict[str, Any]) -> dict[str, Any]:
    """The data of a record as a run saves it."""
    made = from_json(made) if isinstance(made, dict) else made
    return asdict(replace(made, measures=measures_of(made)))


def store(folder: Path, name: str, data: dict[str, Any]) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "record.json").write_text(json.dumps(data))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Four methods, five seeds."""
    folder = tmp_path / "study"
    for method, values in ACCURACY.items():
        for seed, accuracy in enumerate(values):
            words = [f"method={method}", f"seed={seed}"]
            store(folder, f"{method}-{seed}", record(words, accuracy))
    return folder


def table_of(folder: Path, **words: Any) -> AblationTable:
    runs, complaints = read_runs(record_files(folder))
    assert not complaints
    return build_table(runs, **words)


def test_differences_are_paired_by_seed_and_adjusted_over_the_rows(study: Path) -> None:
    table = table_of(study, baseline="method=lora")
    assert table.baseline == "method=lora"
    rows = {row.name: row for row in table.rows}
    assert set(rows) == {f"method={m}" for m in ACCURACY}
    others = [m for m in ACCURACY if m != "lora"]
    p_values = [stats.ttest_rel(ACCURACY[m], ACCURACY["lora"]).pvalue for m in others]
    adjusted = multipletests(p_values, method="holm")[1]
    for method, p_value in zip(others, adjusted, strict=True):
        row = rows[f"method={method}"]
        assert row.difference is not None
        assert row.difference.paired
        assert row.p_value == pytest.approx(p_value)
    assert rows["method=lora"].difference is None


def test_the_best_group_is_what_no_test_tells_from_the_best(study: Path) -> None:
    assert {row.name for row in table_of(study).rows if row.best} == {"method=full"}
    for seed, accuracy in enumerate([0.82, 0.81, 0.83, 0.79, 0.85]):  # a twin of full
        words = ["method=full", "sft.learning_rate=0.1", f"seed={seed}"]
        store(study, f"twin-{seed}", record(words, accuracy))
    best = {row.name for row in table_of(study).rows if row.best}
    assert best == {"method=full", "method=full sft.learning_rate=0.1"}
    lowest = table_of(study, measure_name="validation_loss")  # lower is better there
    assert lowest.measure == "sft/validation/loss"
    assert {row.name for row in lowest.rows if row.best} == best


def test_other_data_in_a_stage_are_not_paired(study: Path) -> None:
    for seed, accuracy in enumerate(ACCURACY["lora"]):
        words = ["method=lora", "sft.epochs=3", f"seed={seed}"]
        data = record(words, accuracy + 0.01 * seed)
        data["config"]["sft"]["epochs"] = 3.0
        store(study, f"long-{seed}", data)
    row = next(r for r in table_of(study, baseline="method=lora").rows if "epochs" in r.name)
    assert row.difference is not None
    assert not row.difference.paired


def test_one_seed_gives_no_p_value_and_says_why(tmp_path: Path) -> None:
    for method in ("lora", "full"):
        store(tmp_path, method, record([f"method={method}", "seed=0"], ACCURACY[method][0]))
    table = table_of(tmp_path)
    assert all(row.p_value is None and not row.best for row in table.rows)
    assert table.rows[1].difference is not None
    assert any("with one seed nothing tells" in note for note in table.notes)
    assert not any("power" in note for note in table.notes)


def test_the_notes_say_what_the_table_could_see(study: Path) -> None:
    notes = " ".join(table_of(study, baseline="method=lora").notes)
    assert "Seeds 0, 1, 2, 3, 4; questions 200" in notes
    assert "spreads over its 5 seeds by 1.6" in notes  # of 70, 72, 74, 71 and 73
    assert "Holm over 3 rows" in notes
    match = re.search(r"80 % power to see a difference of (\d+\.\d)", notes)
    assert match is not None
    assert 1 < float(match[1]) < 6


def test_accuracy_on_questions_not_trained_on_has_its_column(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.6, 0.8)):
        data = record([f"seed={seed}"], accuracy)
        data["stages"]["sft"]["summary"]["clean"] = {"accuracy": accuracy / 2}
        store(tmp_path, f"run-{seed}", with_measures(data))
    heads, (row,) = table_of(tmp_path).grid()
    assert row[heads.index("not trained on, %")].text == "35.0"


def test_a_run_that_ends_in_a_reward_model_shows_the_accuracy_on_the_benchmark(
    tmp_path: Path,
) -> None:
    """And that of the reward model, on pairs, under another name."""
    for seed, accuracy in enumerate((0.55, 0.6)):
        data = record([f"seed={seed}"], accuracy)
        reward = {"measures": {"accuracy": 1.0, "calibration_error": 0.01}, "validation_loss": 0.1}
        data["stages"]["reward"] = data["stages"]["sft"] | reward
        data["config"] |= {"stages": ["sft", "reward"], "reward": data["config"]["sft"]}
        store(tmp_path, f"run-{seed}", with_measures(data))
    table = table_of(tmp_path)
    (row,) = table.rows
    assert row.of("accuracy") == [0.55, 0.6]
    assert row.of("validation/accuracy") == [1.0, 1.0]
    assert row.of("reward/validation/loss") == [0.1, 0.1]
    heads, (cells,) = table.grid()
    assert cells[heads.index("accuracy, %")].text.startswith("57.5")
    assert cells[heads.index("pairs ranked right, %")].text == "100.0"
    assert heads.index("validation loss of reward")
    assert "validation loss of sft" not in heads


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        ("accuracy", "accuracy", 0.6),
        ("sft/accuracy", "sft/accuracy", 0.5),
        ("base/accuracy", "base/accuracy", 0.5),
        ("logp_accuracy", "validation/logp_accuracy", 0.9),
        ("dpo/kl", "dpo/validation/kl", 2.0),
        ("validation_loss", "dpo/validation/loss", 0.3),
        ("sft/validation_loss", "sft/validation/loss", 0.5),
        ("seconds", "seconds", 28.0),
        ("sft/seconds", "sft/seconds", 14.0),
    ],
)
def test_a_table_compares_by_what_was_measured_last_or_after_one_stage(
    typed: str, name: str, value: float, tmp_path: Path
) -> None:
    data = record(["seed=0"], 0.5)
    stage = data["stages"]["sft"]
    changes = {"summary": stage["summary"] | {"accuracy": 0.6}, "validation_loss": 0.3}
    data["stages"]["dpo"] = stage | changes | {"measures": {"kl": 2.0}}
    data["config"] |= {"stages": ["sft", "dpo"], "dpo": data["config"]["sft"]}
    store(tmp_path, "run", with_measures(data))
    table = table_of(tmp_path, measure_name=typed)
    assert table.measure == name
    assert table.rows[0].of(name) == [pytest.approx(value)]
    assert name in table.names


def test_losses_of_different_stages_do_not_share_a_column(tmp_path: Path) -> None:
    for last in ("sft", "cpt"):
        data = record([f"stages=[{last}]", "seed=0"], 0.5)
        data["stages"] = {last: data["stages"]["sft"]}
        data["config"] |= {"stages": [last], last: data["config"]["sft"]}
        store(tmp_path, last, with_measures(data))
    assert {"sft/validation/loss", "cpt/validation/loss"} <= set(table_of(tmp_path).names)
    with pytest.raises(BadInput, match=r"several stages have validation_loss; .*sft/validation"):
        table_of(tmp_path, measure_name="validation_loss")


def test_a_comparison_at_equal_cost_says_so(tmp_path: Path) -> None:
    for number, steps in enumerate((40, 40, 50)):
        data = record([f"lora.r={number + 1}", "seed=0"], 0.5)
        data["config"]["stages"] = ["sft", "dpo"]
        data["config"]["sft"]["steps"] = steps
        data["config"]["dpo"] = data["config"]["sft"] | {"steps": 10}
        store(tmp_path, str(number), data)
        said = [n for n in table_of(tmp_path).notes if n.startswith("Equal cost")]
        assert said == (["Equal cost: every run took 50 optimizer steps."] * (number == 1))


def test_a_failed_run_stands_with_its_reason_and_the_rest_is_compared(study: Path) -> None:
    store(study, "failed", record(["method=lora", "seed=5"], None))
    early = {
        "status": "failed",
        "overrides": ["method=lora", "seed=-1"],
        "error": "BadInput: seed: expected a whole number",
        "ended": "2026-01-01T00:00:00",
    }
    store(study, "early", early)
    table = table_of(study, baseline="method=lora")
    row = next(r for r in table.rows if r.name == "method=lora")
    assert row.failed == {
        5: "BadInput: it is too hot",
        -1: "BadInput: seed: expected a whole number",
    }
    assert len(row.seeds) == 5
    assert "method=lora, seed 5: no result (BadInput: it is too hot)." in table.notes
    assert "5 (2 failed)" in table.to_markdown()


def test_cells_that_came_to_the_same_run_are_one_variant(study: Path) -> None:
    """And what a run does not read is no part of its name."""
    for seed, accuracy in enumerate(ACCURACY["full"]):
        store(study, f"x{seed}", record(["method=full", "lora.r=4", f"seed={seed}"], accuracy))
    names = [row.name for row in table_of(study).rows]
    assert sorted(names) == sorted(f"method={m}" for m in ACCURACY)


@pytest.mark.parametrize(
    ("change", "mark"),
    [
        ({"versions": {"torch": "3"}}, "†"),
        ({"code": "def"}, "‡"),
        ({"data": {"stages": {}, "benchmark": {"digest": "e"}}}, "§"),
        (
            {"machine": {"cpu": "d", "accelerator": "cpu", "precision": "p", "dtype": "fp32"}},
            "¶",
        ),
    ],
)
def test_a_row_that_differs_in_what_should_be_equal_is_marked(
    change: dict[str, Any], mark: str, study: Path
) -> None:
    store(study, "odd", record(["method=full", "lora.r=2", "seed=9"], 0.8, **change))
    table = table_of(study, baseline="method=lora")
    marked = [row[0].text for row in table.grid()[1] if mark in row[0].text]
    assert [m.rstrip("*†‡§¶") for m in marked] == ["method=full"]
    assert any(note.startswith(mark) for note in table.notes)


def test_every_format_holds_the_same_numbers(study: Path) -> None:
    table = table_of(study, baseline="method=lora")
    console = Console(width=200, file=io.StringIO(), record=True)
    for piece in table.to_terminal():
        console.print(piece)
    shown = console.export_text()
    flat = list(csv.DictReader(io.StringIO(table.to_csv())))
    for text in (shown, table.to_markdown(), table.to_latex(), to_html(table, {}, "t")):
        for mean in ("72.0", "81.8", "31.0"):
            assert mean in text
        assert "method=full" in text
    assert r"accuracy, \%" in table.to_latex()
    assert {row["variant"] for row in flat} == {f"method={m}" for m in ACCURACY}
    lora = next(row for row in flat if row["variant"] == "method=lora")
    assert float(lora["accuracy"]) == pytest.approx(0.72)
    assert float(lora["accuracy sd"]) == pytest.approx(0.0158, abs=1e-4)
    assert float(lora["validation/unheard_of"]) == 3.0  # which is in no registry
    assert "unheard of" in shown


def test_the_page_is_whole_in_itself(study: Path) -> None:
    table = table_of(study)
    page = to_html(table, figures(table), "a <title>")
    assert "a &lt;title&gt;" in page
    assert page.count("<svg") == len(figures(table)) >= 2
    outside = re.findall(r"""(?:src|href)=["'](?!#|data:)([^"']+)""", page)
    assert not outside


def test_figures_follow_what_was_swept(tmp_path: Path) -> None:
    for rank in (2, 8, 32):
        for seed in range(2):
            words = [f"lora.r={rank}", f"seed={seed}"]
            store(tmp_path, f"{rank}-{seed}", record(words, 0.5 + rank / 100 + seed / 50))
    drawn = figures(table_of(tmp_path))
    assert set(drawn) == {"intervals", "pareto", "over"}
    axes = drawn["over"].axes[0]
    assert axes.get_xlabel() == "lora.r"
    assert axes.get_xscale() == "log"
    assert axes.lines[0].get_xdata().tolist() == [2, 8, 32]
    (tmp_path / "2-0" / "metrics.csv").write_text(
        "step,stage,split,name,value\n5,sft,validation,loss,1.5\n9,sft,validation,loss,1.0\n"
    )
    line = figures(table_of(tmp_path))["curves"].axes[0].lines[0]
    assert line.get_xydata().tolist() == [[5, 1.5], [9, 1.0]]


def test_wandb_gets_a_summary_run_that_can_be_read_back(study: Path) -> None:
    words = [str(study), "logger=wandb", "wandb.group=a-group"]
    done = door("report", *words, cwd=study)  # whose end is the end of W&B's process
    assert done.returncode == 0, done.stderr
    folder = study / "report"
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    keys: set[str] = set()
    groups: set[str] = set()
    for item in offline_wandb.records(path):
        groups |= {item.run.run_group} - {""}
        keys |= {entry.key or entry.nested_key[0] for entry in item.history.item}
    assert {"table", "values", "intervals", "pareto"} <= keys
    assert groups == {"a-group"}
    tables = list(folder.glob("wandb/offline-run-*/files/media/table/*.table.json"))
    held = [json.loads(path.read_text()) for path in tables]
    assert any("method=full*" in row for table_ in held for row in table_["data"])


def test_seconds_hold_what_it_took_to_measure_rows_for_their_choice(tmp_path: Path) -> None:
    for chosen in ("random", "limo"):
        data = record(["method=lora", f"sft.curation={chosen}", "seed=0"], 0.5)
        if chosen == "limo":
            data["data"] = data["data"] | {"curation": {"seconds": 4.5}}
        data["config"]["sft"] |= {"curation": chosen}
        store(tmp_path, chosen, with_measures(data))
    seconds = {row.name: row.of("seconds") for row in table_of(tmp_path).rows}
    assert seconds == {"sft.curation=random": [14.0], "sft.curation=limo": [18.5]}


@pytest.mark.parametrize("baseline", ["mlm.nsp=false", "sft.learning_rate=0.001 mlm.nsp=False"])
def test_a_baseline_is_found_however_its_values_are_written(tmp_path: Path, baseline: str) -> None:
    for rate in ("1e-3", "1e-4"):
        for nsp in ("False", "true"):
            words = [f"sft.learning_rate={rate}", f"mlm.nsp={nsp}", "seed=0"]
            data = record(words, 0.5)
            data["config"]["mlm"] = {"nsp": nsp == "true"}
            store(tmp_path, f"{rate}-{nsp}", data)
    if "sft" in baseline:
        assert (
            table_of(tmp_path, baseline=baseline).baseline == "sft.learning_rate=1e-3 mlm.nsp=False"
        )
    else:
        with pytest.raises(BadInput, match="several variants have mlm"):
            table_of(tmp_path, baseline=baseline)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nowhere"], ["folder", "no folder nowhere"]),
        (["empty"], ["folder", "holds no records"]),
        (["study", "baseline=method=lor"], ["baseline", "method=lor", "method=lora"]),
        (["study", "measure=acuracy"], ["measure", "acuracy", "accuracy"]),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str], expected: list[str], study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drbode import config

    monkeypatch.chdir(study.parent)
    (study.parent / "empty").mkdir()
    typed = report.arguments(words)
    with pytest.raises(BadInput) as caught:
        report.job(config.compose("report", typed), typed, False)
    assert "\n" not in str(caught.value)
    for word in expected:
        assert word in str(caught.value)


def test_a_record_cut_in_half_is_told_and_the_rest_reported(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = study / "full-0" / "record.json"
    half.write_text(half.read_text()[:200])
    short = study / "full-1" / "record.json"
    data = json.loads(short.read_text())
    del data["stages"]["sft"]["summary"]
    short.write_text(json.dumps(data))
    store(study, "other", {"result": 3, "ended": ""})
    newer = json.loads((study / "full-2" / "record.json").read_text()) | {"schema": 3}
    store(study, "newer", newer)
    store(study, "without", newer | {"schema": 2, "base": None})
    result = {"summary": {"accuracy": 0.5}, "cost": {}, "seconds": 1.0}
    store(study, "evaluation", asdict(Record(status="finished", result=result)))
    outputs.report(record_files(study), study / "report")
    said = capsys.readouterr()
    assert said.err.count("\n") == 6
    assert f"{half}: is damaged" in said.err
    assert f"{short}: is damaged" in said.err
    assert "without/record.json: is damaged (KeyError: 'base')" in said.err
    assert "other/record.json: is no record of a run" in said.err
    assert "newer/record.json: was written by a newer drbode (schema 3" in said.err
    assert "is the record of an evaluation, not of a run; left out" in said.err
    left = {path.name for path in (study / "report").iterdir()}
    assert {"index.html", "table.md", "table.tex", "table.csv", "intervals.png"} <= left
    assert "method=full" in said.out


def test_a_report_needs_no_torch(study: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from drbode.reporting.outputs import report; "
        "from drbode.reporting.runs import record_files; "
        f"folder = Path({str(study)!r}); report(record_files(folder), folder / 'report'); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
