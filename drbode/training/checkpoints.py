"""Checkpoints, from which an interrupted stage goes on: written whole, checked when read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from drbode.config import BadInput
from drbode.record import whole
from drbode.training.checksums import KEY, sha256_of
from drbode.training.module import TrainingModule

REMEDY = "delete it, and the same command goes on without it"


class Checkpoints(TorchCheckpointIO):
    """How Lightning writes and reads those of a module; none holds a number that is not finite."""

    def __init__(self, module: TrainingModule) -> None:
        super().__init__()
        self.module = module

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        self.module.check_finite()
        with whole(Path(path)) as draft, draft.open("wb") as file:
            torch.save({**checkpoint, KEY: sha256_of(checkpoint)}, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read(Path(path), self.module.state_dict())


def read(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Any]:
    """A checkpoint that holds tensors of the names and shapes expected, and nothing but data.

    Raises BadInput for one that is damaged, or of another base or method.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        shapes = {name: tensor.shape for name, tensor in checkpoint["state_dict"].items()}
    except Exception as error:  # of the zip file, of pickle, of what it holds
        first = str(error).strip().split("\n")[0]
        raise BadInput(f"{path}: is damaged ({first}); {REMEDY}") from None
    wanted = {name: tensor.shape for name, tensor in expected.items()}
    odd = sorted(name for name, _ in shapes.items() ^ wanted.items())
    if odd:
        raise BadInput(
            f"{path}: is a checkpoint of another base or method ({odd[0]} is missing or of another "
            f"shape); {REMEDY}"
        )
    if checkpoint.pop(KEY, None) != sha256_of(checkpoint):
        raise BadInput(
            f"{path}: is damaged (its content and its checksum differ), or of an older drbode that "
            f"wrote none; {REMEDY}"
        )
    return checkpoint
