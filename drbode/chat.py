"""python -m drbode.chat: talks with a model in the terminal, beside its base if wanted."""

import dataclasses
import functools
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drbode import config
from drbode.config import BadInput, ChatConfig, ModelConfig

if TYPE_CHECKING:
    from drbode.evaluation.conversation import Ending, Speaker

NOTICE = (
    "AVISO: este programa serve ao estudo de métodos de treinamento. As respostas podem estar "
    "erradas e não são orientação médica. Para cuidar da sua saúde, procure um profissional.\n"
    "NOTICE: this program is for the study of training methods. Its answers may be wrong and are "
    "no medical advice. For your health, see a professional."
)
COMMANDS = """\
/new           forgets the conversation so far
/help, /ajuda  shows these lines and the notice
/exit          ends, as Ctrl-D does; Ctrl-C ends an answer, and between answers the program"""
ENDINGS = {  # of answers, those that need a remark
    "cut": "the answer was cut at max_new_tokens",
    "full": "the answer was cut at the end of the model's context",
    "empty": "the model ended its turn without a word",
}
SIDE_BY_SIDE = 80  # columns of a terminal from which on two answers stand beside each other


def main() -> None:
    words = arguments(sys.argv[1:])
    if {"-m", "--multirun"} & set(words):
        print("error: -m: a conversation is held once; leave -m out", file=sys.stderr)
        sys.exit(2)
    sys.argv[1:] = words
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    config.open_door("chat", job)


def arguments(words: Sequence[str]) -> list[str]:
    """The command line as Hydra takes it: the flag `--compare` is the key of that name."""
    return ["compare=true" if word == "--compare" else word for word in words]


def job(tree: Mapping[str, Any], overrides: list[str], _multirun: bool) -> None:
    """What Hydra calls: one conversation."""
    settings = config.load_chat(tree, overrides)
    # open_door turns SIGTERM into Ctrl-C, which here ends an answer; SIGTERM is to end the program.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with ExitStack() as stack:
            converse(speakers(settings, stack))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # whoever read the answers has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def speakers(settings: ChatConfig, stack: ExitStack) -> "list[Speaker]":
    """The model, after its base where `settings.compare`; they can generate while `stack` is open.

    The base is the same network with its adapter switched off, if that restores the base.
    """
    from drbode.data.prompts import Renderer
    from drbode.evaluation.conversation import Speaker, sampler
    from drbode.models import machine as machines
    from drbode.models.base import Policy, load_policy, quantization_of

    machine = machines.resolve(settings.trainer, settings.model, None)
    base = base_of(settings.model) if settings.compare else None
    policy = load_policy(
        settings.model,
        machine.torch_dtype,
        machine.attention,
        settings.seed,
        quantization_of(settings.model),
    )
    if settings.max_new_tokens >= policy.context:
        raise BadInput(
            f"max_new_tokens: the model has positions for {policy.context} tokens, prompt and "
            f"answer together, got {settings.max_new_tokens}; set it lower"
        )
    renderer = Renderer(policy.tokenizer, policy.context)

    def speaker(name: str, policy: Policy) -> Speaker:
        policy.network.to(machine.accelerator)
        network = stack.enter_context(policy.generating())
        draw = sampler(settings.temperature, settings.top_p, settings.seed)
        return Speaker(
            name, network, renderer, machine, draw, settings.max_new_tokens, settings.system
        )

    tuned = speaker(_name(settings.model), policy)
    if base is None:
        return [tuned]
    model, seed = base
    name = f"base ({_name(model)})"
    if policy.holds_base:
        same = speaker(name, policy)
        return [dataclasses.replace(same, switched=same.network.disable_adapter), tuned]
    loaded = load_policy(model, machine.torch_dtype, machine.attention, seed)
    return [speaker(name, loaded), tuned]


def _name(model: ModelConfig) -> str:
    return Path(model.path).resolve().name


def base_of(model: ModelConfig) -> tuple[ModelConfig, int]:
    """What `model` was tuned from; raises BadInput where that is not known."""
    from drbode.models import base

    if (origin := base.base_of(model)) is None:
        raise BadInput(
            f"compare: the base of model.path={model.path} is not known; expected an adapter, or a "
            "folder in that of the run that left it, beside its record.json"
        )
    return origin


def interactive() -> bool:
    """Whether input and output are a terminal; if not, only answers go to standard output."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def say(text: str, style: str = "dim") -> None:
    """Prints what is not part of an answer."""
    from drbode.reporting.terminal import console

    if interactive():
        console.print(text, style=style, markup=False)
    else:
        print(text, file=sys.stderr)


def converse(speakers: "Sequence[Speaker]") -> None:
    """Answers one line after the other until the input ends."""
    say(NOTICE, "yellow")
    if interactive():
        names = " and ".join(speaker.name for speaker in speakers)
        say(f"\nYou talk with {names}. /help lists the commands, Ctrl-D ends.")
    for line in lines():
        match line.strip():
            case "":
                pass
            case "/exit":
                return
            case "/new":
                for speaker in speakers:
                    speaker.history.clear()
                say("the conversation so far is forgotten")
            case "/help" | "/ajuda":
                say(COMMANDS)
                say(NOTICE, "yellow")
            case command if command.startswith("/"):
                say(f"{command}: there is no such command; expected one of\n{COMMANDS}")
            case text:
                reply(speakers, text)


def lines() -> Iterator[str]:
    """What the user types or pipes in, one message per line."""
    if not interactive():
        yield from sys.stdin
        return
    with suppress(ImportError):
        import readline  # noqa: F401 -- gives input() its line editing and history
    while True:
        try:
            line = input("\nyou> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        yield line


def reply(speakers: "Sequence[Speaker]", text: str) -> None:
    """Lets each speaker answer `text`; says what was forgotten for it, and how an answer ended."""
    from drbode.reporting.terminal import console

    try:
        prompts = [speaker.prepare(text) for speaker in speakers]
        for speaker, (_, forgotten) in zip(speakers, prompts, strict=True):
            if forgotten:
                turns = "oldest turn" if forgotten == 1 else f"{forgotten} oldest turns"
                say(f"{speaker.name}: no room for the {turns}, now forgotten")
        beside = len(speakers) > 1 and console.width >= SIDE_BY_SIDE
        answer = answer_beside if beside else answer_in_turn
        endings = answer(speakers, text, [ids for ids, _ in prompts])
    except BadInput as error:
        say(str(error))
    except KeyboardInterrupt:
        if not interactive():
            raise
        say("\nstopped")
    else:
        for speaker, ending in zip(speakers, endings, strict=True):
            if ending in ENDINGS:
                say(f"{speaker.name}: {ENDINGS[ending]}")


def answer_in_turn(
    speakers: "Sequence[Speaker]", text: str, prompts: Sequence[list[int]]
) -> list["Ending"]:
    """Streams one answer after the other, under their speakers' names where they are needed."""
    from drbode.reporting.terminal import console

    endings = []
    for speaker, prompt in zip(speakers, prompts, strict=True):
        if interactive() or len(speakers) > 1:
            console.print(f"{speaker.name}> ", style="bold", markup=False, end="")
        show = functools.partial(print, end="", flush=True)
        endings.append(speaker.answer(text, prompt, show))
        print(flush=True)
    return endings


def answer_beside(
    speakers: "Sequence[Speaker]", text: str, prompts: Sequence[list[int]]
) -> list["Ending"]:
    """Streams the answers into columns; where the output is no terminal, prints them at the end."""
    from rich.live import Live

    from drbode.reporting.terminal import columns, console

    answers = {speaker.name: "" for speaker in speakers}
    endings = []
    with Live(columns(answers), console=console, refresh_per_second=12) as live:
        for speaker, prompt in zip(speakers, prompts, strict=True):

            def show(piece: str, name: str = speaker.name) -> None:
                answers[name] += piece
                live.update(columns(answers))

            endings.append(speaker.answer(text, prompt, show))
    if not console.is_terminal:
        console.line(2)  # Live ends its last line on a terminal alone
    return endings


if __name__ == "__main__":
    main()
