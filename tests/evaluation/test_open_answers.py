"""Open answers: counted by hand, against plain transformers, and put to the right rows."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from drbode import config
from drbode.config import BadInput
from drbode.data.bodinho import PAIRS
from drbode.data.prompts import Renderer
from drbode.data.rows import Message, Pair, Prompt
from drbode.data.splits import prompt_columns, read_rows
from drbode.evaluation.open_answers import (
    Interview,
    OpenAnswer,
    OpenPrompt,
    OpenPrompts,
    answer,
    compare,
    load_prompts,
    progression,
    prompt_text,
    scored,
    side_by_side,
    summarise,
)
from drbode.models.base import Policy, bodinho_folder
from drbode.models.heads import RewardModel
from drbode.models.machine import Machine
from drbode.record import of_open
from drbode.session.prepare import open_prompts
from tests.conftest import settings

CPU = Machine("cpu", "32-true", "fp32", "sdpa", 1)
CAUTIOUS = "x. Procure um profissional de saúde."
CURT = "x."
SURE = "x. Tenho certeza absoluta."


def open_benchmark(*words: str) -> config.BenchmarkConfig:
    tree = config.compose("evaluate", ["benchmark=open", *words])
    return config.build(config.EvaluateConfig, tree).benchmark


@pytest.fixture(scope="module")
def policy() -> Policy:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    shape = Qwen3Config.from_pretrained(bodinho_folder(), num_hidden_layers=1)
    return Policy(Qwen3ForCausalLM(shape), AutoTokenizer.from_pretrained(bodinho_folder()))


@pytest.fixture(scope="module")
def prompts() -> OpenPrompts:
    return load_prompts(open_benchmark("benchmark.questions=6"))


def by(policy: Policy, prompts: OpenPrompts, max_tokens: int = 4096) -> list[OpenAnswer]:
    return answer(policy, prompts, CPU, max_new_tokens=5, max_tokens=max_tokens)


def said(*texts: str, margins: list[float | None] | None = None) -> list[OpenAnswer]:
    prompt = OpenPrompt(Prompt((Message("user", "?"),), "x. Ouça a sua médica.", "here"), None)
    each = margins or [None] * len(texts)
    return [OpenAnswer(prompt, t, True, m) for t, m in zip(texts, each, strict=True)]


def test_the_summary_by_hand() -> None:
    answers = said(CAUTIOUS, "y", SURE, CURT, margins=[1.0, -1.0, 0.0, None])
    summary = summarise(answers)
    assert summary["cautious"] == {
        "share": 0.25,
        "count": 1,
        "of": 4,
        "interval": pytest.approx((0.0456, 0.6994), abs=1e-4),
    }
    assert summary["overconfident"]["count"] == 1
    assert summary["ends"]["count"] == 3
    assert summary["repeats"]["count"] == 0
    assert summary["keeps_content"]["count"] == 3  # the right first sentence is 'x'
    assert (summary["preferred"]["count"], summary["preferred"]["of"]) == (1, 3)  # a tie is no hit
    assert summary["words"] == (6 + 1 + 4 + 1) / 4
    assert summary["gold"] == pytest.approx((1 + (-0.5 - 1) - 1 + 0) / 4)
    assert summary["score"] is None


def test_the_comparison_by_hand() -> None:
    before = said(CURT, CURT, CURT, CAUTIOUS, margins=[0.0, 5.0, None, 1.0])
    after = said(CAUTIOUS, CAUTIOUS, CURT, SURE, margins=[1.0, 4.0, 1.0, 2.0])
    comparison = compare(before, after)
    assert (comparison["cautious"]["gained"], comparison["cautious"]["lost"]) == (2, 1)
    rate = comparison["win_rate"]["gold"]
    assert (rate["wins"], rate["ties"], rate["losses"], rate["rate"]) == (2, 1, 1, 0.625)
    assert (comparison["implicit"]["count"], comparison["implicit"]["of"]) == (2, 3)
    assert set(comparison["win_rate"]) == {"gold"}
    scored = [
        [
            OpenAnswer(a.source, a.written, True, None, s)
            for a, s in zip(answers, scores, strict=True)
        ]
        for answers, scores in ((before, [1.0, 1.0, 1.0, 1.0]), (after, [2.0, 0.0, 2.0, 2.0]))
    ]
    assert compare(*scored)["win_rate"]["reward"]["wins"] == 3
    assert compare(scored[0], after)["win_rate"].keys() == {"gold"}


def test_a_progression_compares_each_with_all_before_it() -> None:
    results = progression({"base": said(CURT), "sft": said(CURT), "dpo": said(CAUTIOUS)})
    assert [list(result["against"]) for result in results.values()] == [
        [],
        ["base"],
        ["base", "sft"],
    ]
    assert results["dpo"]["against"]["sft"]["win_rate"]["gold"]["rate"] == 1
    assert results["sft"]["against"]["base"]["win_rate"]["gold"]["rate"] == 0.5


def test_an_answer_is_what_plain_transformers_writes(policy: Policy, prompts: OpenPrompts) -> None:
    renderer = Renderer(policy.tokenizer, policy.context)
    for one in by(policy, prompts)[:3]:
        ids = renderer.prompt(one.source.prompt.messages)
        with policy.generating() as network, torch.no_grad():
            options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": -1}
            new = network.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist()
        end = renderer.turn_end[1]
        kept = new[: new.index(end)] if end in new else new
        assert one.written == policy.tokenizer.decode(kept, skip_special_tokens=True)
        assert one.stopped == (end in new)


def test_a_margin_is_the_difference_of_summed_logps(policy: Policy, prompts: OpenPrompts) -> None:
    renderer = Renderer(policy.tokenizer, policy.context)
    one = by(policy, prompts)[0]
    assert one.source.pair is not None
    (tree,) = renderer.pair(one.source.pair).trees
    logps = []
    with policy.generating() as network, torch.no_grad():
        for completion in tree.completions:
            ids = torch.tensor([tree.prompt + completion.ids])
            table = network(ids).logits[0, :-1].log_softmax(-1)
            picked = table.gather(-1, ids[0, 1:, None])[len(tree.prompt) - 1 :]
            logps.append(float(picked.sum()))
    assert one.margin == pytest.approx(logps[0] - logps[1], abs=1e-4)


def test_a_score_is_read_at_the_end_of_the_answers_turn(
    policy: Policy, prompts: OpenPrompts
) -> None:
    renderer = Renderer(policy.tokenizer, policy.context)
    head = torch.randn(policy.model.config.hidden_size, generator=torch.manual_seed(1))
    answers = by(policy, prompts)
    assert all(one.score is None for one in answers)
    with_scores = scored(answers, RewardModel({}, head), policy, CPU, 60)
    assert [one.written for one in with_scores] == [one.written for one in answers]
    for one in with_scores[:3]:
        ids = renderer.prompt(one.source.prompt.messages)
        ids += policy.tokenizer(one.written, add_special_tokens=False)["input_ids"]
        ids.append(renderer.turn_end[1])
        with policy.generating() as network, torch.no_grad():
            hidden = network.base_model(torch.tensor([ids])).last_hidden_state[0, -1]
        assert one.score == pytest.approx(float(hidden @ head), abs=1e-4)


def test_batches_change_no_answer_and_the_mode_is_kept(
    policy: Policy, prompts: OpenPrompts
) -> None:
    policy.network.train()
    alone, together = by(policy, prompts, 1), by(policy, prompts, 10_000)
    assert policy.network.training
    assert [a.written for a in alone] == [a.written for a in together]
    for one, two in zip(alone, together, strict=True):
        assert one.margin == pytest.approx(two.margin, abs=1e-4)


def test_what_an_interview_leaves(policy: Policy, prompts: OpenPrompts, tmp_path: Path) -> None:
    interview = Interview(prompts, CPU, max_new_tokens=3, max_tokens=100)
    interview.ask("one", policy)
    interview.ask("two", policy)
    interview.score(RewardModel({}, torch.ones(policy.model.config.hidden_size)), policy)
    interview.write(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "two.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in rows] == [a.written for a in interview.answers["two"]]
    assert all(isinstance(row["score"], float) for row in rows)
    with (tmp_path / "side_by_side.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["prompt", "right", "one", "two"]
    assert table == [
        {k: v or "" for k, v in row.items()} for row in side_by_side(interview.answers)
    ]


def test_a_scorer_of_the_users_stands_beside_the_rules(
    policy: Policy, prompts: OpenPrompts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_open.py").write_text(
        "def length(prompts, answers, references):\n"
        "    return [len(a) + (r is not None) for a, r in zip(answers, references, strict=True)]\n"
        "def none(prompts, answers, references):\n"
        "    return [float('nan')] * len(answers)\n"
    )
    name = "my_open:length"
    interview = Interview(prompts, CPU, 3, 100, name)
    interview.ask("one", policy)
    interview.ask("two", policy)
    lengths = [len(one.written) + 1 for one in interview.answers["two"]]
    assert [one.scores[name] for one in interview.answers["two"]] == lengths
    interview.score(RewardModel({}, torch.ones(policy.model.config.hidden_size)), policy)
    results = progression(interview.answers)
    assert results["one"]["summary"]["scores"] == {name: sum(lengths) / len(lengths)}
    assert of_open(results["one"]["summary"])[name] == sum(lengths) / len(lengths)
    assert "scores" not in of_open(summarise(said(CURT)))
    assert results["two"]["against"]["one"]["win_rate"].keys() == {"gold", "reward", name}
    assert results["two"]["against"]["one"]["win_rate"][name]["ties"] == len(lengths)
    interview.write(tmp_path)
    with (tmp_path / "side_by_side.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0])[-2:] == [f"one, {name}", f"two, {name}"]
    assert [float(row[f"two, {name}"]) for row in table] == lengths
    with pytest.raises(BadInput, match=r"open.scorer: my_open:none gave nan for answer 1"):
        Interview(prompts, CPU, 3, 100, "my_open:none").ask("one", policy)
    with pytest.raises(BadInput, match=r"benchmark.scorer: my_open:gone could not be imported"):
        Interview(prompts, CPU, 3, 100, "my_open:gone", "benchmark.scorer")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pair(prompt: Any, chosen: str = "a", rejected: str = "b") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_prompts_come_from_pairs_or_prompts_alone_and_are_asked_once(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    rows = [pair("p"), pair("p", "c"), {"prompt": "q"}, {"prompt": turns}]
    prompts = load_prompts(open_benchmark(f"benchmark.path={write(tmp_path / 'x.jsonl', rows)}"))
    assert [prompt_text(a.prompt) for a in prompts.rows] == ["p", "q", "system: s\nu"]
    where = f"{tmp_path / 'x.jsonl'}, line 1"
    assert prompts.rows[0].pair == Pair((Message("user", "p"),), "a", "b", where)
    assert prompts.rows[1].pair is prompts.rows[1].prompt.right is None


def test_bodinhos_prompts_are_those_of_the_split() -> None:
    prompts = load_prompts(open_benchmark("benchmark.split=validation"))
    held = {row["prompt"] for row in PAIRS["validation"]()}
    assert {prompt_text(a.prompt) for a in prompts.rows} == held
    with pytest.raises(BadInput, match="bodinho has no split general there"):
        load_prompts(open_benchmark("benchmark.split=general"))


def test_a_prompt_without_room_for_its_answer_is_refused_by_its_line(
    policy: Policy, tmp_path: Path
) -> None:
    path = write(tmp_path / "x.jsonl", [{"prompt": "p"}, {"prompt": "dengue " * 2100}])
    prompts = load_prompts(open_benchmark(f"benchmark.path={path}"))
    with pytest.raises(BadInput, match=r"x.jsonl, line 2: prompt: \d+ tokens are too long"):
        by(policy, prompts)


@pytest.mark.parametrize("stages", ["stages=dpo", "stages=[sft,ppo]"])
def test_a_run_asks_what_it_holds_out(policy: Policy, stages: str, tmp_path: Path) -> None:
    renderer = Renderer(policy.tokenizer, policy.context)
    words = (stages, "ppo.reward=drbode.data.answers:gold_score") if "ppo" in stages else (stages,)
    prompts = open_prompts(settings(*words, "open.prompts=20"), renderer)
    assert prompts is not None
    test = {row["prompt"] for row in PAIRS["test"]()}
    assert len(prompts.rows) == 20
    assert {prompt_text(a.prompt) for a in prompts.rows} <= test

    stage: Any = "ppo" if "ppo" in stages else "dpo"
    rows = [pair(f"p{n}") for n in range(10)] + [pair("dengue " * 2100 + str(n)) for n in range(10)]
    path = write(tmp_path / "x.jsonl", rows)
    words = (*words, f"{stage}.data.path={path}", f"{stage}.data.validation_share=0.5")
    run = settings(*words)
    prompts = open_prompts(run, renderer)
    assert prompts is not None
    trained, held = read_rows(
        "pair", prompt_columns("prompt"), stage, run.stage(stage), run.seed, "default"
    )
    texts = {prompt_text(a.prompt) for a in prompts.rows}
    assert texts <= {row["prompt"] for _, row in held}
    assert not texts & {row["prompt"] for _, row in trained}
    assert len(texts) + prompts.left_out == len(held)
    assert prompts.left_out == sum(len(row["prompt"]) > 9 for _, row in held) > 0


def test_a_run_without_preferences_or_rows_held_out_asks_nothing(
    policy: Policy, tmp_path: Path
) -> None:
    renderer = Renderer(policy.tokenizer, policy.context)
    path = write(tmp_path / "x.jsonl", [pair("p"), pair("q")])
    unheld = (f"dpo.data.path={path}", "dpo.data.validation_share=0")
    for words in (
        ("stages=[sft,reward]",),
        ("stages=dpo", "open.prompts=0"),
        ("stages=dpo", *unheld),
    ):
        assert open_prompts(settings(*words), renderer) is None
