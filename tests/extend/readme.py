"""The worked examples of the README, which the tests here run as they stand."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def block(name: str) -> str:
    """The block of code that names a file in one of its first two lines."""
    blocks = re.findall(r"```(?:python|yaml)\n(.*?)```", README.read_text(), re.DOTALL)
    (text,) = (b for b in blocks if any(f"# {name}" in line for line in b.splitlines()[:2]))
    return str(text)


def command(part: str) -> list[str]:
    """The words of the README's command line that holds `part`, behind `python -m`."""
    import shlex

    lines = (line for line in README.read_text().splitlines() if line.startswith("python -m"))
    (line,) = (line for line in lines if part in line)
    return shlex.split(line)[2:]
