"""Every command that a README gives is one that the doors take."""

import re
import shlex
from pathlib import Path

import pytest

from drbode import chat, config, report

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "experiments").rglob("README.md"))]


def commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in re.findall(r"```\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.splitlines():
                if line.startswith("python -m drbode."):
                    found.append((page.parent.name, line.split("    ")[0]))
    return found


def test_there_are_commands() -> None:
    assert len(commands()) > 8


@pytest.mark.parametrize(("page", "command"), commands())
def test_a_command_composes_and_is_taken(page: str, command: str) -> None:
    _, _, module, *words = shlex.split(command)
    if words == ["--help"] or "--config-dir" in words:  # those of tests/extend
        return
    multirun = "-m" in words or any(w.startswith("sweep=") for w in words)
    # A sweep's cells differ in values alone: the first of each stands for all.
    overrides = [
        re.sub(r"=(\[[^\]]*\]|[^\[,]+),.*", r"=\1", w) if multirun else w
        for w in words
        if w != "-m"
    ]
    door = module.removeprefix("drbode.")
    rewritten = {"chat": chat.arguments, "report": report.arguments}
    overrides = rewritten[door](overrides) if door in rewritten else overrides
    tree = config.compose(door, overrides)
    if door == "train":
        config.load(tree, overrides, multirun)
    elif door == "chat":
        config.load_chat(tree, overrides)
    elif door == "report":
        config.build(config.ReportConfig, tree)
    else:
        config.build(config.EvaluateConfig, tree)


def test_the_files_a_readme_names_are_there() -> None:
    for page in PAGES:
        for name in re.findall(r"`(drbode/[\w/.]+)`", page.read_text()):
            assert (ROOT / name).exists(), f"{page}: {name}"
        for link in re.findall(r"\]\(([\w/.]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"


def sentences() -> list[str]:
    """The sentences of the README's prose: no code, no tables, no headings."""
    prose = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    prose = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", prose)
    blocks = [b for b in prose.split("\n\n") if not b.lstrip().startswith(("|", "#"))]
    return [s for b in blocks for s in re.split(r"(?<=[.:;!?])\s+", " ".join(b.split()))]


def test_the_readme_is_short_and_so_are_its_sentences() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 250
    long = [s for s in sentences() if len(s.split()) > 30]
    assert long == []
    assert len(sentences()) > 50
