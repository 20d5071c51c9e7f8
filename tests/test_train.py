"""The doors, as a user would open them: on the shipped model, a few steps."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from drbode import config, evaluate, train
from drbode.data.bodinho import CHATS, PAIRS, QUESTIONS
from tests.conftest import NO_GENERAL

QUICK = [
    "sft.steps=3",
    "benchmark.questions=10",
    "trainer.progress=false",
    "trainer.threads=1",
]


def door(name: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"drbode.{name}", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )


def only_run(folder: Path) -> Path:
    (found,) = [p.parent for p in (folder / "outputs").glob("*/record.json")]
    return found


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("lora")
    done = door("train", *QUICK, cwd=folder)
    assert done.returncode == 0, done.stderr
    return only_run(folder), done.stdout


def test_it_says_what_it_does_and_leaves_all_it_promises(lora_run: tuple[Path, str]) -> None:
    run, said = lora_run
    words = ("bodinho", "lora, trains", "1620 rows", "100 % of ends", "base", "sft", "[95 %")
    for word in (*words, "general knowledge", "bits/byte"):
        assert word in said
    left = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    assert {
        "record.json",
        "metrics.csv",
        "curves.png",
        "benchmark/base.jsonl",
        "benchmark/sft.jsonl",
        "sft/adapter_model.safetensors",
    } <= left
    assert any("wandb/offline-run" in name for name in left)
    record = json.loads((run / "record.json").read_text())
    assert record["status"] == "finished"
    assert record["config"]["sft"]["learning_rate"] == 2e-3
    assert record["config"]["lora"]["alpha"] == 64.0
    assert record["stages"]["sft"]["steps"] == 3
    assert record["stages"]["sft"]["artefact_bytes"] > 0
    assert record["stages"]["sft"]["tokens_per_second"] > 0
    assert record["data"]["stages"]["sft"]["train"]["ends_supervised"] == 1.0
    known = record["stages"]["sft"]["forgetting"]
    assert known["questions"]["questions"] == record["data"]["general"]["questions"] > 100
    assert known["bits_per_byte"] > 0
    assert known["forgetting"] == -known["against_base"]["difference"]
    assert record["git"] is None or set(record["git"]) == {"commit", "changed"}
    answers = [json.loads(line) for line in (run / "benchmark/sft.jsonl").read_text().splitlines()]
    assert len(answers) == 10
    assert sum(a["correct"] for a in answers) == record["stages"]["sft"]["summary"]["correct"]
    with (run / "metrics.csv").open() as file:
        assert {row["stage"] for row in csv.DictReader(file)} == {"sft"}


def test_the_same_command_again_shows_the_result(lora_run: tuple[Path, str]) -> None:
    run, _ = lora_run
    before = (run / "record.json").stat().st_mtime_ns
    done = door("train", *QUICK, cwd=run.parent.parent)
    assert done.returncode == 0
    assert "is finished" in done.stdout
    assert (run / "record.json").stat().st_mtime_ns == before


def test_the_adapter_loads_in_plain_peft_with_the_same_logits(lora_run: tuple[Path, str]) -> None:
    from peft import AutoPeftModelForCausalLM

    from drbode.models.base import load_policy

    run, _ = lora_run
    plain = AutoPeftModelForCausalLM.from_pretrained(run / "sft", dtype=torch.float32)
    tree: Any = config.compose("evaluate", [f"model.path={run / 'sft'}"])
    asked = config.build(config.EvaluateConfig, tree)
    policy = load_policy(asked.model, torch.float32, "sdpa")
    ids = torch.arange(40)[None]
    with torch.no_grad(), policy.generating() as network:
        assert torch.equal(network(ids).logits, plain(ids).logits)


def test_a_tuner_of_peft_is_trained_and_what_it_leaves_evaluated(tmp_path: Path) -> None:
    few = ["benchmark.questions=5", "trainer.threads=1"]
    words = ["method=peft", "peft.type=IA3", "sft.learning_rate=1e-2", "sft.steps=2", *few]
    done = door("train", *words, *NO_GENERAL, "logger=csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    assert run.name.startswith("peft-ia3-sft-")
    record = json.loads((run / "record.json").read_text())
    assert 0 < record["model"]["trainable_parameters"] < 10_000
    done = door("evaluate", f"model.path={run / 'sft'}", *few, "output_dir=eval", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (evaluated,) = (tmp_path / "eval").glob("*/record.json")
    summary = json.loads(evaluated.read_text())["result"]["summary"]
    expected = record["stages"]["sft"]["summary"]
    assert (summary["correct"], summary["ece"]) == (expected["correct"], expected["ece"])


def test_evaluate_gives_what_the_run_measured(lora_run: tuple[Path, str]) -> None:
    run, _ = lora_run
    words = [f"model.path={run / 'sft'}", "benchmark.questions=10", "trainer.threads=1"]
    done = door("evaluate", *words, f"output_dir={run.parent / 'eval'}", cwd=run)
    assert done.returncode == 0, done.stderr
    (found,) = (run.parent / "eval").glob("*/record.json")
    result = json.loads(found.read_text())["result"]["summary"]
    expected = json.loads((run / "record.json").read_text())["stages"]["sft"]["summary"]
    assert result["correct"] == expected["correct"]


def test_full_through_two_stages_and_taken_up_after_the_first(tmp_path: Path) -> None:
    words = [*QUICK, *NO_GENERAL, "method=full", "stages=[cpt,sft]", "cpt.steps=3", "logger=csv"]
    done = door("train", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    path = run / "record.json"
    finished = json.loads(path.read_text())
    assert list(finished["stages"]) == ["cpt", "sft"]
    with (run / "metrics.csv").open() as file:
        steps = {(row["stage"], int(row["step"])) for row in csv.DictReader(file)}
    assert max(s for stage, s in steps if stage == "cpt") == 3
    assert {s for stage, s in steps if stage == "sft"} == {6}  # the run's steps, not the stage's

    weights = (run / "sft" / "model.safetensors").read_bytes()
    interrupted = finished | {"status": "interrupted"}
    interrupted["stages"] = {"cpt": finished["stages"]["cpt"]}
    path.write_text(json.dumps(interrupted))
    done = door("train", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (run / "sft" / "model.safetensors").read_bytes() == weights


def test_help_lists_groups_and_keys(tmp_path: Path) -> None:
    for name in ("train", "evaluate"):
        done = door(name, "--help", cwd=tmp_path)
        assert done.returncode == 0
        assert f"python -m drbode.{name}" in done.stdout
        assert "model: bertimbau, bertinho, bodinho, qwen3_0_6b" in done.stdout


def test_evaluate_by_written_answers_shows_what_was_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["benchmark=generate", "benchmark.questions=6", "trainer.threads=1"]
    evaluate.job(config.compose("evaluate", words), words, False)
    said = capsys.readouterr().out
    for word in ("no answer, %", "stopped, %", "6 questions, generate"):
        assert word in said
    assert "ECE" not in said
    answers = (only_run(tmp_path) / "benchmark/model.jsonl").read_text().splitlines()
    assert all({"written", "stopped"} <= json.loads(line).keys() for line in answers)


@pytest.fixture(scope="module")
def preference_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("preferences")
    rows = PAIRS["train"]()[:20]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["stages=[reward,dpo]", "dpo.kl_prompts=0", "open.max_new_tokens=8", *QUICK[1:]]
    words += NO_GENERAL
    for stage in ("reward", "dpo"):
        words += [f"{stage}.steps=2", f"{stage}.data.path=pairs.jsonl"]
        words.append(f"{stage}.data.validation_share=0.2")
    done = door("train", *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    return only_run(folder), done.stdout


def test_a_run_with_preferences_scores_open_answers(preference_run: tuple[Path, str]) -> None:
    run, said = preference_run
    for word in ("4 held-out prompts of dpo", "cautious, %", "dpo over base, by the reward score"):
        assert word in said
    record = json.loads((run / "record.json").read_text())
    assert record["data"]["open"]["prompts"] == 4
    assert record["stages"]["reward"]["open"] is None  # which leaves the policy as it was
    base, dpo = record["base"]["open"], record["stages"]["dpo"]["open"]
    assert list(dpo["against"]) == ["base"]
    assert set(dpo["against"]["base"]["win_rate"]) == {"gold", "reward"}
    for name, result in (("base", base), ("dpo", dpo)):
        rows = [json.loads(x) for x in (run / f"open/{name}.jsonl").read_text().splitlines()]
        assert len(rows) == result["summary"]["prompts"] == 4
        scores = [row["score"] for row in rows]
        assert sum(scores) / 4 == pytest.approx(result["summary"]["score"])
    with (run / "open/side_by_side.csv").open(newline="") as file:
        assert next(iter(csv.DictReader(file))).keys() == {"prompt", "right", "base", "dpo"}
    (table,) = run.rglob("wandb/offline-run-*/files/media/table/open/side_by_side*.table.json")
    shown = json.loads(table.read_text())
    assert shown["columns"] == ["prompt", "right", "base", "dpo"]
    assert len(shown["data"]) == 4


def test_evaluate_gives_the_open_answers_of_the_run(
    preference_run: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, _ = preference_run
    monkeypatch.chdir(tmp_path)
    words = ["benchmark=open", f"model.path={run / 'dpo'}", f"benchmark.reward={run / 'reward'}"]
    asked = [json.loads(line) for line in (run / "open/dpo.jsonl").read_text().splitlines()]
    write = (tmp_path / "held.jsonl").write_text
    rows = {row["prompt"]: row for row in PAIRS["train"]()}
    write("".join(json.dumps(rows[row["prompt"]]) + "\n" for row in asked))
    words += ["benchmark.path=held.jsonl", "benchmark.max_new_tokens=8", "trainer.threads=1"]
    evaluate.job(config.compose("evaluate", words), words, False)
    assert "dpo over bodinho, by the reward score" in capsys.readouterr().out
    copy = tmp_path / "other" / "dpo"
    tree = config.compose("evaluate", [*words, f"benchmark.against=[{copy},bodinho]"])
    names = list(evaluate._models(config.build(config.EvaluateConfig, tree)))
    assert names == ["other-dpo", "bodinho", f"{run.name}-dpo"]
    found = only_run(tmp_path)
    for name, same in (("bodinho", "base"), ("dpo", "dpo")):
        mine = [json.loads(x) for x in (found / f"open/{name}.jsonl").read_text().splitlines()]
        runs = [json.loads(x) for x in (run / f"open/{same}.jsonl").read_text().splitlines()]
        for one, two in zip(mine, runs, strict=True):
            assert one["answer"] == two["answer"]
            assert one["score"] == pytest.approx(two["score"], abs=1e-4)
            assert one["margin"] == pytest.approx(two["margin"], abs=1e-4)


def test_the_door_tells_a_mistake_in_the_data_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "exam.jsonl").write_text("{")
    done = door("evaluate", "benchmark.path=exam.jsonl", "trainer.threads=1", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: exam.jsonl, line 1: is no JSON")
    assert "Traceback" not in done.stderr


def train_on_questions(action: str) -> dict[str, Any] | None:
    """What a run in this folder leaves, of whose rows 4 of 40 ask the benchmark's questions."""
    exam = QUESTIONS["test"]()[:12]
    Path("exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in exam))
    rows = CHATS["train"]()[:36]
    for question in exam[:4]:
        answer = question["alternativas"][question["resposta"]]
        turns = [("user", question["enunciado"]), ("assistant", answer)]
        rows.append({"data": [{"role": role, "content": text} for role, text in turns]})
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        QUICK[0],
        *QUICK[2:],
        *NO_GENERAL,
        "sft.data.path=rows.jsonl",
        "sft.data.validation_share=0",
    ]
    words += ["sft.steps=1", "benchmark.path=exam.jsonl", "logger=csv"]
    words.append(f"contamination.action={action}")
    done = train.job(config.compose("train", words), words, False)
    assert done is not None
    found: dict[str, Any] = json.loads((done.folder / "record.json").read_text())
    cases = (done.folder / "contamination.jsonl").read_text().splitlines()
    assert [json.loads(x)["row"] for x in cases] == [f"rows.jsonl, line {37 + n}" for n in range(4)]
    assert found["data"]["contamination"]["questions"] == 4
    return found


def test_a_run_on_the_benchmarks_questions_stops_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        config.BadInput, match=r"^sft.data.path: rows.jsonl, line 37: asks .*exam.jsonl, line 1"
    ):
        train_on_questions("stop")
    assert not list(tmp_path.glob("outputs/*/record.json"))


def test_it_goes_on_without_the_rows_or_tells_accuracy_on_the_other_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = train_on_questions("keep")
    said = capsys.readouterr().out
    assert kept is not None
    for word in ("4 training rows ask 4 of the benchmark's questions, trained on", "clean"):
        assert word in said
    ledger = kept["data"]["stages"]["sft"]["train"]
    assert (ledger["rows"], ledger["sequences"], ledger["dropped"]) == (40, 40, {})
    for result in (kept["base"], kept["stages"]["sft"]):
        assert result["summary"]["questions"] == 12
        assert result["summary"]["clean"]["questions"] == 8
    rows = [json.loads(x) for x in next(tmp_path.rglob("sft.jsonl")).read_text().splitlines()]
    right = sum(row["correct"] for row in rows[4:])
    assert kept["stages"]["sft"]["summary"]["clean"]["correct"] == right
    assert kept["stages"]["sft"]["against_base"]["clean"]["trials"] == 8

    dropped = train_on_questions("drop")
    assert dropped is not None
    ledger = dropped["data"]["stages"]["sft"]["train"]
    assert (ledger["rows"], ledger["sequences"]) == (40, 36)
    assert ledger["dropped"] == {"asks a question of the benchmark": 4}
    assert dropped["stages"]["sft"]["summary"]["clean"] is None
    assert dropped["stages"]["sft"]["train_loss"] != kept["stages"]["sft"]["train_loss"]
