"""Rows that a function of the user's gives, wherever a path may stand."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from drbode import config
from drbode.config import BadInput
from drbode.data import sources
from drbode.data.bodinho import CHATS, PAIRS, QUESTIONS, TEXTS
from drbode.data.prompts import Renderer
from drbode.data.splits import StageRows, longest_row
from drbode.evaluation.benchmarks import load_benchmark
from drbode.evaluation.forgetting import load_general
from drbode.models.base import describe
from drbode.models.machine import Machine
from tests.conftest import settings

SOURCE = '''
from drbode.data import bodinho

def texts(split):
    return bodinho.TEXTS[split]()[:12]

def chats(split):
    return bodinho.CHATS[split]()[:12]

def pairs(split):
    return iter(bodinho.PAIRS[split]()[:12])

def questions(split):
    yield from bodinho.QUESTIONS[split]()[:12]

def same(split):
    """One mapping, filled anew."""
    row = {}
    for n in range(3):
        row["text"] = f"{split} {n}"
        yield row

def numbers(split):
    yield {"text": "a"}
    yield 3

def breaks(split):
    yield {"text": "a"}
    raise OSError("no line")

def none(split):
    return []

def nothing(split):
    pass

def wide(split, more):
    return []
'''


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("my_rows", None)
    Path("my_rows.py").write_text(SOURCE)


def read(name: str, kind: Any = "text") -> list[sources.Record]:
    return list(sources.read(kind, f"my_rows:{name}", "train", None, "sft.data.path"))


def test_a_function_is_called_with_the_split_and_its_rows_are_kept_apart() -> None:
    assert read("same") == [
        (f"my_rows:same train row {n + 1}", {"text": f"train {n}"}) for n in range(3)
    ]
    assert [row for _, row in read("chats", "chat")] == CHATS["train"]()[:12]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("numbers", "my_rows:numbers train row 2: expected a mapping of columns, got int"),
        ("breaks", r"my_rows:breaks failed after 1 rows \(OSError: no line, my_rows.py line \d+\)"),
        ("none", "my_rows:none holds no rows"),
        ("nothing", "my_rows:nothing failed after 0 rows .*NoneType"),
        ("wide", "my_rows:wide failed after 0 rows .*missing 1 required positional argument"),
        ("absent", "my_rows:absent could not be imported"),
    ],
)
def test_a_function_that_gives_no_rows_is_one_sentence(name: str, expected: str) -> None:
    with pytest.raises(BadInput, match=f"^sft.data.path: {expected}"):
        read(name)


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("cpt", ["cpt.data.path=my_rows:texts"]),
        ("mlm", ["model=bertinho", "mlm.data.path=my_rows:texts", "mlm.nsp=true"]),
        ("sft", ["sft.data.path=my_rows:chats"]),
        ("dpo", ["dpo.data.path=my_rows:pairs"]),
        ("reward", ["reward.data.path=my_rows:pairs"]),
        ("ppo", ["ppo.data.path=my_rows:pairs", "ppo.reward=drbode.data.answers:gold_score"]),
    ],
)
def test_every_stage_reads_them_as_it_reads_a_file(
    stage: Any, words: list[str], tmp_path: Path
) -> None:
    """With rows to validate on of the same function, which is then called with validation."""
    makers: Any = {"cpt": TEXTS, "mlm": TEXTS, "sft": CHATS}.get(stage, PAIRS)
    for split in ("train", "validation"):
        rows = makers[split]()[:12]
        Path(f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    name = words[-1] if stage in ("cpt", "sft", "dpo", "reward") else words[stage == "mlm"]
    function = name.partition("=")[2]
    ledgers = []
    for train, validation in ((function, function), ("train.jsonl", "validation.jsonl")):
        run = settings(
            f"stages={stage}",
            "method=full",
            *[word for word in words if word != name],
            f"{stage}.data.path={train}",
            f"{stage}.data.validation_path={validation}",
        )
        described = describe(run.model, run.model_kind)
        block = run.stage(stage)
        renderer = Renderer(described.tokenizer, longest_row(stage, block, described.context))
        one, two = StageRows(stage, block, renderer, 0, tmp_path / ".cache").splits()
        assert two is not None
        ledgers.append((one.ledger, two.ledger))
    assert ledgers[0] == ledgers[1]
    assert ledgers[0][0].rows == ledgers[0][1].rows == 12


def test_the_benchmark_its_examples_and_general_knowledge_read_them() -> None:
    words = ["benchmark.path=my_rows:questions", "benchmark.split=validation"]
    words += ["benchmark.num_fewshot=2", "benchmark.fewshot_path=my_rows:questions"]
    words += ["forgetting.questions_path=my_rows:questions", "forgetting.text_path=my_rows:texts"]
    run = settings(*words)
    benchmark = load_benchmark(run.benchmark)
    stems = [q["enunciado"] for q in QUESTIONS["validation"]()[:12]]
    assert [row.stem for row in benchmark.rows] == stems  # type: ignore[union-attr]
    assert benchmark.pool is not None
    assert len(benchmark.pool.questions) == 12
    described = describe(run.model, run.model_kind)
    renderer = Renderer(described.tokenizer, described.context)
    machine = Machine("cpu", "32-true", "fp32", "sdpa", 1)
    general = load_general(run.forgetting, run.benchmark, renderer, machine, "default").as_dict()
    assert (general["questions"], general["documents"]) == (12, 12)


def test_a_run_is_another_one_when_the_functions_code_changes() -> None:
    run = settings("sft.data.path=my_rows:chats")
    name, stage = run.run_name(), run.stage_identity("sft")
    Path("my_rows.py").write_text(SOURCE + "# changed\n")
    assert run.run_name() != name
    assert run.stage_identity("sft") != stage


def test_a_function_has_no_revision_and_names_its_evaluation() -> None:
    words = ("sft.data.path=my_rows:chats", "sft.data.revision=main")
    with pytest.raises(BadInput, match=r"sft.data.revision: my_rows:chats is no hub id"):
        config.load(config.compose("train", words), words)
    tree = config.compose("evaluate", ["benchmark.path=my_rows:questions"])
    name = config.build(config.EvaluateConfig, tree).run_name()
    assert name.startswith("eval-bodinho-my_rows.questions-")
