"""Stage `dpo`: what the policy is held against, what is paid for once, and what is watched."""

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from drbode.config import Method, StageConfig
from drbode.data.splits import Ledger, Split
from drbode.models.base import Policy
from drbode.models.machine import Machine
from drbode.models.methods import wrap
from drbode.training import dpo, reference
from drbode.training import module as training
from drbode.training.context import StageContext
from drbode.training.stages import StageResult, run_stage
from drbode.trees import Completion, Tree, pack
from tests.conftest import run_context, settings, tiny, words

LN2 = 0.693147
CPU = Machine("cpu", "32-true", "fp32", "sdpa", 1)
METHODS: tuple[Method, ...] = ("lora", "full", "bitfit", "adapter")


def stage(name: str, **changes: Any) -> StageConfig:
    """A few large steps."""
    small = {
        "learning_rate": 1e-2,
        "optimizer": "adamw",
        "global_batch_size": 4,
        "steps": 3,
        "warmup_ratio": 0.0,
        "validate_every": None,
        "checkpoints": 0,
        "max_tokens": 100,
    }
    block: StageConfig = getattr(settings(), name)
    return replace(block, **small | changes)


def dpo_stage(**changes: Any) -> StageConfig:
    return stage("dpo", **{"nll_weight": 0.0, "kl_prompts": 0} | changes)


def pairs(count: int = 8) -> Split:
    """Chosen answers of ids 2 to 6, rejected ones of 5 to 9."""
    drawn = torch.Generator().manual_seed(0)

    def ids(least: int, most: int) -> list[int]:
        n = int(torch.randint(2, 12, (1,), generator=drawn))
        return torch.randint(least, most + 1, (n,), generator=drawn).tolist()

    def side(least: int, most: int) -> Completion:
        own = [*ids(least, most), 1]
        return Completion(own, [True] * len(own))

    return Split([Tree(ids(2, 9), [side(2, 6), side(5, 9)]) for _ in range(count)], Ledger())


def policy(method: Method = "lora", dropout: float = 0.0) -> Policy:
    made = Policy(tiny("qwen3"), words())
    lora = ("lora.r=4", f"lora.dropout={dropout}") if method == "lora" else ()
    wrap(made, settings(f"method={method}", *lora).tuning())
    return made


def run(
    made: Policy,
    config: StageConfig,
    folder: Path,
    validation: Split | None = None,
    name: Any = "dpo",
    **around: Any,
) -> StageResult:
    return run_stage(
        StageContext(
            made,
            name,
            config,
            pairs(),
            validation,
            run_context(folder, **around),
            folder=folder / "checkpoints" / name,
            step_offset=0,
        )
    )[0]


def logged(folder: Path, split: str, name: str) -> list[tuple[int, float]]:
    """Steps and values of a metric."""
    with (folder / "metrics.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if (r["split"], r["name"]) == (split, name)]
    return [(int(row["step"]), float(row["value"])) for row in rows]


@pytest.fixture(autouse=True)
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    monkeypatch.setattr(dpo, "KL_TOKENS", 6)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Rows of each pass that is made for reference logps."""
    made: list[int] = []
    compute = reference._logps

    def counted(policy: Policy, trees: list[Tree], *rest: Any) -> Any:
        made.append(len(trees))
        return compute(policy, trees, *rest)

    monkeypatch.setattr(reference, "_logps", counted)
    return made


@pytest.mark.parametrize("loss", ["reference_free", "simpo"])
def test_no_reference_pass_is_run_for_a_loss_that_reads_none(
    loss: str, passes: list[int], tmp_path: Path
) -> None:
    """The implicit reward then is beta x the policy's own logp."""
    run(policy(), dpo_stage(loss=loss, steps=1), tmp_path, pairs(4))
    assert passes == []
    rewards, logps = (logged(tmp_path, "train", n)[0][1] for n in ("reward_chosen", "logps_chosen"))
    assert rewards == pytest.approx(dpo_stage().beta * logps)
    assert logged(tmp_path, "train", "chosen_gain_a_token") == []


def test_reference_logps_whose_content_changed_are_computed_again(
    passes: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, around = policy(), run_context(tmp_path)
    splits = []
    for _ in range(3):
        split = reference.with_reference(made, pairs(4), 100, around.machine, around.cache)
        splits.append([tree.reference for tree in split.trees])
        (path,) = around.cache.glob("*.safetensors")
        if len(splits) == 2:
            content = bytearray(path.read_bytes())
            content[-3] ^= 1
            path.write_bytes(content)
    assert passes == [4, 4]
    assert splits[0] == splits[1] == splits[2]
    assert "checksum differ" in capsys.readouterr().out


@pytest.mark.parametrize("method", METHODS)
def test_at_step_0_the_policy_is_its_own_reference_also_after_sft(
    method: Method, tmp_path: Path
) -> None:
    made = policy(method, dropout=0.5)  # which is off where it would part the two
    begun = made.state()
    for name in ("fresh", "tuned"):
        if name == "tuned":
            run(made, stage("sft"), tmp_path / "sft", name="sft")
            assert any(not torch.equal(t, begun[n]) for n, t in made.state().items())
        state = made.state()
        run(made, dpo_stage(steps=1), tmp_path / name, base=begun)
        assert logged(tmp_path / name, "train", "loss")[0][1] == pytest.approx(LN2, abs=1e-6)
        for metric in ("reward_chosen", "reward_rejected", "reward_margin", "chosen_gain_a_token"):
            assert abs(logged(tmp_path / name, "train", metric)[0][1]) < 1e-6
        made.load_state(state)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_base_as_reference_is_another_one_after_sft(method: Method, tmp_path: Path) -> None:
    """And it is the base: its logps are those of a network that was never trained."""
    made = policy(method)
    base = made.state()
    run(made, stage("sft", learning_rate=0.1), tmp_path / "sft", name="sft")
    run(made, dpo_stage(steps=1, reference="base"), tmp_path / "dpo", base=base)
    loss = logged(tmp_path / "dpo", "train", "loss")[0][1]
    assert abs(loss - LN2) > 0.01
    own = run_context(tmp_path / "dpo")
    split = reference.with_reference(made, pairs(), 100, own.machine, own.cache, base)
    batch = pack(pairs().trees)
    with torch.no_grad():
        untrained = policy(method)
        expected = batch.sums(untrained.logps(batch))
    found = torch.tensor([logp for tree in split.trees for logp in tree.reference])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_reference_is_paid_for_once_over_beta_and_anew_for_what_it_depends_on(
    passes: list[int], tmp_path: Path
) -> None:
    shared = tmp_path / "cache"
    for beta, loss in ((0.1, "sigmoid"), (0.5, "sigmoid"), (0.5, "ipo")):
        config = dpo_stage(beta=beta, loss=loss, steps=1)
        run(policy(), config, tmp_path / f"{beta}{loss}", pairs(5), cache=shared)
    assert passes == [8, 5]
    straight = tmp_path / "straight"
    run(policy(), dpo_stage(beta=0.5, loss="ipo", steps=1), straight, pairs(5))
    assert passes == [8, 5, 8, 5]  # another cache
    for split in ("train", "validation"):
        assert logged(straight, split, "loss") == logged(tmp_path / "0.5ipo", split, "loss")


def test_a_reference_is_another_one_under_other_weights_or_for_other_pairs(
    passes: list[int], tmp_path: Path
) -> None:
    own = run_context(tmp_path)

    def refer(made: Policy, split: Split | None = None) -> None:
        reference.with_reference(made, split or pairs(), 100, own.machine, own.cache)

    moved, frozen = policy(), policy()
    next(iter(moved.trainable().values())).data += 0.1
    next(p for p in frozen.network.parameters() if not p.requires_grad).data += 0.1
    for made in (policy(), moved, frozen, policy(), moved):
        refer(made)
    assert passes == [8, 8, 8]
    refer(policy(), pairs(4))
    refer(policy(), Split([t._replace(prompt=[*t.prompt, 2]) for t in pairs().trees], Ledger()))
    refer(
        policy(),
        Split([t._replace(completions=t.completions[::-1]) for t in pairs().trees], Ledger()),
    )
    assert passes[3:] == [4, 8, 8]


def test_the_kl_is_estimated_on_held_out_prompts_where_asked(tmp_path: Path) -> None:
    config = dpo_stage(steps=4, validate_every=2, learning_rate=0.05)
    without, few = policy(), policy()
    result = run(without, config, tmp_path / "0", pairs(6))
    assert "kl" not in result.measures
    result = run(few, replace(config, kl_prompts=3), tmp_path / "3", pairs(6))
    found = dict(logged(tmp_path / "3", "validation", "kl"))
    assert list(found) == [2, 4]
    assert found[4] == result.measures["kl"] > 0.05
    for name, tensor in without.state().items():  # what is measured is without effect
        assert torch.equal(tensor, few.state()[name])


def test_the_kl_is_that_of_the_answers_it_draws(tmp_path: Path, monkeypatch: Any) -> None:
    """By hand: log-softmax of two whole networks over the drawn tokens, without trees."""
    drawn: list[Any] = []
    answer = dpo.generate

    def kept(policy: Policy, prompts: Any, **named: Any) -> Any:
        answers = answer(policy, prompts, **named)
        drawn.append((policy.state(), list(zip(prompts, answers, strict=True))))
        return answers

    monkeypatch.setattr(dpo, "generate", kept)
    result = run(policy(), dpo_stage(kl_prompts=3, learning_rate=0.05), tmp_path, pairs(6))
    after, before = policy(), policy()
    after.load_state(drawn[-1][0])
    total = 0.0
    for prompt, written in drawn[-1][1]:
        for made, sign in ((after, 1), (before, -1)):
            with torch.no_grad(), made.generating() as network:
                logits = network(torch.tensor([prompt + written.ids])).logits[
                    0, len(prompt) - 1 : -1
                ]
            logps = logits.log_softmax(-1)[range(len(written.ids)), written.ids]
            total += sign * float(logps.sum())
    assert result.measures["kl"] == pytest.approx(total / 3, abs=1e-4)


def test_it_is_validated_every_so_many_steps_and_at_the_end(tmp_path: Path) -> None:
    run(policy(), dpo_stage(steps=5, validate_every=2), tmp_path, pairs(5))
    assert [step for step, _ in logged(tmp_path, "validation", "logp_accuracy")] == [2, 4, 5]


def test_it_is_said_where_the_chosen_answers_fall_far(tmp_path: Path) -> None:
    """Held-out pairs that prefer what the training pairs do not are sure to fall."""
    swapped = [t._replace(completions=t.completions[::-1]) for t in pairs().trees]
    config = dpo_stage(steps=6, learning_rate=0.05)
    fallen = run(policy(), config, tmp_path / "a", Split(swapped, Ledger()))
    (said,) = fallen.warnings
    lost = -fallen.measures["chosen_gain_a_token"]
    assert lost > dpo.FAR
    for word in (f"held-out pairs the chosen answers are {lost:.2f} nats a token", "nll_weight"):
        assert word in said
    assert f"Reward accuracy ({100 * fallen.measures['reward_accuracy']:.1f} %)" in said
    assert run(policy(), config, tmp_path / "b", pairs()).warnings == []


def test_without_held_out_pairs_the_last_training_pairs_are_looked_at() -> None:
    made = dpo.DPOModule(
        policy(), "dpo", dpo_stage(), steps=1, step_offset=0, machine=CPU, end=1, prompts=[]
    )
    made.progress.train = {"chosen_gain_a_token": -0.51, "reward_accuracy": 1.0}
    (said,) = made.warnings()
    assert "on training pairs the chosen answers are 0.51 nats" in said
    made.progress.train["chosen_gain_a_token"] = -0.5
    assert made.warnings() == []


def test_dropout_is_off_and_on_again_after_the_stage(tmp_path: Path) -> None:
    made = policy(dropout=0.5)
    result = run(made, dpo_stage(steps=2), tmp_path / "with")
    assert result.dropout == "off"
    assert {m.p for m in made.network.modules() if isinstance(m, torch.nn.Dropout)} == {0.5}
    plain = policy()
    run(plain, dpo_stage(steps=2), tmp_path / "without")
    for name, tensor in plain.state().items():
        assert torch.equal(tensor, made.state()[name])
