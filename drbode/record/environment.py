"""What a result rests on beside its config: packages, code and processor."""

import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parent.parent  # of this package
PACKAGES = (
    "drbode",
    "torch",
    "lightning",
    "transformers",
    "peft",
    "datasets",
    "bitsandbytes",
    "wandb",
    "torchmetrics",
    "hydra-core",
    "omegaconf",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a result rests on."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            installed[package] = "absent"
    return installed


def code_digest() -> str:
    """A digest of this package's source, so that what another version made is not taken for it."""
    total = hashlib.sha256()
    for path in sorted(SOURCE.rglob("*.py")):
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


def cpu_model() -> str:
    """The processor's own name for itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def git_state() -> dict[str, Any] | None:
    """Commit of the source tree and whether it was changed since; None for an installed wheel."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(SOURCE), *words],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != SOURCE.parent:
            return None
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
