"""The house has one direction: a room imports from rooms to its left alone."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "drbode"
# Each room, and the rooms it may import from.
LEFT: dict[str, set[str]] = {
    "objectives": set(),
    "trees": set(),
    "system": set(),
    "config": set(),
    "record": {"config", "system"},
    "multirun": {"config"},
    "data": {"config", "record", "objectives", "trees", "system"},
    "models": {"config", "record", "objectives", "trees", "system"},
}
LEFT["training"] = LEFT["evaluation"] = {"data", "models", *LEFT["data"]}
LEFT["reporting"] = {"training", "evaluation", *LEFT["training"]}
LEFT["session"] = {"reporting", *LEFT["reporting"]}
for _door in ("train", "evaluate", "chat", "report"):
    LEFT[_door] = {"session", *LEFT["session"]}
LEFT["api"] = {"train", "evaluate", *LEFT["train"]}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The rooms a file imports from, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("drbode.")}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=str)
def test_imports_go_one_way(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        return
    own = room(path)
    assert imported(path) <= LEFT[own] | {own}


LIGHT = [path for name in ("config", "record") for path in sorted((PACKAGE / name).glob("*.py"))]


@pytest.mark.parametrize("path", LIGHT, ids=str)
def test_the_light_rooms_import_nothing_heavy(path: Path) -> None:
    text = path.read_text()
    heavy = {"torch", "transformers", "peft", "lightning", "numpy"}
    names = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        for name in (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not names & heavy
