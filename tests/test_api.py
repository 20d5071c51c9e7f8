"""The program from Python: a script that trains, compares and plots, and its mistakes."""

import subprocess
import sys
from pathlib import Path

import pytest

from drbode.api import BadInput, compare, evaluate, load, train
from tests.conftest import NO_GENERAL

QUICK = [
    *NO_GENERAL,
    "sft.steps=2",
    "benchmark.questions=6",
    "logger=csv",
    "trainer.threads=1",
    "trainer.progress=false",
]
SCRIPT = f"""
from pathlib import Path

from drbode.api import compare, load, train
from drbode.reporting.figures import figures

quick = {QUICK!r}
runs = [
    train(f"method={{method}}", f"seed={{seed}}", *quick)
    for method in ("lora", "bitfit")
    for seed in (0, 1)
]
for run in runs:
    print(run.folder.name, run.record.measures["sft/accuracy"])

table = compare([run.folder for run in runs], baseline="method=lora")
Path("table.md").write_text(table.to_markdown())
for name, figure in figures(table).items():
    figure.savefig(f"{{name}}.png")
policy = load(runs[0].folder / "sft")
print(policy.tokenizer.decode(policy.tokenizer("dengue")["input_ids"]))
"""


def test_a_script_trains_compares_and_plots(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(SCRIPT.strip().splitlines()) <= 22
    assert (tmp_path / "table.md").read_text().count("| method=") == 6  # two rows in three pieces
    assert {p.name for p in tmp_path.glob("*.png")} >= {"intervals.png", "pareto.png"}
    assert "dengue" in done.stdout


def test_importing_it_imports_no_torch() -> None:
    code = "import sys, drbode, drbode.api; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_mistake_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"lora.r: expected a whole number at least 1, got 0"):
        train("lora.r=0")
    with pytest.raises(BadInput, match=r"benchmark.path: there is no file x.jsonl"):
        evaluate("benchmark.path=x.jsonl")
    with pytest.raises(BadInput, match=r"model.path: nowhere could not be loaded"):
        load("nowhere")
    with pytest.raises(BadInput, match=r"record.json"):
        compare([tmp_path])
    with pytest.raises(BadInput, match=r"lorra.r: there is no such key; did you mean lora.r"):
        train("lorra.r=1")
