"""Stage `ppo`: its prompts, scores and rollouts, and that an interruption changes nothing."""

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from drbode.config import BadInput, PpoConfig
from drbode.data.splits import Ledger, Split
from drbode.models.base import Policy
from drbode.models.heads import RewardModel
from drbode.models.methods import wrap
from drbode.objectives.ppo import adapted_beta
from drbode.training import module as training
from drbode.training.context import StageContext
from drbode.training.ppo import PPOModule, Prompts, updates
from drbode.training.rollouts import Experience, RolloutTable
from drbode.training.stages import StageResult, run_stage
from drbode.trees import Tree, pack
from tests.conftest import run_context, settings, tiny, words

TREES = [Tree([1, 2, n], []) for n in range(10)]
PPO = replace(settings().ppo, rollouts=4, global_batch_size=2, inner_epochs=3)


def test_every_iteration_is_whole_and_the_steps_are_those_asked_for() -> None:
    assert updates(PPO) == 6
    plan = Prompts(TREES, replace(PPO, steps=30), seed=0).plan
    assert len(plan) * updates(PPO) == 30
    assert all(len(set(indices)) == 4 for indices in plan)
    assert len(Prompts(TREES, replace(PPO, epochs=2.0), seed=0).plan) == 5
    assert len(Prompts(TREES, replace(PPO, tokens=13), seed=0).plan) == 2
    assert plan == Prompts(TREES, replace(PPO, steps=30), seed=0).plan
    assert plan != Prompts(TREES, replace(PPO, steps=30), seed=1).plan


def test_more_rollouts_than_prompts_are_refused() -> None:
    with pytest.raises(BadInput, match=r"ppo.rollouts: an iteration asks 11 prompts"):
        Prompts(TREES, replace(PPO, rollouts=11), seed=0)


def low(_prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """A reward function: how many of an answer's words are w2 to w39."""
    return [float(sum(int(word[1:]) < 40 for word in answer.split())) for answer in answers]


def ppo_stage(**changes: Any) -> PpoConfig:
    small = {
        "reward": f"{__name__}:low",
        "learning_rate": 1e-2,
        "optimizer": "adamw",
        "rollouts": 6,
        "global_batch_size": 4,
        "inner_epochs": 2,
        "steps": 12,
        "max_new_tokens": 5,
        "max_tokens": 30,
        "validate_every": None,
        "checkpoints": 0,
        "missing_end_penalty": 0.0,
    }
    return replace(settings().ppo, **small | changes)


def prompts(count: int = 12) -> Split:
    trees = [Tree([2 + n, 5, 3 + n][: 1 + n % 3], []) for n in range(count)]
    return Split(trees, Ledger())


def policy(dropout: float = 0.0) -> Policy:
    made = Policy(tiny("qwen3"), words())
    wrap(made, settings("lora.r=4", f"lora.dropout={dropout}").tuning())
    return made


def run(
    made: Policy,
    config: PpoConfig,
    folder: Path,
    validation: Split | None = None,
    **around: Any,
) -> StageResult:
    return run_stage(
        StageContext(
            made,
            "ppo",
            config,
            prompts(),
            validation,
            run_context(folder, **around),
            folder=folder / "checkpoints",
            step_offset=7,
        )
    )[0]


def metrics(folder: Path, *without: str) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["name"] not in without]


def logged(folder: Path, split: str, name: str) -> list[float]:
    rows = metrics(folder)
    return [float(r["value"]) for r in rows if (r["split"], r["name"]) == (split, name)]


def table(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]


def bare(config: PpoConfig, reward: Any, folder: Path) -> PPOModule:
    """The module without a trainer around it."""
    context = run_context(folder)
    return PPOModule(
        policy(),
        "ppo",
        config,
        steps=1,
        step_offset=0,
        machine=context.machine,
        end=1,
        reward=reward,
        probe=context.probe,
        table=folder / "rollouts.jsonl",
    )


def test_a_line_separator_in_an_answer_ends_no_line_of_the_table(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    rows = [{"iteration": n, "answer": "um\u2028dois"} for n in range(3)]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    RolloutTable(path).keep_before(2)
    assert path.read_text(encoding="utf-8") == "".join(lines[:2])


def test_the_first_minibatch_of_an_iteration_has_ratio_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In micro-batches unlike those that the old logps were computed in; dropout is off."""
    ratios: list[tuple[int, float]] = []
    sums = PPOModule.sums

    def watched(self: PPOModule, minibatch: Any) -> Any:
        logps, _ = self.logps_and_values(minibatch.batch)
        ratio = (logps.detach() - minibatch.logps).exp()
        ratios.append((self.progress.steps, float((ratio - 1).abs().max())))
        return sums(self, minibatch)

    monkeypatch.setattr(PPOModule, "sums", watched)
    result = run(policy(dropout=0.5), ppo_stage(global_batch_size=3), tmp_path)
    assert result.dropout == "off"
    first = [off for step, off in ratios if step % 4 == 0]
    later = [off for step, off in ratios if step % 4 != 0]
    assert len(first) >= 3
    assert max(first) < 1e-5 < 1e-3 < max(later)


def test_the_score_lands_on_the_last_token(tmp_path: Path) -> None:
    scores = [3.0, -1.0, 0.5, 2.0]
    asked_of: list[tuple[list[str], list[str]]] = []

    def reward(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        asked_of.append((list(prompts), list(answers)))
        return scores

    made = bare(ppo_stage(missing_end_penalty=0.25), reward, tmp_path)
    made.start = {n: t + 0.1 for n, t in made.start.items()}  # so that there is a KL
    torch.manual_seed(1)
    experience = made.experience(prompts(4).trees, 1.0)
    rollouts = experience.rollouts
    (told,) = asked_of
    assert told[0] == ["w2", "w3 w5", "w4 w5 w5", "w5"]
    assert told[1] == experience.answers.texts
    for tree, answer, ended in zip(
        experience.answers.trees, experience.answers.texts, experience.answers.ended, strict=True
    ):
        ids = tree.completions[0].ids
        assert answer == " ".join(f"w{i}" for i in (ids[:-1] if ended else ids))
        assert ended == (ids[-1] == 1)
    ends = (rollouts.lengths.cumsum(0) - 1).tolist()
    kl = made.beta * (rollouts.logps - rollouts.reference_logps)
    assert kl.abs().min() > 0
    given = rollouts.rewards + kl
    for n, value in enumerate(given.tolist()):
        expected = 0.0
        if n in ends:
            i = ends.index(n)
            expected = scores[i] - 0.25 * (not experience.answers.ended[i])
        assert value == pytest.approx(expected, abs=1e-6)


def test_a_reward_model_scores_the_last_token_of_prompt_and_answer(tmp_path: Path) -> None:
    other, head = policy(), torch.randn(32, generator=torch.Generator().manual_seed(0))
    for parameter in other.trainable().values():
        parameter.data += 0.1
    made = bare(ppo_stage(), RewardModel(other.state(), head), tmp_path)
    experience = made.experience(prompts(4).trees, 1.0)
    for tree, score in zip(
        experience.answers.trees, experience.rollouts.scores.tolist(), strict=True
    ):
        ids = tree.prompt + tree.completions[0].ids
        with torch.no_grad(), other.generating():
            states = other.model.base_model(torch.tensor([ids])).last_hidden_state
        assert score == pytest.approx(float(states[0, -1] @ head), abs=1e-5)


def test_old_logps_and_values_are_those_of_each_token(tmp_path: Path) -> None:
    made = bare(ppo_stage(), low, tmp_path)
    made.value_head.data = torch.randn(33, generator=torch.Generator().manual_seed(0))
    experience = made.experience(prompts(4).trees, 1.0)
    logps, values = [], []
    for tree in experience.answers.trees:
        ids, start = tree.prompt + tree.completions[0].ids, len(tree.prompt)
        with torch.no_grad(), made.policy.generating() as network:
            out = network(torch.tensor([ids]), output_hidden_states=True)
        before = out.hidden_states[-1][0, start - 1 : -1]
        values.append(before @ made.value_head.data[:-1] + made.value_head.data[-1])
        found_logps = out.logits[0, start - 1 : -1].log_softmax(-1)
        logps.append(found_logps[range(len(ids) - start), ids[start:]])
    torch.testing.assert_close(experience.rollouts.logps, torch.cat(logps), atol=1e-5, rtol=0)
    torch.testing.assert_close(experience.rollouts.values, torch.cat(values), atol=1e-5, rtol=0)


def test_the_table_holds_every_rollout_as_the_function_scored_it(tmp_path: Path) -> None:
    run(policy(), ppo_stage(), tmp_path)
    proxy, rows = logged(tmp_path, "rollouts", "proxy"), table(tmp_path)
    assert [r["iteration"] for r in rows] == [n for n in range(3) for _ in range(6)]
    assert len(set(proxy)) > 1
    for n, mean in enumerate(proxy):
        of_iteration = [r for r in rows if r["iteration"] == n]
        scores = low([], [r["answer"] for r in of_iteration])
        assert [r["proxy"] for r in of_iteration] == scores
        assert mean == pytest.approx(sum(scores) / 6)


def test_a_step_makes_tokens_of_positive_advantage_more_probable(tmp_path: Path) -> None:
    made = bare(ppo_stage(value_weight=0.0), low, tmp_path)
    experience = made.experience(prompts().trees, 1.0)
    step = made._step(experience, [7, 3, 11, 0, 9, 1, 10, 2, 4, 8, 6, 5])
    sum(made.sums(batch).loss for batch in step.batches).backward()  # type: ignore[union-attr]
    with torch.no_grad():
        for parameter in made.policy.trainable().values():
            parameter -= 0.01 * parameter.grad  # type: ignore[operator]
        now, _ = made.logps_and_values(pack(experience.answers.trees))
    assert float((experience.rollouts.advantages * (now - experience.rollouts.logps)).sum()) > 0.05


def test_a_reward_function_that_gives_no_score_for_each_answer_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for number, scores in enumerate(([1.0], [float("nan")] * 6)):
        monkeypatch.setitem(sys.modules, "few", SimpleNamespace(scores=lambda *_, s=scores: s))
        with pytest.raises(BadInput, match=r"ppo.reward: the function gave"):
            run(policy(), ppo_stage(reward="few:scores"), tmp_path / str(number))


def test_beta_follows_the_kl_where_a_target_is_set(tmp_path: Path) -> None:
    config = ppo_stage(steps=20, target_kl=0.05, horizon=30, learning_rate=0.05)
    run(policy(), config, tmp_path / "adaptive")
    betas, kls = (logged(tmp_path / "adaptive", "rollouts", name) for name in ("beta", "kl"))
    assert betas[0] == config.beta
    for before, kl, after in zip(betas, kls, betas[1:], strict=False):
        assert after == pytest.approx(adapted_beta(before, kl, 0.05, 30.0, 6))
    assert max(kls) > 0.06  # above the target,
    assert max(betas) > config.beta  # where it rises
    run(policy(), ppo_stage(steps=8), tmp_path / "fixed")
    assert set(logged(tmp_path / "fixed", "rollouts", "beta")) == {config.beta}


@pytest.mark.parametrize(("golds", "validations"), [([1, 2, 0, 1, 9], 4), ([1, 1, 1, 9], 3)])
def test_it_stops_when_gold_turns(
    golds: list[float],
    validations: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """After two validations without a better gold score, here of the greedy answers."""
    left = iter(golds)
    monkeypatch.setattr(PPOModule, "experience", _with_gold(PPOModule.experience, left))
    result = run(
        policy(), ppo_stage(steps=40, validate_every=4, gold_patience=2), tmp_path, prompts(6)
    )
    assert result.steps == 4 * validations
    assert result.ended_by == "early stopping"
    assert logged(tmp_path, "validation", "gold") == golds[:validations]


def _with_gold(experience: Any, left: Any) -> Any:
    def told(self: PPOModule, trees: list[Tree], temperature: float) -> Any:
        answers, rollouts = experience(self, trees, temperature)
        if not temperature:
            answers = answers._replace(gold=[next(left)] * len(trees))
        return Experience(answers, rollouts)

    return told


def test_validation_changes_nothing_in_the_training(tmp_path: Path) -> None:
    """Though it draws answers: its draws are its own."""
    watched, unwatched = policy(), policy()
    run(watched, ppo_stage(validate_every=4), tmp_path / "watched", prompts(6))
    run(unwatched, ppo_stage(), tmp_path / "unwatched")
    assert table(tmp_path / "watched") == table(tmp_path / "unwatched")
    for name, tensor in watched.state().items():
        assert torch.equal(tensor, unwatched.state()[name])


LONG = ppo_stage(
    steps=24,
    checkpoint_every=8,
    checkpoints=2,
    validate_every=8,
    gold_patience=9,
    target_kl=0.05,
    horizon=30,
)


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Policy, StageResult, Path]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "LOG_EVERY", 3)
        made, folder = policy(), tmp_path_factory.mktemp("straight")
        yield made, run(made, LONG, folder, prompts(6)), folder


# Of what happens one after the other: 8 steps and a validation, three times, and the end.
@pytest.mark.parametrize(
    "at",
    [
        pytest.param(7, id="before the first checkpoint, an iteration in the table"),
        pytest.param(15, id="an iteration past the first checkpoint"),
        pytest.param(18, id="in the second validation"),
        pytest.param(28, id="after the last checkpoint"),
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(
    at: int,
    uninterrupted: tuple[Policy, StageResult, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Weights, rollouts and metrics, wherever the power goes out."""
    straight, expected, folder = uninterrupted
    seen = 0

    def counts(original: Any) -> Any:
        def told(self: Any, *rest: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == at:
                raise RuntimeError("the power goes out")
            return original(self, *rest)

        return told

    monkeypatch.setattr(training, "LOG_EVERY", 3)
    for name in ("_step", "on_validation_epoch_end", "on_train_end"):
        monkeypatch.setattr(PPOModule, name, counts(getattr(PPOModule, name)))
    with pytest.raises(RuntimeError, match="power"):
        run(policy(), LONG, tmp_path, prompts(6))
    made = policy()
    result = run(made, LONG, tmp_path, prompts(6))
    for name, tensor in straight.state().items():
        assert torch.equal(tensor, made.state()[name]), name
    assert table(tmp_path) == table(folder)
    assert metrics(tmp_path, "tokens_per_second") == metrics(folder, "tokens_per_second")
    for name in ("steps", "tokens", "train_loss", "validation_loss", "measures", "ended_by"):
        assert getattr(result, name) == getattr(expected, name), name
