"""What makes two runs the same one: a digest of all that shapes the result."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from drbode.config.functions import is_function, source_digest

PACKAGE = Path(__file__).resolve().parent.parent
BODINHO = "bodinho"  # the path that stands for what the package ships, as model and as data
BERTINHO = "bertinho"  # the encoder beside it: a config and a tokenizer, its weights are drawn
SHIPPED = {BODINHO: "data/bodinho/base", BERTINHO: "data/bertinho"}  # folders of the package
SHIPPED_FILES = (".csv", ".yaml", ".json", ".jinja", ".safetensors")

# Keys of a block that name a file, a folder or a function: what these hold shapes the result too.
FILES = (
    *("path", "validation_path", "questions_path", "text_path", "fewshot_path"),
    *("chat_template", "reward", "against"),
)
FUNCTIONS = ("loss", "scorer")  # keys that may name a function, but no file
OWN_REWARD = "reward"  # as `ppo.reward`: the model that this run's stage reward trains
# Where results are written and shown, and a budget, which the stages' lengths already hold.
WITHOUT_EFFECT = ("output_dir", "force", "reuse_stages", "objective", "budget", "wandb")


def identity(tree: dict[str, Any], unread: Iterable[str]) -> dict[str, Any]:
    """The tree, changed in place to what shapes the result: without `unread` dotted keys.

    Each block that names files, folders or functions gets their content beside the names.
    """
    for key in unread:
        *blocks, name = key.split(".")
        block = tree
        for part in blocks:
            block = block[part]
        del block[name]
    for name in WITHOUT_EFFECT:
        tree.pop(name, None)
    del tree["model"]["learning_rates"]
    del tree["trainer"]["progress"]
    for block in list(_blocks(tree)):
        if named := list(_sources(block)):
            block["content"] = [content(path) for path in named]
    return tree


def _sources(block: Mapping[str, Any]) -> Iterator[str]:
    """What a block names: files, folders, hub ids and functions."""
    for key in FILES:
        value = block.get(key)
        values = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        yield from (path for path in values if path != OWN_REWARD)
    yield from (block[key] for key in FUNCTIONS if is_function(str(block.get(key))))


def _blocks(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every block of the tree, itself left out."""
    for value in tree.values():
        if isinstance(value, dict):
            yield value
            yield from _blocks(value)


def content(path: str) -> str | None:
    """A digest of what a path holds now, so that a run is another one when its input changes.

    A file goes by its bytes, a folder by its files' names, sizes and times, a function by the file
    that defines it; None for what is not here, such as a hub id, which its revision names.
    """
    if path in SHIPPED:
        shipped = PACKAGE / "data" / path
        files = sorted(f for f in shipped.rglob("*") if f.suffix in SHIPPED_FILES)
        parts = [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]
    elif Path(path).is_file():
        with Path(path).open("rb") as file:
            parts = [hashlib.file_digest(file, "sha256").hexdigest()]
    elif Path(path).is_dir():
        below = [f for f in sorted(Path(path).rglob("*")) if f.is_file()]
        stats = {str(f.relative_to(path)): f.stat() for f in below}
        parts = [f"{name} {s.st_size} {s.st_mtime_ns}" for name, s in stats.items()]
    elif is_function(path):
        return source_digest(path)
    else:
        return None
    return digest(parts)


def digest(tree: Any, length: int = 8) -> str:
    """The first `length` hex digits of the SHA-256 of plain data; equal data, equal digest."""
    text = json.dumps(tree, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def functions(tree: Mapping[str, Any]) -> dict[str, str | None]:
    """The functions of the user's that a tree names, and a digest of their source."""
    named = [name for block in _blocks(dict(tree)) for name in _sources(block)]
    return {name: source_digest(name) for name in dict.fromkeys(named) if is_function(name)}
