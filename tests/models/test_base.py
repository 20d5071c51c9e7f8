"""Several models on one network: each answers as it does alone."""

from pathlib import Path

import pytest
import torch

from drbode import config
from drbode.config import ModelConfig
from drbode.models.base import Policy, load_policy, speaking_as
from drbode.models.methods import wrap
from tests.conftest import settings, tiny

IDS = torch.arange(5, 45)[None]


def model(path: Path | str) -> ModelConfig:
    tree = config.compose("evaluate", [f"model.path={path}"])
    return config.build(config.EvaluateConfig, tree).model


def load(described: ModelConfig) -> Policy:
    return load_policy(described, torch.float32, "sdpa")


def logits(policy: Policy) -> torch.Tensor:
    with policy.generating() as network, torch.no_grad():
        return network(IDS).logits  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of one kind (one, two), of another rank, and one whose base is not that of the others."""
    kinds = {
        "one": (),
        "two": (),
        "rank": ("lora.r=2",),
        "pissa": ("lora.init_lora_weights=pissa",),
    }
    folders = {}
    for number, (name, words) in enumerate(kinds.items(), 1):
        policy = load(model("bodinho"))
        rank = () if name == "rank" else ("lora.r=4",)
        wrap(policy, settings("method=lora", *rank, *words).tuning())
        torch.manual_seed(number)
        for parameter in policy.trainable().values():
            parameter.data += 0.1 * torch.randn_like(parameter)
        folders[name] = tmp_path_factory.mktemp("adapters") / name
        policy.save(folders[name])
    return folders


@pytest.mark.parametrize(
    ("own", "other", "shared"),
    [
        ("one", "one", True),
        ("one", "two", True),
        ("one", "bodinho", True),
        ("one", "rank", False),
        ("pissa", "bodinho", False),
        ("bodinho", "one", False),
    ],
)
def test_another_model_speaks_as_it_does_alone(
    adapters: dict[str, Path], own: str, other: str, shared: bool
) -> None:
    one, two = (model(adapters.get(name, name)) for name in (own, other))
    policy = load(one)
    before = logits(policy)
    loads = []

    def beside() -> Policy:
        loads.append(two)
        return load(two)

    with speaking_as(policy, one, two, beside) as speaker:
        assert torch.equal(logits(speaker), logits(load(two)))
        assert (speaker is policy) == shared
    assert bool(loads) != shared
    assert torch.equal(logits(policy), before)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_comes_back_from_evaluation_when_the_body_raises(training: bool) -> None:
    policy = Policy(tiny("gpt2").train(training), None)

    def fails() -> None:
        with policy.evaluating():
            assert not any(module.training for module in policy.network.modules())
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fails()
    assert all(module.training == training for module in policy.network.modules())
