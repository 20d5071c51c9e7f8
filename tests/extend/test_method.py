"""A fine-tuning method of one's own, by one YAML file.

Whoever wants a tuner of peft's under a name of its own writes `my_conf/method/vera.yaml`, below,
and runs `python -m drbode.train --config-dir my_conf method=vera`. Nothing of drbode is touched.
Without a file it is `method=peft peft.type=VERA 'peft.options={r: 16}' sft.learning_rate=2e-2`.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from peft import AutoPeftModelForCausalLM, VeraConfig

from tests.conftest import NO_GENERAL
from tests.extend.readme import block, command

VERA = block("my_conf/method/vera.yaml")  # Kopiczko et al. 2024: vectors scale shared matrices

QUICK = [
    *("sft.steps=2", "sft.data.rows=40", "benchmark.questions=5", *NO_GENERAL),
    *("logger=csv", "trainer.threads=1", "trainer.progress=false"),
]


def train(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "drbode.train", *words],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_conf" / "method").mkdir(parents=True)
    (tmp_path / "my_conf" / "method" / "vera.yaml").write_text(VERA)
    return tmp_path


def test_a_file_in_a_folder_of_ones_own_is_a_method(folder: Path) -> None:
    words = command("method=vera")[1:]
    done = train(folder, *words, "peft.options.r=8", *QUICK)
    assert done.returncode == 0, done.stderr
    (run,) = (folder / "outputs").glob("peft-vera-sft-*")
    record = json.loads((run / "record.json").read_text())
    assert record["config"]["peft"] == {"type": "VERA", "options": {"r": 8}}
    assert record["config"]["sft"]["learning_rate"] == 2e-2
    saved = AutoPeftModelForCausalLM.from_pretrained(run / "sft").peft_config["default"]
    assert isinstance(saved, VeraConfig)
    assert saved.r == 8


def test_a_mistyped_one_is_told_beside_those_of_the_program(folder: Path) -> None:
    done = train(folder, "--config-dir", "my_conf", "method=verra")
    assert done.returncode == 2
    assert "adapter, bitfit, full, lora, peft, qlora or vera; did you mean vera?" in done.stderr
