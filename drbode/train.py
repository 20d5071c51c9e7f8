"""python -m drbode.train: takes a model through stages of training, measured before and after."""

from collections.abc import Mapping
from typing import Any

from drbode import config


def job(tree: Mapping[str, Any], overrides: list[str], multirun: bool) -> None:
    print(config.load(tree, overrides, multirun).run_name())


if __name__ == "__main__":
    config.open_door("train", job)
