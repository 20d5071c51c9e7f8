"""The chat door, in one process on the shipped model, and once as a user would open it."""

import io
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console

from drbode import chat, config
from drbode.config import BadInput
from drbode.evaluation.conversation import pieces
from drbode.models.base import Policy, load_policy
from drbode.record import Record, Run
from drbode.reporting import terminal
from tests.conftest import stage_record

QUESTION = "Qual é o agente causador da dengue?"


def base() -> Policy:
    model = config.build(config.ChatConfig, config.compose("chat")).model
    return load_policy(model, torch.float32, "sdpa")


def left_by_a_run(folder: Path, kind: str) -> Path:
    """What a run leaves of the shipped model: an adapter, or weights beside a record."""
    torch.manual_seed(0)
    policy = base()
    if kind == "full":
        name, scale, tuned = "", 0.03, policy.model
        model = {"path": "bodinho", "revision": None, "init": "pretrained"}
        asked_for = {"model": model, "seed": 0}
        folder.mkdir(parents=True)
        Run(folder, Record(config=asked_for, stages={"sft": stage_record()})).save()
    else:
        start: Any = kind == "lora" or kind
        wanted = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=start)
        name, scale, tuned = "lora_B", 0.6, get_peft_model(policy.model, wanted)
        policy.network = tuned
    with torch.no_grad():
        for parameter in (p for n, p in tuned.named_parameters() if name in n):
            parameter += scale * torch.randn_like(parameter)
    policy.save(folder / "sft")
    return folder / "sft"


@pytest.fixture(scope="module", params=["lora", "pissa", "full"])
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return left_by_a_run(tmp_path_factory.mktemp(request.param) / "run", request.param)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return left_by_a_run(tmp_path_factory.mktemp("adapter") / "run", "lora")


@pytest.fixture(autouse=True)
def _sigterm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def talk(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, *words: str
) -> tuple[str, str]:
    """What the door writes to standard output and error on what is piped in."""
    words = ("trainer.threads=1", *chat.arguments(words))
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    chat.job(config.compose("chat", words), list(words), False)
    out, err = capsys.readouterr()
    return out, err


def at_a_terminal(monkeypatch: pytest.MonkeyPatch, typed: list[str], width: int) -> None:
    """Makes the door believe that a person types `typed`, and then Ctrl-D."""
    console = Console(force_terminal=True, width=width, highlight=False, color_system=None)
    monkeypatch.setattr(terminal, "console", console)
    monkeypatch.setattr(chat, "interactive", lambda: True)
    lines = iter(typed)

    def typing(_prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typing)


def test_each_line_is_answered_and_the_notice_is_no_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    once, said = talk(monkeypatch, capsys, QUESTION)
    assert said == f"{chat.NOTICE}\n"
    assert "não são orientação médica" in chat.NOTICE
    assert "no medical advice" in " ".join(chat.NOTICE.split())
    assert once.strip()
    again, _ = talk(monkeypatch, capsys, f"{QUESTION}\n\n{QUESTION}\n/exit\nnever read\n")
    assert again == once + once


def test_the_answer_follows_from_what_stood_before_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    last = "Como se trata?"
    alone, _ = talk(monkeypatch, capsys, last)
    turns = f"Qual é o agente causador da raiva?\nE os sintomas?\n{last}\n"
    after, _ = talk(monkeypatch, capsys, turns)
    assert after.splitlines()[-1] != alone.strip()
    forgotten, _ = talk(monkeypatch, capsys, turns.replace(last, f"/new\n{last}"))
    assert forgotten.splitlines()[-1] == alone.strip()
    told, _ = talk(monkeypatch, capsys, "oi", "system='Você fala de futebol, só.'")
    assert told != talk(monkeypatch, capsys, "oi")[0]


def test_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answers, said = talk(monkeypatch, capsys, "/help\n/ajuda\n/nwe\n")
    assert answers == ""
    assert said.count(chat.NOTICE) == 3
    assert said.count(chat.COMMANDS) == 3
    assert "/nwe: there is no such command" in said


def test_compare_puts_the_base_beside_the_tuned_model(
    tuned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever was tuned: the base is what bodinho says, the model what it says alone."""
    limit = "max_new_tokens=8"
    left, _ = talk(monkeypatch, capsys, QUESTION, limit)
    right, _ = talk(monkeypatch, capsys, QUESTION, limit, f"model.path={tuned}")
    assert left.split() != right.split()
    out, _ = talk(monkeypatch, capsys, QUESTION, limit, f"model.path={tuned}", "--compare")
    heads, _, *body = out.splitlines()
    assert heads.split() == ["base", "(bodinho)", "sft"]
    middle = heads.index("sft")
    assert " ".join(line[:middle] for line in body).split() == left.split()
    assert " ".join(line[middle:] for line in body).split() == right.split()
    assert "\x1b" not in out


def test_an_adapter_is_compared_on_one_network_in_two_conversations(
    adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"model.path={adapter}", "compare=true", "max_new_tokens=8"]
    with ExitStack() as stack:
        found = chat.speakers(config.load_chat(config.compose("chat", words), words), stack)
        chat.reply(found, QUESTION)
    left, right = found
    assert left.network is right.network
    assert left.history[0] == right.history[0]
    assert left.history[1] != right.history[1]
    out = capsys.readouterr().out
    assert all(word in out for turn in (left, right) for word in turn.history[1].content.split())


@pytest.mark.parametrize("width", [60, 100])
@pytest.mark.parametrize("words", [[], ["--compare"]])
def test_at_a_terminal_ctrl_c_ends_an_answer_and_what_was_typed_next_is_answered(
    width: int,
    words: list[str],
    adapter: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    at_a_terminal(monkeypatch, ["oi", QUESTION], width)
    interrupts = iter([True])

    def interrupted(tokenizer: Any, tokens: Iterator[int]) -> Iterator[str]:
        for number, piece in enumerate(pieces(tokenizer, tokens)):
            if number == 1 and next(interrupts, False):
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr("drbode.evaluation.conversation.pieces", interrupted)
    words = [*words, f"model.path={adapter}", "max_new_tokens=2"]
    out, said = talk(monkeypatch, capsys, "", *words)
    assert said == ""
    assert out.count("stopped") == 1
    _, after = out.split("stopped")
    assert "sft" in after
    assert "cut at max_new_tokens" in after
    assert ("base (bodinho)" in after) == ("--compare" in words)


def test_ctrl_c_where_nobody_types_ends_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> Iterator[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("drbode.evaluation.conversation.pieces", interrupted)
    with pytest.raises(SystemExit) as caught:
        talk(monkeypatch, capsys, f"{QUESTION}\n{QUESTION}")
    assert caught.value.code == 130


def test_sigterm_ends_the_program_and_not_an_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(*_: Any) -> Iterator[str]:
        signal.raise_signal(signal.SIGTERM)
        yield ""

    monkeypatch.setattr("drbode.evaluation.conversation.pieces", ended)
    at_a_terminal(monkeypatch, ["oi", "oi"], 80)
    with pytest.raises(SystemExit) as caught:
        talk(monkeypatch, capsys, "")
    assert caught.value.code == 143


def test_what_does_not_fit_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turn = "febre " * 200
    text = f"{turn}\n{turn}\n{'febre ' * 2100}\n{turn}\n"
    _, said = talk(monkeypatch, capsys, text, "max_new_tokens=1700")
    notes = said.removeprefix(f"{chat.NOTICE}\n").splitlines()
    assert "bodinho: no room for the oldest turn, now forgotten" in notes
    assert sum("bodinho has room for 2048" in note for note in notes) == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["top_p=0.9"], ["top_p", "temperature above 0"]),
        (["seed=1"], ["seed", "temperature above 0"]),
        (["temperature=1", "top_p=0"], ["top_p", "above 0 and at most 1"]),
        (["temperature=-1"], ["temperature", "at least 0"]),
        (["model.attention=sdpa"], ["model.attention", "does not read it"]),
        (["model.learning_rates.lora.sft=1"], ["model.learning_rates", "does not read it"]),
        (["trainer.progress=false"], ["trainer.progress", "does not read it"]),
        (["trainer.gradient_checkpointing=true"], ["gradient_checkpointing", "does not read it"]),
        (["max_new_tokens=2048"], ["max_new_tokens", "2048", "set it lower"]),
        (["--compare"], ["compare", "model.path=bodinho is not known"]),
        (["--compare", "model.path=run/other"], ["compare", "run/other is not known"]),
    ],
)
def test_a_mistake_is_one_sentence_that_names_its_key(
    words: list[str],
    expected: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "run" / "other").mkdir(parents=True)
    Run(tmp_path / "run", Record(stages={"sft": stage_record()})).save()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as caught:
        talk(monkeypatch, capsys, QUESTION, *words)
    assert "\n" not in str(caught.value)
    for word in expected:
        assert word in str(caught.value)
    assert capsys.readouterr().out == ""


def test_the_seed_is_read_where_something_is_drawn() -> None:
    for words in (["temperature=1", "top_p=0.9", "seed=1"], ["model.init=random", "seed=1"]):
        assert config.load_chat(config.compose("chat", words), words).seed == 1


def test_a_sweep_of_conversations_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["chat", "-m", "seed=1,2"])
    with pytest.raises(SystemExit) as caught:
        chat.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: -m: ")


def test_a_user_asks_through_a_pipe(adapter: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "drbode.chat", f"model.path={adapter}", "--compare"],
        input=f"{QUESTION}\n{QUESTION}\n",
        capture_output=True,
        text=True,
        cwd=adapter,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr.startswith(chat.NOTICE)
    assert "Warning" not in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    heads = [line.split() for line in done.stdout.splitlines() if line.startswith(" base")]
    assert heads == [["base", "(bodinho)", "sft"]] * 2


def test_help_says_how_to_begin() -> None:
    words = [sys.executable, "-m", "drbode.chat", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "python -m drbode.chat model.path=RUN/sft --compare" in done.stdout
    assert "model: bertimbau, bertinho, bodinho, qwen3_0_6b" in done.stdout
