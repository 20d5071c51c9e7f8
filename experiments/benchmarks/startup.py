"""Seconds from pressing enter to an answer that needs no model: `--help`, and a key that is wrong.

    python experiments/benchmarks/startup.py

The two commands take turns, each in a separate process; one round before is not counted, in which
the disk is read.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness

COMMANDS = {"--help": 0, "lora.rr=3": 2}  # and what each exits with
TARGET = 1.5  # seconds


def seconds(word: str, folder: str) -> float:
    """Of the train door with one word; it must answer as it should, and leave nothing behind."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "drbode.train", word], cwd=folder, capture_output=True, text=True
    )
    taken = time.perf_counter() - began
    if done.returncode != COMMANDS[word] or any(Path(folder).iterdir()):
        sys.exit(f"{word} was not answered as it should be:\n{done.stdout}{done.stderr}")
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="times every command is run")
    parser.add_argument("--output", type=Path, default=harness.RECORDS / "startup.json")
    arguments = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds + 1):
            words = harness.turns(list(COMMANDS), number)
            rounds.append({word: seconds(word, folder) for word in words})
    counted = rounds[1:]
    record = {
        "benchmark": "startup",
        **harness.machine(("drbode", "hydra-core")),
        "target": TARGET,
        "rounds": counted,
    }
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    print("| python -m drbode.train | seconds |", "|---|--:|", sep="\n")
    for word in COMMANDS:
        seconds = [taken[word] for taken in counted]
        print(f"| `{word}` | {harness.spread(seconds)} |")
        if statistics.median(seconds) > TARGET:
            print(f"{word} takes longer than {TARGET:g} s", file=sys.stderr)


if __name__ == "__main__":
    main()
