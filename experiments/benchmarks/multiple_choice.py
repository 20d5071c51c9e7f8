"""The benchmark of questions against the chapter's way, one question at a time.

    python experiments/benchmarks/multiple_choice.py --rounds 3 --questions exam.jsonl

The shipped model on the CPU in fp32, on the shipped questions and on those of a file in
drbodebench's columns:

    loop      the chapter's way (section 3.5.2) in transformers alone: one question at a time
              through the chat template and `generate`, greedy, 10 new tokens, and the first of A
              to E in what was written
    chapter   the same question by drbode's protocol of that name, with its shipped settings
    letter    the log-probabilities of the letters, which writes nothing

Every arm begins with the rows as they are read and ends with a letter for each, so rendering and
tokenising are in the time; loading the model is not. The arms take turns in one process, after
each has been run on a few questions, so that a machine that slows down slows all of them. What
`loop` and `chapter` answer must be equal on every question.
"""

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import harness
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from drbode.config import BODINHO, BenchmarkConfig, EvaluateConfig, build, compose
from drbode.data import sources
from drbode.data.prompts import Renderer
from drbode.data.rows import parse_question
from drbode.evaluation import benchmarks
from drbode.models.base import Policy, bodinho_folder
from drbode.models.machine import Machine, keep_memory

RECORD = harness.RECORDS / "multiple_choice.json"
LIBRARIES = ("drbode", "torch", "transformers")
TARGETS = {"chapter": 2.5, "letter": 4.0}  # times as fast as the loop, on the shipped questions
WARM_UP = 8

Rows = Sequence[sources.Record]
Letters = list[str | None]


@dataclass(frozen=True)
class Arms:
    """A model as each arm has it; the weights are the same ones."""

    network: Any
    tokenizer: Any
    policy: Policy

    def loop(self, rows: Rows) -> Letters:
        letters: Letters = []
        for _, row in rows:
            offered = "\n".join(f"{k}) {text}" for k, text in row["alternativas"].items())
            image = row.get("img_description")
            stem = f"{row['enunciado']}\n\n{image}" if image else row["enunciado"]
            prompt = (
                "Você é um médico especialista. Leia a questão de múltipla escolha e responda "
                f"apenas com a letra da alternativa correta.\n\nQuestão: {stem}\n\n{offered}\n\n"
                "Resposta:"
            )
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
            )
            inputs = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")
            with torch.no_grad():
                ids = self.network.generate(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    max_new_tokens=10,
                    do_sample=False,
                )
            written = self.tokenizer.decode(
                ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
            letter = re.search("[A-Ea-e]", written)
            letters.append(letter[0].upper() if letter else None)
        return letters

    def chapter(self, rows: Rows) -> Letters:
        return self._drbode("chapter", rows)

    def letter(self, rows: Rows) -> Letters:
        return self._drbode("letter", rows)

    def _drbode(self, protocol: str, rows: Rows) -> Letters:
        answers = benchmarks.answer(
            self.policy,
            Renderer(self.policy.tokenizer, self.policy.context),
            [parse_question(fields, where) for where, fields in rows],
            settings(protocol),
            Machine("cpu", "32-true", "fp32", "sdpa", torch.get_num_threads()),
        )
        return [answer.letter for answer in answers]


def settings(protocol: str) -> BenchmarkConfig:
    """The shipped settings of a protocol."""
    return build(EvaluateConfig, compose("evaluate", [f"benchmark={protocol}"])).benchmark


def load() -> Arms:
    keep_memory()  # for all arms, which share the process
    folder = bodinho_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    networks = [
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for _ in range(2)
    ]
    return Arms(networks[0], tokenizer, Policy(networks[1], tokenizer))


@dataclass(frozen=True)
class Measured:
    """A set of questions: seconds of each arm in each round, and where the answers part."""

    name: str
    digest: str
    questions: int
    seconds: list[dict[str, float]]
    unequal: int  # questions that `loop` and `chapter` answer differently

    def times(self, arm: str) -> list[float]:
        """How many times as fast as the loop an arm is, in each round."""
        return [taken["loop"] / taken[arm] for taken in self.seconds]


def measure(arms: Arms, path: str, rounds: int) -> Measured:
    """Every arm once a round; who begins moves on by one, so that none always runs first."""
    rows = sources.read("question", path, "test", None, "--questions")
    runs: Mapping[str, Callable[[Rows], Letters]] = {
        "loop": arms.loop,
        "chapter": arms.chapter,
        "letter": arms.letter,
    }
    for run in runs.values():
        run(rows[:WARM_UP])
    seconds: list[dict[str, float]] = []
    letters: dict[str, Letters] = {}
    for number in range(rounds):
        shift = number % len(runs)
        taken = {}
        for arm in (*list(runs)[shift:], *list(runs)[:shift]):
            began = time.perf_counter()
            letters[arm] = runs[arm](rows)
            taken[arm] = time.perf_counter() - began
            print(f"{path}, round {number + 1}, {arm}: {taken[arm]:.2f} s", file=sys.stderr)
        seconds.append(taken)
    pairs = zip(letters["loop"], letters["chapter"], strict=True)
    return Measured(
        name=Path(path).stem,
        digest=sources.digest(rows),
        questions=len(rows),
        seconds=seconds,
        unequal=sum(ours != theirs for ours, theirs in pairs),
    )


def table(sets: Sequence[Measured]) -> str:
    """Medians over the rounds; ratios are taken within a round, with their range in brackets."""
    lines = [
        "| questions | | questions/s | times as fast as the loop | answers unlike the loop's |",
        "|---|---|--:|--:|--:|",
    ]
    for measured in sets:
        lines.append(_row(measured, "loop", "", ""))
        lines.append(
            _row(
                measured,
                "chapter",
                harness.spread(measured.times("chapter")),
                str(measured.unequal),
            )
        )
        lines.append(_row(measured, "letter", harness.spread(measured.times("letter")), ""))
    return "\n".join(lines)


def _row(measured: Measured, arm: str, ratio: str, unequal: str) -> str:
    speed = measured.questions / statistics.median(s[arm] for s in measured.seconds)
    name = f"{measured.name}, {measured.questions}" if arm == "loop" else ""
    return f"| {name} | {arm} | {speed:.1f} | {ratio} | {unequal} |"


def describe(sets: Sequence[Measured]) -> dict[str, Any]:
    """Everything that was measured, and on what."""
    return {
        "benchmark": "multiple_choice",
        **harness.machine(LIBRARIES),
        "threads": torch.get_num_threads(),
        "precision": "fp32",
        "max_tokens": settings("letter").max_tokens,
        "sets": [asdict(measured) for measured in sets],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="times every arm is run")
    parser.add_argument("--questions", help="file of further questions")
    parser.add_argument("--output", type=Path, default=RECORD, help="file of the record")
    arguments = parser.parse_args()
    arms = load()
    paths = [BODINHO, *([arguments.questions] if arguments.questions else [])]
    sets = [measure(arms, path, arguments.rounds) for path in paths]
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps(describe(sets), indent=1) + "\n")
    print(table(sets))
    shipped = sets[0]
    for arm, target in TARGETS.items():
        ratio = statistics.median(shipped.times(arm))
        print(f"{arm}: {ratio:.2f} times the loop on {shipped.name} (target {target:g})")
    if unequal := sum(measured.unequal for measured in sets):
        sys.exit(f"{unequal} questions are answered differently: the times compare nothing")


if __name__ == "__main__":
    main()
