"""The config tree: what composes, what is refused, and in which words."""

import subprocess
import sys
from pathlib import Path

import pytest

from drbode import config
from drbode.config import BadInput

DPO_AGAINST_BASE = ["stages=[sft,dpo]", "dpo.reference=base", "dpo.learning_rate=1"]
TUNED = ["method=peft", "peft.type=VERA", "sft.learning_rate=1"]


def load(*overrides: str, multirun: bool = False) -> config.TrainConfig:
    return config.load(config.compose("train", overrides), overrides, multirun)


def door(*overrides: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "drbode.train", *overrides],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )


def test_defaults_compose_and_every_auto_of_no_machine_is_resolved() -> None:
    run = load()
    assert (run.method, run.stages) == ("lora", ["sft"])
    resolved = run.resolved()
    assert resolved.lora.alpha == 2 * run.lora.r
    assert resolved.sft.learning_rate == run.model.learning_rates["lora"]["sft"]


@pytest.mark.parametrize("group", sorted(config.groups().keys() - {"experiment"}))
def test_every_option_of_every_group_composes(group: str) -> None:
    for option in config.groups()[group]:
        encoder = option in ("bertinho", "bertimbau")
        overrides = [f"{group}={option}", *(["stages=mlm"] if encoder else [])]
        if overrides == ["method=peft"]:  # which no model has a learning rate for
            overrides += ["peft.type=IA3", "sft.learning_rate=1e-2"]
        if overrides == ["benchmark=open"]:  # which a run asks beside its benchmark
            config.build(config.EvaluateConfig, config.compose("evaluate", overrides))
        else:
            config.build(config.TrainConfig, config.compose("train", overrides))


@pytest.mark.parametrize("experiment", config.groups().get("experiment", []))
def test_every_experiment_composes(experiment: str) -> None:
    load(f"experiment={experiment}")


def test_the_evaluate_door_composes() -> None:
    tree = config.build(config.EvaluateConfig, config.compose("evaluate"))
    assert tree.benchmark.protocol == "alternatives"


def test_a_protocol_is_a_group_and_a_key() -> None:
    assert load("benchmark.protocol=letter") == load("benchmark=letter")
    assert load("benchmark=letter").benchmark.protocol == "letter"


def test_a_limit_is_refused_where_nothing_is_written_up_to_it() -> None:
    limit = "benchmark.max_new_tokens=5"
    assert "max_new_tokens" in load("benchmark=generate", limit).effective()["benchmark"]
    with pytest.raises(
        BadInput, match="max_new_tokens: has no effect with a protocol other than generate"
    ):
        load("benchmark=chapter", limit)
    unread = load("benchmark=chapter", limit, multirun=True)
    assert "max_new_tokens" not in unread.effective()["benchmark"]


@pytest.mark.parametrize(
    "key", ["against=RUN/sft", "reward=RUN/reward", "max_new_tokens=5", "scorer=scorers:own"]
)
def test_what_open_answers_alone_read_is_refused_elsewhere(key: str) -> None:
    with pytest.raises(BadInput, match=f"{key.split('=')[0]}: has no effect with a protocol other"):
        load(f"benchmark.{key}")
    tree = config.compose("evaluate", ["benchmark=open", f"benchmark.{key}"])
    asked = config.build(config.EvaluateConfig, tree)
    config.refuse_unread([f"benchmark.{key}"], asked.unread())
    plain = config.build(config.EvaluateConfig, config.compose("evaluate", ["benchmark=open"]))
    assert asked.run_name() != plain.run_name()


def test_models_to_set_beside_are_auto_one_or_several() -> None:
    for words, expected in (
        ([], None),
        (["benchmark.against=RUN/sft"], ["RUN/sft"]),
        (["benchmark.against=[bodinho,RUN/sft]"], ["bodinho", "RUN/sft"]),
        (["benchmark.against=[]"], []),
    ):
        tree = config.compose("evaluate", ["benchmark=open", *words])
        assert config.build(config.EvaluateConfig, tree).benchmark.rivals == expected


@pytest.mark.parametrize("key", ["reward", "against"])
def test_an_evaluation_is_another_one_when_a_model_it_reads_changes(
    key: str, tmp_path: Path
) -> None:
    names = []
    for text in ("one", "longer"):
        (tmp_path / "weights").write_text(text)
        tree = config.compose("evaluate", ["benchmark=open", f"benchmark.{key}={tmp_path}"])
        names.append(config.build(config.EvaluateConfig, tree).run_name())
    assert names[0] != names[1]


def test_open_answers_are_read_beside_preferences_and_shape_no_stage() -> None:
    for words in (["open.prompts=3"], ["stages=[sft,reward]", "open.prompts=3"]):
        with pytest.raises(BadInput, match=r"open.prompts: .* does not read open"):
            load(*words)
    for key in ("open.max_new_tokens=3", "open.scorer=scorers:own"):
        name = key.partition("=")[0]
        with pytest.raises(BadInput, match=f"{name}: has no effect with open.prompts=0"):
            load("stages=dpo", "open.prompts=0", key)
    few, many = load("stages=dpo", "open.prompts=3"), load("stages=dpo")
    assert few.run_name() != many.run_name()
    assert few.stage_identity("dpo") == many.stage_identity("dpo")


def test_the_number_of_curated_rows_is_refused_without_curation() -> None:
    with pytest.raises(BadInput, match=r"sft.curation_n: has no effect with sft.curation=null"):
        load("sft.curation_n=50")
    with pytest.raises(
        BadInput, match=r"sft.curation_n: expected a whole number at least 1, got 0"
    ):
        load("sft.curation=limo", "sft.curation_n=0")
    all_rows = load()
    assert load("sft.curation_n=50", multirun=True).run_name() == all_rows.run_name()
    few = load("sft.curation=limo", "sft.curation_n=50")
    more = load("sft.curation=limo")
    assert more.sft.curation_n == 100
    stages = [c.stage_identity("sft") for c in (all_rows, few, more, load("sft.curation=random"))]
    assert len({config.digest(stage) for stage in stages}) == 4


@pytest.mark.parametrize(
    "words",
    [
        ["benchmark.fewshot_choice=random"],
        ["benchmark.fewshot_path=examples.jsonl"],
        ["benchmark.fewshot_overflow=drop"],
        ["benchmark.fewshot_seed=1"],
        ["benchmark.num_fewshot=4", "benchmark.fewshot_choice=similar", "benchmark.fewshot_seed=1"],
    ],
)
def test_examples_keys_are_refused_where_they_have_no_effect(words: list[str]) -> None:
    key, _, value = words[-1].partition("=")
    with pytest.raises(BadInput, match=f"{key}: has no effect with benchmark.num_fewshot=0"):
        load(*words)
    name = key.removeprefix("benchmark.")
    assert name not in load(*words, multirun=True).effective()["benchmark"]
    read = load("benchmark.num_fewshot=4", words[-1])
    assert str(read.effective()["benchmark"][name]) == value
    assert read.run_name() != load("benchmark.num_fewshot=4").run_name()


def test_open_prompts_are_asked_without_examples() -> None:
    words = ["benchmark=open", "benchmark.num_fewshot=2"]
    asked = config.build(config.EvaluateConfig, config.compose("evaluate", words))
    with pytest.raises(BadInput, match="num_fewshot: has no effect with the protocol open"):
        config.refuse_unread(words, asked.unread())


def test_bodinhos_examples_are_refused_where_it_has_none() -> None:
    words = ["benchmark.num_fewshot=4", "data.conditions=all"]
    with pytest.raises(BadInput, match="fewshot_path: bodinho's examples are on the conditions"):
        load(*words)
    with pytest.raises(BadInput, match="fewshot_path: bodinho's examples are on the conditions"):
        config.build(config.EvaluateConfig, config.compose("evaluate", words))
    assert load(*words, "benchmark.fewshot_path=examples.jsonl").benchmark.num_fewshot == 4


def test_stages_may_be_given_as_one_word_and_keep_their_order() -> None:
    assert load("stages=cpt").stages == ["cpt"]
    assert load("stages=[sft,cpt]").stages == ["sft", "cpt"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["lora.r=0"], ["lora.r", "at least 1", "got 0"]),
        (["lora.r=many"], ["lora.r", "a whole number", '"many"']),
        (["lora.r=2.5"], ["lora.r", "a whole number", "2.5"]),
        (["lora.r=true"], ["lora.r", "a whole number", "true"]),
        (["lora.dropout=1"], ["lora.dropout", "at most"]),
        (["stages=stf"], ["stages", "reward or ppo", "did you mean sft?"]),
        (["stages=[]"], ["stages", "a stage or more"]),
        (["benchmark=open"], ["benchmark.protocol", "open.prompts", "chapter or written"]),
        (["stages=[sft,sft]"], ["sft stands twice"]),
        (["sft.learning_rate=quick"], ["sft.learning_rate", "auto or a number above 0"]),
        (["sft.schedule=cosin"], ["sft.schedule", "did you mean cosine?"]),
        (["sft.steps=5", "sft.tokens=5"], ["sft.tokens", "sft.steps is set too"]),
        (["sft.betas=[0.9]"], ["sft.betas", "two numbers"]),
        (["budget.steps=9", "budget.tokens=9"], ["budget.tokens", "budget.steps is set too"]),
        (["budget.steps=1", "stages=[cpt,sft]"], ["budget.steps", "each of 2 stages", "got 1"]),
        (["budget.steps=9", "sft.tokens=5"], ["sft.tokens", "budget.steps says how long"]),
        (["budget.tokens=99", "stages=[sft,reward,ppo]"], ["budget.tokens", "ppo", "steps"]),
        (["model.learning_rates.lora.sft=-1"], ["model.learning_rates.lora.sft", "above 0"]),
        (["~model.learning_rates.lora.sft"], ["sft.learning_rate", "finds no value"]),
        (["+lora.rang=3"], ["lora.rang", "no such key"]),
        (["lora=3"], ["lora", "a block of keys"]),
        (["model.path=x/y", "model.revision=2714e31"], ["model.revision", "in quotes", "...\"'"]),
        (["method=full", "lora.r=3"], ["lora.r", "method full", "does not read lora"]),
        (
            ["stages=cpt", "cpt.replay.path=b.jsonl"],
            ["cpt.replay.path", "no effect with cpt.replay.share=0"],
        ),
        (
            ["stages=cpt", "cpt.replay.share=0.1", "cpt.replay.split=general"],
            ["cpt.replay.path", "forgetting.text_path", "must not be trained on"],
        ),
        (
            ["stages=cpt", "cpt.data.path=a.txt", "cpt.data.column=text"],
            ["cpt.data.column", "no effect with a .txt file"],
        ),
        (["cpt.epochs=3"], ["cpt.epochs", "stages [sft]", "does not read cpt"]),
        (["peft.type=IA3"], ["peft.type", "method lora", "does not read peft"]),
        (["method=peft", "peft.type=IA3"], ["sft.learning_rate", "finds no value", "peft"]),
        (["method=peft", "sft.learning_rate=1"], ["peft.type", "such as IA3", "got null"]),
        (["method=peft", "sft.learning_rate=1", "peft.type=a/b"], ["peft.type", '"a/b"']),
        (
            [*TUNED, "peft.options={vera_dropout: 0.1}", "stages=dpo", "dpo.learning_rate=1"],
            ["peft.options", "dropout is off in dpo", "vera_dropout"],
        ),
        (
            [*TUNED, "peft.options={bias: all}", *DPO_AGAINST_BASE],
            ["dpo.reference", "set dpo.reference=stage_start"],
        ),
        (
            ["sft.data.path=x.jsonl", "sft.data.validation_share=0", "sft.patience=2"],
            ["sft.data.validation_share", "patience"],
        ),
    ],
)
def test_a_mistake_is_named_by_its_key(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        load(*overrides)
    for word in words:
        assert word in str(caught.value)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(BadInput) as caught:
        load("lora.r=0", "sft.epochs=-1")
    assert "lora.r" in str(caught.value)
    assert "sft.epochs" in str(caught.value)


def test_a_budget_is_shared_out_to_the_stages_and_is_the_same_run() -> None:
    resolved = load("stages=[cpt,sft]", "budget.steps=11").resolved()
    assert (resolved.cpt.steps, resolved.sft.steps) == (6, 5)
    assert resolved.resolved() == resolved
    tokens = load("stages=[cpt,sft]", "budget.tokens=1000")
    assert tokens.resolved().sft.tokens == 500
    said = load("stages=[cpt,sft]", "cpt.tokens=500", "sft.tokens=500")
    assert tokens.run_name() == said.run_name() != load("stages=[cpt,sft]").run_name()


def test_an_unread_override_is_without_effect_in_a_multirun() -> None:
    four, eight = (load("method=full", f"lora.r={r}", multirun=True) for r in (4, 8))
    assert four.run_name() == eight.run_name() == load("method=full").run_name()


def test_the_run_name_follows_what_shapes_the_result_and_nothing_else() -> None:
    name = load().run_name()
    assert name.startswith("lora-r32-sft-")
    for same in ("output_dir=elsewhere", "force=true", "logger=csv", "trainer.progress=false"):
        assert load(same).run_name() == name
    rate = load().model.learning_rates["lora"]["sft"]
    assert load(f"sft.learning_rate={rate}").run_name() == name
    for other in ("seed=1", "lora.r=8", "sft.epochs=1", "benchmark.questions=3"):
        assert load(other).run_name() != name


def test_a_tuner_is_named_and_its_options_shape_the_run() -> None:
    names = [
        load(*TUNED, *more).run_name()
        for more in ((), ("peft.options={r: 8}",), ("peft.type=IA3",), ("peft.options={r: 9}",))
    ]
    assert [name.rsplit("-", 1)[0] for name in names] == [
        *("peft-vera-sft", "peft-vera-sft", "peft-ia3-sft", "peft-vera-sft")
    ]
    assert len(set(names)) == 4


def test_a_run_is_another_one_when_its_input_changes(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    names = []
    for text in ("one", "one", "two"):
        rows.write_text(text)
        names.append(load(f"sft.data.path={rows}").run_name())
    assert names[0] == names[1] != names[2]
    for text in ("three", "four"):
        (tmp_path / "template.jinja").write_text(text)
        names.append(load(f"model.chat_template={tmp_path / 'template.jinja'}").run_name())
    assert names[3] != names[4]
    words = ["benchmark.num_fewshot=2", f"benchmark.fewshot_path={rows}"]
    before = load(*words).run_name()
    rows.write_text("five")
    assert load(*words).run_name() != before


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["lora.rr=3"], ["lora.rr", "did you mean lora.r"]),
        (["methd=lora"], ["methd", "did you mean method?"]),
        (["method=lorra"], ["method", "lora or qlora", "did you mean lora"]),
        (["lora.r"], ["'lora.r'", "key=value"]),
        (["lora.r=[1"], ["[1", "key=value"]),
        (["sft={rank: 1}"], ["sft: a key", "added as +sft.name=value"]),
        (["output_dir=saídas"], ["output_dir=saídas", "'key=\"value\"'"]),
        (["lora.r=0"], ["lora.r", "at least 1"]),
    ],
)
def test_the_door_ends_in_one_sentence_and_code_2(
    overrides: list[str], words: list[str], tmp_path: Path
) -> None:
    done = door(*overrides, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    for word in words:
        assert word in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_config_is_read_without_torch() -> None:
    code = (
        "import sys; from drbode import config; config.load(config.compose('train'), []); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sft.data.revision=1f"], ["sft.data.revision: bodinho is no hub id, got 1f"]),
        (["benchmark.revision=1f"], ["benchmark.revision: bodinho is no hub id"]),
        (["model.revision=1f"], ["model.revision: bodinho is no hub id"]),
        (["sft.data.path=a.jsonl", "sft.data.split=x"], ["sft.data.split", "which has no splits"]),
        (["stages=cpt", "cpt.data.layout=messages"], ["cpt.data.layout", "a single layout"]),
        (
            ["stages=mlm", "model=bertinho", "mlm.data.layout=alpaca"],
            ["mlm.data.layout", "a single layout"],
        ),
        (["benchmark.path=a.json", "benchmark.split=x"], ["benchmark.split", "has no splits"]),
        (["sft.data.validation_share=0.1"], ["sft.data.validation_share", "rows of their own"]),
        (
            ["sft.data.path=x.json", "sft.data.validation_share=0", "sft.data.validation_rows=9"],
            ["sft.data.validation_rows", "validation_share=0"],
        ),
    ],
)
def test_what_the_source_of_rows_does_not_read_is_refused(
    overrides: list[str], words: list[str]
) -> None:
    with pytest.raises(BadInput) as caught:
        load(*overrides)
    for word in words:
        assert word in str(caught.value)
    load("sft.data.path=someone/set", "sft.data.split=x", "sft.data.revision=1f")
