"""Every kind of bad input: one sentence, exit code 2, nothing half written, no traceback."""

import errno
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import drbode.session.session  # noqa: F401 -- before any test puts a fake in place of its parts
from drbode import config, evaluate, train
from drbode.models import base
from tests.conftest import NO_GENERAL

DOORS: dict[str, Any] = {"train": train, "evaluate": evaluate}

USER, BOT = {"role": "user", "content": "febre?"}, {"role": "assistant", "content": "dengue."}
CHAT = {"data": [USER, BOT]}
PAIR = {"prompt": "febre?", "chosen": "Procure um médico.", "rejected": "É dengue."}
EXAM = {"enunciado": "Qual?", "alternativas": {"A": "um", "B": "dois"}, "resposta": "A"}
LONG = "palavra " * 3000

# Files by name; of rows, a row a line.
FILES: dict[str, Any] = {
    "rows.jsonl": [{"data": [USER | {"content": f"febre {n}?"}, BOT]} for n in range(8)],
    "exam.jsonl": [EXAM],
    "one.jsonl": [CHAT],
    "empty.jsonl": "",
    "broken.jsonl": json.dumps(CHAT) + '\n{"data": ',
    "list.json": '{"data": []}',
    "text.parquet": "no parquet",
    "rows.csv": "a,b",
    "rows.xls": "a,b",
    "no_answer.jsonl": [CHAT, {"data": [USER]}],
    "no_content.jsonl": [{"data": [USER, {"role": "assistant"}]}],
    "no_column.jsonl": [{"mensagens": []}],
    "long.jsonl": [{"data": [USER, {"role": "assistant", "content": LONG}]}],
    "exam_c.jsonl": [EXAM | {"resposta": "C"}],
    "exam_twice.jsonl": [EXAM, EXAM],
    "exam_long.jsonl": [EXAM | {"alternativas": {"A": "um", "B": LONG}}],
    "pairs_empty.jsonl": [PAIR, PAIR | {"rejected": " "}],
    "pairs_same.jsonl": [PAIR | {"rejected": PAIR["chosen"]}],
    "pairs_long.jsonl": [PAIR | {"prompt": LONG}],
    "bert/config.json": '{"model_type": "bert"}',
    "t5/config.json": '{"model_type": "t5"}',
}


def write_files(folder: Path) -> None:
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        lines = "\n".join(map(json.dumps, content)) if isinstance(content, list) else content
        path.write_text(lines)


def write_models(folder: Path) -> None:
    """Models, adapters and reward models that are damaged, or of another base or method."""
    shipped = shutil.copytree(base.bodinho_folder(), folder / "whole")
    weights = "model.safetensors"
    copy = shutil.copytree(shipped, folder / "half")
    (copy / weights).write_bytes((shipped / weights).read_bytes()[:100_000])
    copy = shutil.copytree(shipped, folder / "no_tokenizer")
    (copy / "tokenizer.json").write_text("{")

    asked = config.load(config.compose("train", ["lora.r=2"]), []).resolved()
    from drbode.models.methods import wrap

    policy = base.load_policy(asked.model, torch.float32, "sdpa")
    wrap(policy, asked.tuning())
    good, file = folder / "adapter", "adapter_model.safetensors"
    policy.save(good)
    tensors = load_file(good / file)
    changes: dict[str, dict[str, torch.Tensor]] = {
        "adapter_other": {n: t[..., :1].contiguous() for n, t in tensors.items()},
        "adapter_lacks": dict(list(tensors.items())[1:]),
    }
    for name, changed in changes.items():
        save_file(changed, shutil.copytree(good, folder / name) / file)
    copy = shutil.copytree(good, folder / "adapter_half")
    (copy / file).write_bytes((good / file).read_bytes()[:1000])
    copy = shutil.copytree(good, folder / "adapter_config")
    (copy / "adapter_config.json").write_text("{")
    copy = shutil.copytree(good, folder / "adapter_far")
    described = json.loads((good / "adapter_config.json").read_text())
    described["base_model_name_or_path"] = "nobody/here"
    (copy / "adapter_config.json").write_text(json.dumps(described))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_files(folder)
    write_models(folder)
    return folder


def open_door(name: str, words: list[str], patch: pytest.MonkeyPatch) -> int:
    """The exit code of `python -m drbode.NAME WORDS`, in this process."""
    kept = signal.getsignal(signal.SIGTERM)
    patch.setenv("HYDRA_FULL_ERROR", "1")
    patch.setattr(sys, "argv", [f"drbode.{name}", *words])
    try:
        with pytest.raises(SystemExit) as ended:
            config.open_door(name, DOORS[name].job)
    finally:
        signal.signal(signal.SIGTERM, kept)
    return int(ended.value.code or 0)


TUNER = ["method=peft", "sft.learning_rate=1"]

# The door, what is asked of it, and what its sentence has to say. A `model:` row is one that shows
# only once a model is loaded; before every other none may be.
TABLE: list[tuple[str, list[str], list[str]]] = [
    # unknown or misspelt key or option
    ("train", ["lora.rr=3"], ["lora.rr", "no such key", "did you mean lora.r"]),
    ("train", ["+lora.rang=3"], ["lora.rang", "no such key"]),
    ("train", ["method=lorra"], ["method", "no option lorra", "did you mean lora"]),
    ("train", ["benchmark=leter"], ["benchmark", "did you mean letter"]),
    ("train", ["stages=[stf]"], ["stages", "did you mean sft?"]),
    ("train", ["stages=dpo", "dpo.loss=sigmoidal"], ["dpo.loss", "did you mean sigmoid?"]),
    ("train", ["lora.r=[1"], ["the command line", "key=value"]),
    # wrong type, value out of range
    ("train", ["lora.r=many"], ["lora.r", "a whole number", '"many"']),
    ("train", ["lora.r=0"], ["lora.r", "at least 1", "got 0"]),
    ("train", ["stages=dpo", "dpo.beta=0"], ["dpo.beta", "above 0", "got 0"]),
    ("train", ["stages=dpo", "dpo.beta=-0.1"], ["dpo.beta", "above 0", "got -0.1"]),
    ("train", ["sft.max_length=9999"], ["sft.max_length", "2048", "9999"]),
    # an override without effect
    ("train", ["method=full", "lora.r=3"], ["lora.r", "method full", "does not read lora"]),
    ("train", ["dpo.beta=0.5"], ["dpo.beta", "stages [sft]", "does not read dpo"]),
    ("train", ["benchmark.revision=1f"], ["benchmark.revision", "no hub id"]),
    ("evaluate", ["benchmark.max_new_tokens=3"], ["benchmark.max_new_tokens", "no effect"]),
    # missing file; empty or malformed data
    ("train", ["sft.data.path=absent.jsonl"], ["sft.data.path", "no file absent.jsonl"]),
    ("evaluate", ["benchmark.path=absent.json"], ["benchmark.path", "no file absent.json"]),
    ("train", ["model.chat_template=none.jinja"], ["model.chat_template", "no file"]),
    ("train", ["sft.data.path=empty.jsonl"], ["sft.data.path", "empty.jsonl holds no rows"]),
    ("train", ["sft.data.path=broken.jsonl"], ["broken.jsonl, line 2", "no JSON"]),
    ("train", ["sft.data.path=list.json"], ["list.json", "a list of rows, got dict"]),
    ("train", ["sft.data.path=text.parquet"], ["text.parquet", "no parquet"]),
    ("train", ["sft.data.path=rows.xls"], ["sft.data.path", ".parquet file, got rows.xls"]),
    ("train", ["sft.data.path=rows.csv"], ["sft.data.path: rows.csv holds no rows"]),
    ("train", ["sft.data.path=no_column.jsonl"], ["line 1", "no field data", "mensagens"]),
    ("train", ["sft.data.path=no_content.jsonl"], ["line 1: data, turn 2", "no field content"]),
    ("train", ["sft.data.path=no_answer.jsonl"], ["no_answer.jsonl, line 2", "assistant turn"]),
    ("train", ["benchmark.split=tets"], ["benchmark.path", "no split tets", "test"]),
    ("evaluate", ["benchmark.path=exam_c.jsonl"], ["line 1: resposta", "A, B", "'C'"]),
    ("evaluate", ["benchmark.path=exam_twice.jsonl"], ["line 2", "same question", "line 1"]),
    (
        "train",
        ["sft.data.path=one.jsonl", "sft.patience=2"],
        ["sft.patience", "no validation rows", "1 to train on", "sft.data.validation_path"],
    ),
    # preferences
    (
        "train",
        ["stages=dpo", "dpo.data.path=pairs_empty.jsonl"],
        ["pairs_empty.jsonl, line 2: rejected", "expected text"],
    ),
    ("train", ["stages=dpo", "dpo.data.path=pairs_same.jsonl"], ["line 1", "the same answer"]),
    # longer than the model's context
    ("train", ["sft.data.path=long.jsonl"], ["long.jsonl", "1 longer than 2048", "mend the rows"]),
    (
        "train",
        ["stages=ppo", "ppo.reward=os:getcwd", "ppo.data.path=pairs_long.jsonl"],
        ["ppo.data.path", "1 longer than 1984 tokens"],
    ),
    (
        "train",
        ["stages=ppo", "ppo.reward=os:getcwd", "ppo.max_new_tokens=2048"],
        ["ppo.max_new_tokens", "2048 tokens, prompt and answer together", "got 2048"],
    ),
    ("model:evaluate", ["benchmark.path=exam_long.jsonl"], ["line 1: alternativas", "too long"]),
    # not to be had here
    ("train", ["model.path=nobody/here"], ["model.path", "nobody/here could not be loaded"]),
    ("train", ["model.path=t5"], ["model.path", "of the family t5"]),
    ("train", ["model.path=bert"], ["model.path", "is an encoder"]),
    ("train", ["benchmark.path=nobody/here"], ["benchmark.path", "could not be had"]),
    ("train", ["data=drbode"], ["benchmark.path", "recogna-nlp/drbodebench", "could not be had"]),
    ("train", ["trainer.accelerator=cuda"], ["trainer.accelerator", "no CUDA"]),
    ("train", ["sft.optimizer=paged_adamw_8bit"], ["sft.optimizer", "no CUDA device"]),
    ("train", ["model.attention=flex"], ["model.attention", "CUDA only"]),
    # models, adapters and reward models that are damaged, or of another base or method
    ("model:train", ["model.path=half"], ["half/model.safetensors", "damaged", "once more"]),
    ("train", ["model.path=no_tokenizer"], ["model.path", "could not be loaded"]),
    ("train", ["model.path=adapter_config"], ["adapter_config.json is damaged"]),
    ("train", ["model.path=adapter_far"], ["model.path", "adapter_far could not be loaded"]),
    ("model:train", ["model.path=adapter_half"], ["adapter_half/adapter_model.safetensors"]),
    ("model:evaluate", ["model.path=adapter_other"], ["adapter_other", "size mismatch"]),
    ("model:evaluate", ["model.path=adapter_lacks"], ["adapter_lacks", "missing adapter keys"]),
    ("model:train", ["model.path=adapter", "method=bitfit"], ["method", "of the kind lora"]),
    ("model:train", ["model.path=adapter", "lora.r=4"], ["lora.r", "set lora.r=2"]),
    ("model:train", ["lora.target_modules=[q_prj]"], ["lora.target_modules", "q_prj", "q_proj"]),
    # tuners of peft's
    ("train", ["method=peft", "peft.typ=IA3"], ["peft.typ", "did you mean peft.type"]),
    ("model:train", [*TUNER, "peft.type=VERRA"], ["peft.type", "did you mean", "VERA", "LOHA"]),
    ("model:train", [*TUNER, "peft.type=P_TUNING"], ["peft.type", "no place; expected ADAMSS"]),
    (
        "model:train",
        [*TUNER, "peft.type=IA3", "peft.options={feedforward: []}"],
        ["peft.options", "did you mean feedforward_modules?"],
    ),
    ("model:train", [*TUNER, "peft.type=C3A"], ["peft: peft cannot put C3A", "block size"]),
    ("train", ["stages=ppo", "ppo.reward=absent"], ["ppo.reward", "no folder absent"]),
    ("train", ["stages=ppo"], ["ppo.reward", "not among the stages before ppo"]),
    ("model:train", ["stages=ppo", "ppo.reward=bert"], ["ppo.reward", "there is no bert/adapter"]),
    ("model:train", ["stages=ppo", "ppo.reward=adapter_half"], ["adapter_half/adapter", "damaged"]),
    (
        "model:train",
        ["stages=ppo", "lora.r=2", "ppo.reward=adapter_other"],
        ["ppo.reward", "no reward model of this base and method"],
    ),
    ("model:train", ["stages=ppo", "ppo.reward=os:no"], ["ppo.reward", "could not be imported"]),
    # open answers
    (
        "evaluate",
        ["benchmark=open", "benchmark.path=no_column.jsonl"],
        ["no_column.jsonl, line 1", "no field prompt"],
    ),
    (
        "model:evaluate",
        ["benchmark=open", "benchmark.reward=absent"],
        ["benchmark.reward", "there is no", "the folder `reward`"],
    ),
    (
        "model:evaluate",
        ["benchmark=open", "benchmark.against=absent"],
        ["model.path: absent could not be loaded"],
    ),
    (
        "evaluate",
        ["benchmark=open", "benchmark.against=bodinho"],
        ["benchmark.against: bodinho stands twice"],
    ),
    (
        "model:evaluate",
        ["benchmark=open", "benchmark.max_new_tokens=2048"],
        ["benchmark.max_new_tokens", "2048 tokens", "set it lower"],
    ),
    # no place to write
    ("train", ["output_dir=rows.csv"], ["output_dir", "cannot be written"]),
    ("train", ["output_dir=/proc/drbode"], ["output_dir", "/proc/drbode", "cannot be written"]),
    ("evaluate", ["output_dir=/proc/drbode"], ["output_dir", "cannot be written"]),
]


@pytest.mark.parametrize(("door", "words", "expected"), TABLE)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    door: str,
    words: list[str],
    expected: list[str],
    inputs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if torch.cuda.is_available() and any("CUDA" in word for word in expected):
        pytest.skip("there is a GPU here")
    monkeypatch.chdir(inputs)
    before = {*inputs.rglob("*"), inputs / "outputs"}
    early = not door.startswith("model:")
    if early:
        monkeypatch.setattr(base, "load_policy", lambda *_, **__: pytest.fail("loads a model"))
    own = any(w.startswith(("benchmark", "data=")) for w in words)
    words = [*words, "trainer.threads=1", *([] if own else ["benchmark.path=exam.jsonl"])]
    assert open_door(door.removeprefix("model:"), words, monkeypatch) == 2
    said = capfd.readouterr().err
    assert "Traceback" not in said
    sentence = said.splitlines()[-1]
    assert sentence.startswith("error: ")
    assert said.count("error: ") == 1
    for word in expected:
        assert word in sentence
    assert {*inputs.rglob("*"), inputs / "outputs"} == before


# --- a run that has begun ----------------------------------------------------------------------

# Two stages of two steps on a few rows: a run of a second or two.
RUN = [
    "stages=[cpt,sft]",
    "lora.r=2",
    "cpt.data.path=texts.jsonl",
    *NO_GENERAL,
    "cpt.steps=2",
    "cpt.checkpoints=0",
    "sft.data.path=rows.jsonl",
    "sft.steps=2",
    "sft.checkpoint_every=1",
    "benchmark.path=exam.jsonl",
    "logger=csv",
    "trainer.threads=1",
    "trainer.progress=false",
]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with inputs and `outputs` of a run that was interrupted in its second stage."""
    folder = tmp_path_factory.mktemp("interrupted")
    write_files(folder)
    texts = [json.dumps({"text": f"A dengue é uma doença, {n}."}) for n in range(8)]
    (folder / "texts.jsonl").write_text("\n".join(texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert open_door("train", RUN, patch) == 0
    (only_run(folder) / "checkpoints" / "sft" / "ended.json").unlink()
    path = only_run(folder) / "record.json"
    record = json.loads(path.read_text())
    del record["stages"]["sft"]
    path.write_text(json.dumps(record | {"status": "interrupted"}))
    return folder


def only_run(folder: Path) -> Path:
    (found,) = [p.parent for p in (folder / "outputs").glob("*/record.json")]
    return found


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def of_another_base(path: Path) -> None:
    if path.suffix == ".ckpt":
        checkpoint = torch.load(path, weights_only=True)
        tensors = checkpoint["state_dict"]
        checkpoint["state_dict"] = {n: t[..., :1].clone() for n, t in tensors.items()}
        torch.save(checkpoint, path)
    else:
        save_file({n: t[..., :1].clone() for n, t in load_file(path).items()}, path)


class Code:
    """What a pickle must not be able to run."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, ("ran",)


def with_code(path: Path) -> None:
    torch.save({"state_dict": Code()}, path)


@pytest.mark.parametrize(
    ("pattern", "harm", "expected", "remedy"),
    [
        ("*/checkpoints/sft/*.ckpt", cut, ["is damaged", "delete it"], "named"),
        ("*/checkpoints/sft/*.ckpt", with_code, ["is damaged", "delete it"], None),
        ("*/checkpoints/sft/*.ckpt", of_another_base, ["another base or method"], None),
        ("*/checkpoints/cpt/last.safetensors", cut, ["is damaged", "force=true"], None),
        ("*/checkpoints/cpt/last.safetensors", of_another_base, ["force=true"], None),
        ("*/record.json", cut, ["record.json", "is damaged", "force=true"], None),
    ],
)
def test_what_a_run_left_and_was_damaged_is_named_and_the_remedy_works(
    pattern: str,
    harm: Callable[[Path], None],
    expected: list[str],
    remedy: str | None,
    interrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = shutil.copytree(interrupted, tmp_path / "here")
    monkeypatch.chdir(folder)
    paths = list(Path("outputs").glob(pattern))
    assert paths
    for path in paths:
        harm(path)
    words = [*RUN, "reuse_stages=false"]
    assert open_door("train", words, monkeypatch) == 2
    said = capfd.readouterr().err
    assert "Traceback" not in said
    sentence = said.splitlines()[-1]
    named = [p for p in paths if str(p) in sentence]
    assert len(named) == 1, sentence
    for word in expected:
        assert word in sentence
    assert not Path("ran").exists()
    if remedy is None:
        return
    for path in paths:
        path.unlink()
    assert open_door("train", words, monkeypatch) == 0
    assert json.loads((only_run(folder) / "record.json").read_text())["status"] == "finished"


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to let a file grow past `size` bytes, as it does where a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("size", "words", "named"),
    [
        (1_000, [], "record.json"),
        (100_000, ["sft.checkpoints=0"], "checkpoints/sft/last.safetensors"),
        (200_000, [], "checkpoints/sft/000001.ckpt"),
        (140_000, ["sft.checkpoints=0"], "sft"),  # for the tokenizer in it
    ],
)
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_later(
    size: int,
    words: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    plain = [w for w in RUN if not w.startswith(("cpt.", "stages"))]
    words = [*plain, "sft.data.validation_share=0", *words]
    with files_of_at_most(size):
        assert open_door("train", words, monkeypatch) == 2
    said = capfd.readouterr().err
    assert "Traceback" not in said
    sentence = said.splitlines()[-1]
    assert f"/{named}: cannot be written (File too large); free some space" in sentence
    assert not list(tmp_path.rglob("part.*"))
    assert not list(tmp_path.glob("outputs/*/.lock"))
    if named == "record.json":
        assert not list(tmp_path.glob("outputs/*"))
        return
    record = json.loads((only_run(tmp_path) / "record.json").read_text())
    assert record["status"] == "failed"
    assert "cannot be written" in record["error"]
    assert not (only_run(tmp_path) / "sft").exists()
    assert open_door("train", words, monkeypatch) == 0
    assert (only_run(tmp_path) / "sft" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_what_the_system_says_of_a_file_is_told_as_it_is(number: int) -> None:
    error = OSError(number, os.strerror(number), "a/b")
    told = str(config.unwritable(error))
    assert told.startswith(f"a/b: cannot be written ({os.strerror(number)}); ")
    assert ("space" in told) == (number in config.FULL)
    assert config.unwritable(OSError(errno.ENOENT, "no file", "a/b")) is None
    assert config.unwritable(ValueError("no")) is None
    as_text = Exception(f"I/O error: {os.strerror(number)} (os error {number})")
    assert str(config.unwritable(as_text, Path("c"))).startswith("c: cannot be written")
