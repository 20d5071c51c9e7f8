"""A digest beside what training keeps, so that a file whose content has changed is not used."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from drbode.config import BadInput
from drbode.models.base import read_tensors
from drbode.record import whole, write_json

KEY = "sha256"


def sha256_of(content: Any) -> str:
    """Of tensors, numbers and strings in lists and mappings, in their order."""
    total = hashlib.sha256()
    _add(total, content)
    return total.hexdigest()


def _add(total: Any, content: Any) -> None:
    if isinstance(content, Tensor):
        total.update(f"{content.dtype} {list(content.shape)}".encode())
        flat = content.detach().cpu().contiguous().flatten()
        total.update(flat.view(torch.uint8).numpy().data)
    elif isinstance(content, Mapping):
        total.update(f"mapping {len(content)}".encode())
        for key, value in content.items():
            total.update(repr(key).encode())
            _add(total, value)
    elif isinstance(content, list | tuple):
        total.update(f"sequence {len(content)}".encode())
        for value in content:
            _add(total, value)
    else:
        total.update(repr(content).encode())


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes a safetensors file that holds its own checksum, whole or not at all."""
    with whole(path) as draft:
        save_file(tensors, draft, {KEY: sha256_of(dict(sorted(tensors.items())))})


def load_tensors(path: Path, remedy: str) -> dict[str, Tensor]:
    """What `save_tensors` wrote. Raises BadInput, with what to do, where it is damaged."""
    tensors = read_tensors(path, remedy)
    with safe_open(path, "pt") as file:
        expected = (file.metadata() or {}).get(KEY)
    if expected != sha256_of(dict(sorted(tensors.items()))):
        raise BadInput(f"{path}: is damaged (its content and its checksum differ); {remedy}")
    return tensors


def write_checked(path: Path, data: dict[str, Any]) -> None:
    """Writes a JSON file that holds its own checksum."""
    write_json(path, {**data, KEY: sha256_of(json.dumps(data))})


def read_checked(path: Path) -> dict[str, Any]:
    """What `write_checked` wrote. Raises ValueError where it is damaged."""
    data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or data.pop(KEY, None) != sha256_of(json.dumps(data)):
        raise ValueError("its content and its checksum differ")
    return data
