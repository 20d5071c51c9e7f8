"""How the cost grows with the size of the work, beside the floor that the machine sets.

    python experiments/benchmarks/growth.py

Shape `small` in fp32 on the CPU, by the shipped settings of stage `sft` but for what a curve is
over; a point is a separate process. The floor is the time of the work's matrix products and its
attention at the rate of large products, measured in the same process. The curves:

    packed length   the same rows of 128 tokens, more of them in an optimizer step and micro-batch
    vocabulary      ids, and with them rows of the head
    rank            of LoRA, on every linear layer
    alternatives    shipped questions to the shipped model, each with more of them
    shots           shipped questions after more examples, random or fixed ones
    jobs            a sweep over seeds, a short run each, one after the other or two at a time

`jobs` has no floor; its seconds are those of the whole command.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import costs
import harness
import sft
import workload

ROW = 128  # tokens of a row
LENGTHS = (512, 1024, 2048, 4096, 8192)
VOCABULARIES = (4_096, 16_384, 65_536, 151_936)
RANKS = (4, 16, 64, 256)
ALTERNATIVES = (2, 4, 8, 16)
SHOTS = (0, 1, 2, 4, 8, 16)
JOBS = (1, 2, 4, 8)
QUESTIONS = 60
TRAINED = {"packed length": LENGTHS, "vocabulary": VOCABULARIES, "rank": RANKS}
EVALUATED = {
    "alternatives": ALTERNATIVES,
    "shots of its own": SHOTS,
    "shots the same for all": SHOTS,
}
SWEPT = {"jobs in turn": JOBS, "jobs two at a time": JOBS}
LIBRARIES = ("drbode", "torch", "transformers")


@dataclass(frozen=True)
class Point:
    """What one value of a curve cost."""

    curve: str
    value: int
    seconds: float
    tokens: int | None = None  # a prompt counts once
    increase_gib: float | None = None  # over what is held once all is loaded
    floor: float | None = None  # seconds


# --- points, each in a separate process ---------------------------------------------------------


def trained(curve: str, value: int, folder: Path, began: float) -> Point:
    """128 rows in steps of as many as `value` tokens, or 32 rows by another vocabulary or rank."""
    shape, rank, rows, rows_a_step, max_tokens = "small", 16, 32, 8, None
    if curve == "packed length":
        rows, rows_a_step, max_tokens = 128, value // ROW, value
    elif curve == "vocabulary":
        shape = f"small, {value} ids"
        workload.SHAPES[shape] = replace(workload.SHAPES["small"], vocabulary=value)
    else:
        rank = value
    setting = workload.Setting(
        shape, "cpu", "lora", rank, rows, rows_a_step, row_tokens=ROW, max_tokens=max_tokens
    )
    run = harness.run_arm(sft.WORK, "drbode", setting, folder, began)
    return Point(curve, value, run.seconds, run.tokens, run.increase_gib, run.floor)


def evaluated(curve: str, value: int, folder: Path, began: float) -> Point:
    """Shipped questions by the probability of each alternative's text, after a few to warm up."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from drbode.config import BenchmarkConfig, EvaluateConfig, build, compose
    from drbode.data.prompts import Renderer
    from drbode.evaluation import benchmarks, multiple_choice
    from drbode.models.base import Policy, bodinho_folder
    from drbode.models.machine import Machine, keep_memory

    keep_memory()
    shots = 0 if curve == "alternatives" else value
    words = [f"benchmark.num_fewshot={shots}", "benchmark.fewshot_overflow=drop"]
    words += [f"benchmark.questions={QUESTIONS}"]
    if curve == "shots of its own":
        words.append("benchmark.fewshot_choice=random")
    config: BenchmarkConfig = build(EvaluateConfig, compose("evaluate", words)).benchmark
    questions = benchmarks.load_benchmark(config).rows
    if curve == "alternatives":
        texts = list(dict.fromkeys(t for q in questions for t in q.alternatives.values()))
        questions = [replace(q, alternatives=_more(q, texts, value)) for q in questions]
    base = bodinho_folder()
    policy = Policy(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval(),
        AutoTokenizer.from_pretrained(base),
    )
    renderer = Renderer(policy.tokenizer, policy.context)
    machine = Machine("cpu", "32-true", "fp32", "sdpa", torch.get_num_threads())
    benchmarks.answer(policy, renderer, questions[:8], config, machine)
    setting = workload.Setting("small", "cpu", "lora", 16, len(questions), 1, None, None)
    clock = costs.Clock(setting, began)
    clock.loaded()
    clock.start()
    answers = benchmarks.answer(policy, renderer, questions, config, machine)
    clock.step_done()
    peak = clock.peak_gib
    trees = [
        multiple_choice.fit_examples(q, renderer.alternatives, config.fewshot_overflow).tree
        for q in questions
    ]
    # What all prompts begin with is read once.
    shared = [0, *(answer.shared for answer in answers[1:])]
    trees = [t._replace(prompt=t.prompt[n:]) for t, n in zip(trees, shared, strict=True)]
    sizes = policy.model.config
    shape = workload.Shape(
        sizes.hidden_size,
        sizes.intermediate_size,
        sizes.num_hidden_layers,
        sizes.num_attention_heads,
        sizes.num_key_value_heads,
        sizes.head_dim,
        sizes.vocab_size,
    )
    floor = sum(costs.forward(shape, trees)) / costs.matrix_rate(setting)
    tokens = sum(tree.tokens for tree in trees)
    return Point(curve, value, clock.seconds, tokens, peak - clock.loaded_gib, floor)


def _more(question: Any, texts: Sequence[str], count: int) -> dict[str, str]:
    """The right alternative and others of any question, `count` in all."""
    right = question.alternatives[question.answer]
    others = [text for text in texts if text != right][: count - 1]
    letters = [chr(ord("A") + n) for n in range(count + 1) if chr(ord("A") + n) != question.answer]
    return {question.answer: right, **dict(zip(letters, others, strict=False))}


def swept(curve: str, value: int, folder: Path, began: float) -> Point:
    """A sweep of so many seeds, 20 steps and 40 questions each."""
    words = ["sft.steps=20", "benchmark.questions=40", "logger=csv", "trainer.progress=false"]
    words += ["trainer.threads=1", f"seed={','.join(map(str, range(value)))}"]
    if curve == "jobs two at a time":
        words += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "drbode.train", "-m", *words],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if done.returncode or len(list(folder.glob("outputs/*/record.json"))) != value:
        sys.exit(f"{curve}, {value}: the sweep failed:\n{done.stdout}{done.stderr}")
    return Point(curve, value, time.perf_counter() - start)


# --- what came out -----------------------------------------------------------------------------


def measure(curve: str, value: int) -> Point:
    """A point in a fresh process."""
    return Point(**harness.fresh(f"{curve}, {value}", "--curve", curve, "--value", str(value)))


def table(points: Sequence[Point]) -> str:
    lines = [
        "| over | | seconds | tokens/s | share of the matrix rate, % | memory, GiB |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for point in points:
        speed = "" if point.tokens is None else f"{point.tokens / point.seconds:.0f}"
        share = "" if point.floor is None else f"{100 * point.floor / point.seconds:.0f}"
        memory = "" if point.increase_gib is None else f"{point.increase_gib:.2f}"
        cells = (point.curve, str(point.value), f"{point.seconds:.2f}", speed, share, memory)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(points: Sequence[Point], target: Path) -> None:
    """Seconds a token, a question or a sweep with its floor, and memory, over each value."""
    from matplotlib.figure import Figure

    panels = {
        "packed length": ["packed length"],
        "vocabulary": ["vocabulary"],
        "rank": ["rank"],
        "alternatives": ["alternatives"],
        "shots": ["shots of its own", "shots the same for all"],
        "jobs of a sweep": ["jobs in turn", "jobs two at a time"],
    }
    there = {point.curve for point in points}
    panels = {label: curves for label, curves in panels.items() if there & set(curves)}
    figure = Figure(figsize=(4 * len(panels), 6.4), layout="constrained")
    cells = figure.subplots(2, len(panels), squeeze=False)
    for column, (label, curves) in enumerate(panels.items()):
        above, below = cells[0][column], cells[1][column]
        for number, curve in enumerate(curve for curve in curves if curve in there):
            on_curve = [point for point in points if point.curve == curve]
            values = [point.value for point in on_curve]
            costs = [_cost(point, point.seconds) for point in on_curve]
            above.plot(values, costs, "o-", color=f"C{number}", label=curve)
            if on_curve[0].floor is not None:
                floors = [_cost(point, point.floor or 0.0) for point in on_curve]
                above.plot(values, floors, "--", color=f"C{number}", label="floor")
                below.plot(values, [p.increase_gib for p in on_curve], "o-", color=f"C{number}")
        above.set(ylim=(0, None), ylabel="milliseconds a question")
        above.legend()
        above.grid(alpha=0.3)
        if label in TRAINED:
            above.set(ylabel="milliseconds a token")
            above.set_xscale("log", base=2)
            below.set_xscale("log", base=2)
        if label == "jobs of a sweep":
            below.remove()
            above.set(xlabel=label, ylabel="seconds")
        else:
            below.set(xlabel=label, ylabel="memory over what is loaded, GiB", ylim=(0, None))
            below.grid(alpha=0.3)
    figure.savefig(target, dpi=90)


def _cost(point: Point, seconds: float) -> float:
    """A token's milliseconds where rows are trained on, a question's where some are answered."""
    if point.curve in TRAINED and point.tokens:
        return 1e3 * seconds / point.tokens
    return 1e3 * seconds / QUESTIONS if point.curve in EVALUATED else seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    curves = {**TRAINED, **EVALUATED, **SWEPT}
    parser.add_argument("--rounds", type=int, default=1, help="times each point is measured")
    parser.add_argument("--curves", default=",".join(curves), help="those to measure")
    parser.add_argument("--output", type=Path, default=harness.RECORDS / "growth.json")
    for hidden, kind in (
        ("--curve", str),
        ("--value", int),
        ("--folder", Path),
        ("--began", float),
    ):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.curve is not None:  # the process of one point
        kinds = ((TRAINED, trained), (EVALUATED, evaluated), (SWEPT, swept))
        run = next(make for of, make in kinds if words.curve in of)
        point = run(words.curve, words.value, words.folder, words.began)
        (words.folder / harness.RESULT).write_text(json.dumps(asdict(point)))
        return
    chosen = words.curves.split(",")
    if unknown := set(chosen) - set(curves):
        parser.error(f"--curves: expected some of {', '.join(curves)}, got {unknown.pop()}")
    rounds: list[list[Point]] = []
    for number in range(words.rounds):
        rounds.append([])
        for curve in chosen:
            for value in curves[curve]:
                rounds[-1].append(measure(curve, value))
                print(f"round {number + 1}: {rounds[-1][-1]}", file=sys.stderr)
    # Of a point the round in the middle: its seconds and its floor are of one process.
    middle = [
        sorted(repeats, key=lambda point: point.seconds)[len(repeats) // 2]
        for repeats in zip(*rounds, strict=True)
    ]
    record = {
        "benchmark": "growth",
        **harness.machine(LIBRARIES),
        "shape": asdict(workload.SHAPES["small"]),
        "rounds": [[asdict(point) for point in points] for points in rounds],
    }
    words.output.parent.mkdir(exist_ok=True)
    words.output.write_text(json.dumps(record, indent=1) + "\n")
    draw(middle, words.output.with_suffix(".png"))
    print(table(middle))


if __name__ == "__main__":
    main()
