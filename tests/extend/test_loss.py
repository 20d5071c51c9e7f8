"""Worked example: a preference loss of one's own, in one Python file of one function.

A built-in one is a function in `drbode/objectives/dpo.py` and an entry in LOSSES
(`drbode/config/catalogue.py`), as `simpo` is.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from drbode import config, train
from drbode.config import BadInput
from tests.conftest import NO_GENERAL
from tests.extend.readme import block

SOURCE = block("my_losses.py")
QUICK = [
    *NO_GENERAL,
    "stages=dpo",
    "method=lora",
    "dpo.steps=2",
    "dpo.data.rows=8",
    "dpo.data.validation_rows=4",
    "dpo.kl_prompts=0",
    "dpo.nll_weight=0",
    "open.prompts=0",
    "benchmark.questions=3",
    "logger=csv",
    "trainer.threads=1",
    "trainer.progress=false",
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("my_losses", None)
    Path("my_losses.py").write_text(SOURCE)


def job(*words: str) -> dict[str, Any]:
    overrides = [*QUICK, "dpo.loss=my_losses:squared", *words]
    done = train.job(config.compose("train", overrides), overrides, False)
    record: dict[str, Any] = json.loads((done.folder / "record.json").read_text())
    return record


def load(*words: str) -> config.TrainConfig:
    overrides = [*QUICK, "dpo.loss=my_losses:squared", *words]
    return config.load(config.compose("train", overrides), overrides)


def test_a_function_is_a_loss() -> None:
    """At the stage's start the margin is 0, and the loss the square of the target."""
    record = job("dpo.options={target: 3.0}", "dpo.learning_rate=1e-9", "dpo.beta=0.5")
    assert record["stages"]["dpo"]["train_loss"] == pytest.approx(9.0, abs=1e-3)


def test_the_run_is_another_one_when_the_function_changes() -> None:
    asked_for = load()
    name, stage = asked_for.run_name(), asked_for.stage_identity("dpo")
    assert name == load().run_name()
    Path("my_losses.py").write_text(SOURCE.replace("- target", "+ target"))
    assert name != asked_for.run_name()
    assert stage != asked_for.stage_identity("dpo")
    (digest,) = config.functions(asked_for.effective()).values()
    assert digest is not None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["dpo.loss=my_losses:cubed"], ["dpo.loss: my_losses:cubed", "could not be imported"]),
        (["dpo.loss=nowhere:squared"], ["dpo.loss: nowhere:squared", "simpo or module:function"]),
        (["dpo.loss=my_losses:__doc__"], ["dpo.loss", "is no function"]),
        (["dpo.options={aim: 1}"], ["dpo.options", "aim", "does not take"]),
        (["dpo.options={target: much}"], ["dpo.options: expected {name: a number}", '"much"']),
        (["dpo.loss=squared"], ["dpo.loss: expected sigmoid", "module:function", '"squared"']),
        (["dpo.loss=simpo", "dpo.options={gama: 1}"], ["simpo reads no option gama", "gamma?"]),
        (["dpo.loss=hinge", "dpo.options={a: 1}"], ["hinge reads no option a", "it has none"]),
        (["dpo.loss=simpo", "dpo.reference=base"], ["dpo.reference: has no effect", "simpo"]),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], expected: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        job(*words)
    for word in expected:
        assert word in str(caught.value)
    assert not list(Path().glob("outputs/*/record.json"))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("pairs.margin.mean()", ["gave [] for three pairs", "one value for each pair"]),
        ("pairs.margin.sum()[None]", ["gave [1] for three pairs"]),
        ("0.5", ["gave float for three pairs"]),
        ("None", ["gave NoneType for three pairs"]),
        ("pairs.margin.detach()", ["do not depend on the policy's logps"]),
        ("pairs.margin / 0 * 0", ["nan", "finite numbers"]),
        ("pairs.chosen", ["raised AttributeError", "my_losses.py line 3", "Pairs"]),
    ],
)
def test_what_is_no_loss_of_each_pair_is_refused_before_training(
    body: str, expected: list[str]
) -> None:
    """A mean, as PyTorch's own losses take, would be divided by the number of pairs twice."""
    Path("my_losses.py").write_text(SOURCE.replace(SOURCE.split("return ")[1].strip(), body))
    with pytest.raises(BadInput) as caught:
        job()
    for word in ["dpo.loss: my_losses:squared", *expected]:
        assert word in str(caught.value)
    assert not list(Path().glob("outputs/*/record.json"))


def test_simpo_trains_by_its_name() -> None:
    """Chosen and rejected answers are as long and, at the start, about as probable."""
    record = job("dpo.loss=simpo", "dpo.options={gamma: 0.0}", "dpo.learning_rate=1e-9")
    assert record["stages"]["dpo"]["train_loss"] == pytest.approx(math.log(2), abs=0.05)
