"""The wheel works from an empty folder: conf/, the data and the model travel inside it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import NO_GENERAL

ROOT = Path(__file__).parent.parent


def pip(*words: str) -> None:
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", words[0], *options, *words[1:]]
    subprocess.run(command, check=True, capture_output=True)


def test_the_wheel_trains_from_an_empty_folder(tmp_path: Path) -> None:
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob("drbode-*.whl")
    assert wheel.stat().st_size < 12e6
    pip("install", "--target", str(tmp_path / "site"), str(wheel))
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    where = [sys.executable, "-c", "import drbode; print(drbode.__file__)"]
    found = subprocess.run(where, cwd=empty, env=environment, capture_output=True, text=True)
    assert found.stdout.startswith(str(tmp_path / "site"))
    words = [*NO_GENERAL, "sft.steps=1", "benchmark.questions=5", "logger=csv", "trainer.threads=1"]
    done = subprocess.run(
        [sys.executable, "-m", "drbode.train", *words],
        cwd=empty,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(empty.glob("outputs/*/record.json"))
