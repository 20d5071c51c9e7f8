"""Worked example: a benchmark of one's own, in one YAML and one Python file.

The Python file has the rows and what an answer is worth, the YAML names both. Rows may as well lie
in a .jsonl file, which `path` then names.
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NO_GENERAL
from tests.extend.readme import block, command

YAML = """
defaults: [alternatives, _self_]
protocol: written
path: capitals:rows
split: south
scorer: capitals:brevity
max_new_tokens: 6
"""
SOURCE = '''
CAPITALS = {
    "south": {"Brasil": "Brasília", "Peru": "Lima", "Chile": "Santiago", "Uruguai": "Montevidéu"},
    "north": {"Cuba": "Havana"},
}


def rows(split):
    """A prompt and its reference answer a row."""
    for country, capital in CAPITALS[split].items():
        yield {"prompt": f"Qual é a capital: {country}?", "reference": capital}


def brevity(prompts, answers, references):
    """1 for an answer of one word, the less the more words it has."""
    return [1 / max(1, len(answer.split())) for answer in answers]


def chats(split):
    """For training: what each row of a stage's data looks like."""
    for row in rows("north"):
        for name in "ABCDEFGH":
            yield {"data": [
                {"role": "user", "content": f"{name}: {row['prompt']}"},
                {"role": "assistant", "content": row["reference"]},
            ]}
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two new files, and nothing else."""
    folder = tmp_path_factory.mktemp("extend")
    (folder / "conf" / "benchmark").mkdir(parents=True)
    (folder / "conf" / "benchmark" / "capitals.yaml").write_text(YAML)
    (folder / "capitals.py").write_text(SOURCE)
    return folder


def door(name: str, *words: str, cwd: Path) -> tuple[Path, dict[str, Any], str]:
    """The folder, the record and the output of what a user's command does."""
    before = set(cwd.glob("outputs/*/record.json"))
    command = [sys.executable, "-m", f"drbode.{name}", "--config-dir", "conf", *words]
    done = subprocess.run(
        [*command, "benchmark=capitals", "trainer.threads=1"],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr
    (record,) = set(cwd.glob("outputs/*/record.json")) - before
    return record.parent, json.loads(record.read_text()), done.stdout


def answers(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "benchmark" / f"{name}.jsonl").open()]


def test_a_model_is_evaluated_on_it(folder: Path) -> None:
    run, record, said = door("evaluate", cwd=folder)
    rows = answers(run, "model")
    assert [row["reference"] for row in rows] == ["Brasília", "Lima", "Santiago", "Montevidéu"]
    assert rows[1]["prompt"] == "Qual é a capital: Peru?"
    for row in rows:
        assert row["score"] == 1 / max(1, len(row["written"].split()))
    summary = record["result"]["summary"]
    assert summary["accuracy"] == pytest.approx(sum(row["score"] for row in rows) / 4)
    assert summary["questions"] == 4
    assert summary["scorer"] == "capitals:brevity"
    assert "from capitals:brevity" in said
    assert record["config"]["benchmark"]["content"][1] is not None  # digests of the file it is in


def test_a_run_is_measured_on_it_before_and_after_its_stages(folder: Path) -> None:
    words = ["sft.steps=2", "sft.data.path=capitals:chats", "logger=csv", "trainer.progress=false"]
    run, record, said = door("train", *NO_GENERAL, *words, cwd=folder)
    stage = record["stages"]["sft"]
    before, after = answers(run, "base"), answers(run, "sft")
    means = [sum(row["score"] for row in rows) / 4 for rows in (before, after)]
    assert record["base"]["summary"]["accuracy"] == pytest.approx(means[0])
    assert stage["summary"]["accuracy"] == pytest.approx(means[1])
    assert stage["against_base"]["all"]["difference"] == pytest.approx(means[1] - means[0])
    assert stage["against_base"]["all"]["test"] != "exact McNemar"  # of scores between 0 and 1
    assert stage["steps"] == 2
    assert record["data"]["benchmark"]["questions"] == 4
    assert "difference to base" in said
    with (run / "metrics.csv").open(newline="") as file:
        logged = [float(r["value"]) for r in csv.DictReader(file) if r["name"] == "accuracy"]
    assert logged == [pytest.approx(means[1])]


def test_it_is_another_evaluation_when_the_scorer_changes(folder: Path) -> None:
    before, _, _ = door("evaluate", "benchmark.questions=2", cwd=folder)
    (folder / "capitals.py").write_text(SOURCE.replace("1 / max", "0 / max"))
    after, record, _ = door("evaluate", "benchmark.questions=2", cwd=folder)
    assert before.name != after.name
    assert record["result"]["summary"]["accuracy"] == 0


def test_open_answers_of_a_run_get_a_score_of_ones_own_beside_the_rules(folder: Path) -> None:
    words = ["stages=dpo", "dpo.steps=2", "dpo.data.rows=8", "dpo.data.validation_rows=4"]
    words += ["open.prompts=4", "open.max_new_tokens=6", "open.scorer=capitals:brevity"]
    words += ["dpo.kl_prompts=0", "logger=csv", "trainer.progress=false"]
    run, record, said = door("train", *NO_GENERAL, *words, cwd=folder)
    rows = [json.loads(line) for line in (run / "open" / "dpo.jsonl").open()]
    scores = [row["scores"]["capitals:brevity"] for row in rows]
    summary = record["stages"]["dpo"]["open"]["summary"]
    assert summary["scores"] == {"capitals:brevity": pytest.approx(sum(scores) / 4)}
    assert record["measures"]["dpo/capitals:brevity"] == pytest.approx(sum(scores) / 4)
    against = record["stages"]["dpo"]["open"]["against"]["base"]["win_rate"]
    assert against.keys() == {"gold", "capitals:brevity"}
    assert "Mean score by capitals:brevity: base " in said
    with (run / "open" / "side_by_side.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(row["dpo, capitals:brevity"]) for row in table] == scores


def test_the_readmes_benchmark_is_scored(tmp_path: Path) -> None:
    (tmp_path / "my_conf" / "benchmark").mkdir(parents=True)
    name = "my_conf/benchmark/short.yaml"
    (tmp_path / name).write_text(block(name))
    (tmp_path / "my_benchmark.py").write_text(block("my_benchmark.py"))
    rows = [{"prompt": f"Dengue {n}?", "reference": "Aedes aegypti"} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [word for word in command("benchmark=short") if not word.startswith("model.path")]
    done = subprocess.run(
        [sys.executable, "-m", *words, "benchmark.max_new_tokens=4", "trainer.threads=1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "my_benchmark:one_word" in done.stdout
