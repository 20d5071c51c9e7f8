"""experiment=chapter against the table of the chapter's section 3.5, and run at tiny size."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from drbode import config, train
from tests.conftest import NO_GENERAL

# The table: what the chapter's code sets.
STUDY: dict[str, Any] = {
    "model.path": "Qwen/Qwen3-1.7B",
    "model.dtype": "bf16",
    "stages": ["sft", "dpo"],
    "method": "qlora",
    "qlora.quant_type": "nf4",
    "qlora.compute_dtype": "bf16",
    "qlora.double_quantization": False,
    "lora.r": 128,
    "lora.alpha": 256,
    "lora.dropout": 0.05,
    "lora.target_modules": "all-linear",
    "lora.bias": "none",
    "sft.data.path": "recogna-nlp/drbode240_dataset",
    "sft.data.split": "train",
    "sft.format": "chapter",
    "sft.global_batch_size": 8 * 4,
    "sft.epochs": 1,
    "sft.learning_rate": 2e-5,
    "sft.schedule": "cosine",
    "sft.warmup_ratio": 0.05,
    "sft.optimizer": "paged_adamw_32bit",
    "sft.max_grad_norm": 0.3,
    "dpo.data.path": "recogna-nlp/dpo-mmlu-ptbr",
    "dpo.data.split": "train",
    "dpo.data.validation_share": 0.1,
    "dpo.quantize_base": False,
    "dpo.reference": "base",
    "dpo.global_batch_size": 2 * 8,
    "dpo.epochs": 1,
    "dpo.learning_rate": 5e-7,
    "dpo.beta": 0.5,
    "dpo.loss": "sigmoid",
    "dpo.label_smoothing": 0,
    "dpo.nll_weight": 0,
    "dpo.max_length": 512,
    "dpo.validate_every": 100,
    "trainer.gradient_checkpointing": True,
    "trainer.precision": "bf16-mixed",
    "benchmark.path": "recogna-nlp/drbodebench",
    "benchmark.split": "train",
    "benchmark.protocol": "chapter",
}


def value(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree[name]
    return tree


@pytest.mark.parametrize("key", STUDY)
def test_the_study_is_set_up_as_the_chapters_table_has_it(key: str) -> None:
    assert value(config.compose("train", ["experiment=chapter"]), key) == STUDY[key]


def test_what_it_sets_differs_from_what_stands_without_it() -> None:
    written = yaml.safe_load((config.conf_dir() / "experiment/chapter.yaml").read_text())
    del written["defaults"]
    same = ["model=qwen3_1_7b", "method=qlora", "data=drbode", "benchmark=chapter"]
    without = config.compose("train", same)
    leaves = [k for k in config.keys(written) if not isinstance(value(written, k), dict)]
    assert len(leaves) > 20
    assert [k for k in leaves if value(written, k) == value(without, k)] == []


def test_it_is_taken_whole_and_its_dropout_is_that_of_sft() -> None:
    words = ["experiment=chapter"]
    asked = config.load(config.compose("train", words), words)
    assert asked.unquantizes("dpo")
    assert asked.refers_to_base()


def test_it_runs_from_end_to_end_on_what_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    chats = [
        {
            "data": [
                {"role": "user", "content": f"Tosse {n}?"},
                {"role": "assistant", "content": "É."},
            ]
        }
        for n in range(4)
    ]
    pairs = [{"prompt": f"Febre {n}?", "chosen": "Repouse.", "rejected": "Não"} for n in range(10)]
    exam = [
        {"enunciado": "Qual?", "alternativas": {"A": "a", "E": None, "B": "b"}, "resposta": "A"}
    ]
    for name, rows in {"chats": chats, "pairs": pairs, "exam": exam}.items():
        Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = [
        *NO_GENERAL,
        "experiment=chapter",
        "model.path=bodinho",
        "lora.r=4",
        "sft.data.path=chats.jsonl",
        "sft.optimizer=adamw",
        "dpo.data.path=pairs.jsonl",
        "dpo.kl_prompts=0",
        "benchmark.path=exam.jsonl",
        "logger=csv",
        "trainer.threads=1",
        "trainer.progress=false",
    ]
    train.job(config.compose("train", words), words, False)
    (path,) = Path("outputs").glob("*/record.json")
    stages = json.loads(path.read_text())["stages"]
    assert {name: stage["steps"] for name, stage in stages.items()} == {"sft": 1, "dpo": 1}
    assert stages["sft"]["dropout"] == "as configured"
    assert stages["dpo"]["dropout"] == "off"
    assert stages["dpo"]["summary"]["stop_rate"] is not None
    data = json.loads(path.read_text())["data"]["stages"]
    assert data["sft"]["validation"] is None
    assert (data["dpo"]["train"]["rows"], data["dpo"]["validation"]["rows"]) == (9, 1)
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "sft -> dpo" in said
    assert "1 questions, chapter" in said
