"""Examples before the question: what is shared against what is not, and against lm-eval.

    python experiments/benchmarks/fewshot.py --rounds 3 --questions exam.jsonl

The shipped model on the CPU in fp32 answers by the probability of each alternative's text (or, with
`--protocol letter`, of its letter): all shipped questions, with the shipped examples, and half of
those of a file in drbodebench's columns, with examples from its other half.

    fixed 8, drbode     the same 8 examples everywhere, run once for all questions
    fixed 8, trees      the same program without that: a question's alternatives share its prompt
    fixed 8, apart      nothing is shared: each alternative behind a whole prompt
    random 8, drbode    8 other examples for each question
    random 8, lm-eval   the same by the hf model of lm-evaluation-harness
    none, drbode        no examples
    none, lm-eval       the same by lm-evaluation-harness

Every arm begins with the questions and their examples and ends with a letter for each, so
rendering and tokenising are in the time; loading the model and choosing the examples are not. All
arms get the same ids from drbode's renderer: lm-eval's tokenising moves the white space at the
end of a prompt into the continuation, and a mean over other tokens may give another answer. lm-eval
runs with the fastest of its batch sizes on some of the questions. The arms take turns in one
process, after each has been run on a few questions. Where two arms get the same prompts, what they
answer must be equal on every question.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import harness
import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from drbode.config import BODINHO, BenchmarkConfig, EvaluateConfig, build, compose
from drbode.data import sources
from drbode.data.prompts import Renderer
from drbode.data.rows import Question
from drbode.evaluation import benchmarks, multiple_choice
from drbode.models.base import Policy, bodinho_folder
from drbode.models.machine import Machine, keep_memory
from drbode.trees import Tree, pack, within

RECORD = harness.RECORDS / "fewshot.json"
LIBRARIES = ("drbode", "torch", "transformers", "lm_eval")
SHOTS = 8
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)  # that lm-eval may choose from
WARM_UP = 8
# A faster arm, a slower one, and times as fast it is to be on the shipped questions.
TARGETS = (
    ("fixed 8, drbode", "fixed 8, apart", 20.0),
    ("random 8, drbode", "random 8, lm-eval", 4.0),
    ("none, drbode", "none, lm-eval", 5.0),
)

Letters = list[str | None]
Run = Callable[[BenchmarkConfig, Sequence[Question]], Letters]


@dataclass(frozen=True)
class Models:
    """The same weights as drbode and as lm-eval have them."""

    policy: Policy
    harness: Any

    @property
    def renderer(self) -> Renderer:
        return Renderer(self.policy.tokenizer, self.policy.context)

    def drbode(self, config: BenchmarkConfig, questions: Sequence[Question]) -> Letters:
        machine = Machine("cpu", "32-true", "fp32", "sdpa", torch.get_num_threads())
        answers = benchmarks.answer(self.policy, self.renderer, questions, config, machine)
        return [answer.letter for answer in answers]

    def trees(self, config: BenchmarkConfig, questions: Sequence[Question]) -> Letters:
        with _nothing_shared_between_questions():
            return self.drbode(config, questions)

    def apart(self, config: BenchmarkConfig, questions: Sequence[Question]) -> Letters:
        trees = self._trees(config, questions)
        alone = [
            Tree(tree.prompt, [completion]) for tree in trees for completion in tree.completions
        ]
        sums: list[float] = []
        with torch.inference_mode():
            for group in within(alone, config.max_tokens):
                batch = pack(group)
                sums += batch.sums(self.policy.logps(batch).double()).tolist()
        return _best(config, questions, trees, sums)

    def lm_eval(self, config: BenchmarkConfig, questions: Sequence[Question]) -> Letters:
        trees = self._trees(config, questions)
        requests = [
            (("", ""), tree.prompt, completion.ids)
            for tree in trees
            for completion in tree.completions
        ]
        results = self.harness._loglikelihood_tokens(requests, disable_tqdm=True)
        return _best(config, questions, trees, [logprob for logprob, _ in results])

    def _trees(self, config: BenchmarkConfig, questions: Sequence[Question]) -> list[Tree]:
        renderer = self.renderer
        render = renderer.letter if config.protocol == "letter" else renderer.alternatives
        trees = []
        for question in questions:
            (tree,) = render(question).trees
            trees.append(tree)
        return trees


def _best(
    config: BenchmarkConfig,
    questions: Sequence[Question],
    trees: Sequence[Tree],
    sums: Sequence[float],
) -> Letters:
    """The letter of the highest score: of a text the mean over its tokens, of a letter the sum."""
    left = iter(sums)
    letters: Letters = []
    for question, tree in zip(questions, trees, strict=True):
        lengths = (1 if config.protocol == "letter" else len(c.ids) for c in tree.completions)
        scores = {k: next(left) / n for k, n in zip(question.alternatives, lengths, strict=True)}
        letters.append(max(scores, key=scores.__getitem__))
    return letters


@contextmanager
def _nothing_shared_between_questions() -> Iterator[None]:
    kept = multiple_choice.WORTH_SHARING
    multiple_choice.WORTH_SHARING = sys.maxsize
    try:
        yield
    finally:
        multiple_choice.WORTH_SHARING = kept


def load() -> Models:
    keep_memory()  # for all arms, which share the process
    folder = bodinho_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for _ in range(2)
    )
    return Models(Policy(ours, tokenizer), HFLM(theirs, tokenizer=tokenizer, device="cpu"))


def settings(path: str, protocol: str, questions: int | None) -> BenchmarkConfig:
    """The shipped settings, with 8 examples that are dropped where they do not fit."""
    words = [f"benchmark={protocol}", f"benchmark.num_fewshot={SHOTS}"]
    words += ["benchmark.fewshot_overflow=drop"]
    config = build(EvaluateConfig, compose("evaluate", words)).benchmark
    return replace(config, path=path, fewshot_path=path, questions=questions)


@dataclass(frozen=True)
class QuestionSet:
    """What several arms share: settings, and questions with the examples that fit."""

    settings: BenchmarkConfig
    questions: list[Question]
    digest: str
    tokens: float  # a question, in the mean

    @classmethod
    def load(cls, models: Models, config: BenchmarkConfig) -> "QuestionSet":
        benchmark = benchmarks.load_benchmark(config)
        renderer = models.renderer
        render = renderer.letter if config.protocol == "letter" else renderer.alternatives
        # Dropped here, so that no arm has to find out in its time what fits.
        rendered = [
            multiple_choice.fit_examples(q, render, config.fewshot_overflow) for q in benchmark.rows
        ]
        tokens = statistics.mean(one.tree.tokens for one in rendered)
        return cls(config, [one.question for one in rendered], benchmark.digest, tokens)


@dataclass(frozen=True)
class Measured:
    """A set of questions: seconds of each arm in each round, and where answers part."""

    name: str
    digest: str
    questions: int
    examples: dict[str, float]  # that stand before a question, in the mean
    tokens: dict[str, float]  # of a question, with its prompt once, in the mean
    batch_size: dict[str, int]  # that lm-eval was fastest with
    seconds: list[dict[str, float]]
    unequal: dict[str, int]  # questions that two arms of the same name answer differently

    def times(self, fast: str, slow: str) -> list[float]:
        """How many times as fast an arm is, in each round."""
        return [taken[slow] / taken[fast] for taken in self.seconds]


def measure(
    models: Models, path: str, protocol: str, count: int | None, rounds: int, every: int
) -> Measured:
    """Every arm once a round; who begins moves on by one, so that none always runs first."""
    whole = settings(path, protocol, count)
    shown = {
        f"fixed {SHOTS}": whole,
        f"random {SHOTS}": replace(whole, fewshot_choice="random"),
        "none": replace(whole, num_fewshot=0),
    }
    sets = {name: QuestionSet.load(models, config) for name, config in shown.items()}
    runs: Mapping[str, Run] = {
        f"fixed {SHOTS}, drbode": models.drbode,
        f"fixed {SHOTS}, trees": models.trees,
        f"fixed {SHOTS}, apart": models.apart,
        f"random {SHOTS}, drbode": models.drbode,
        f"random {SHOTS}, lm-eval": models.lm_eval,
        "none, drbode": models.drbode,
        "none, lm-eval": models.lm_eval,
    }
    sizes = {name: _fastest(models, sets[name], every) for name in (f"random {SHOTS}", "none")}

    def run(arm: str, first: int | None = None) -> Letters:
        name = arm.rpartition(", ")[0]
        models.harness.batch_size_per_gpu = sizes.get(name, 1)
        return runs[arm](sets[name].settings, sets[name].questions[:first])

    for arm in runs:
        run(arm, WARM_UP)
    seconds: list[dict[str, float]] = []
    letters: dict[str, Letters] = {}
    for number in range(rounds):
        shift = number % len(runs)
        taken = {}
        for arm in (*list(runs)[shift:], *list(runs)[:shift]):
            began = time.perf_counter()
            letters[arm] = run(arm)
            taken[arm] = time.perf_counter() - began
            print(f"{path}, round {number + 1}, {arm}: {taken[arm]:.2f} s", file=sys.stderr)
        seconds.append(taken)
    pairs = [("fixed 8, drbode", "fixed 8, trees"), *(pair[:2] for pair in TARGETS)]
    return Measured(
        name=Path(path).stem,
        digest=sets["none"].digest,
        questions=len(sets["none"].questions),
        examples={
            name: statistics.mean(len(q.examples) for q in questions.questions)
            for name, questions in sets.items()
        },
        tokens={name: questions.tokens for name, questions in sets.items()},
        batch_size=sizes,
        seconds=seconds,
        unequal={
            f"{fast} | {slow}": sum(
                ours != theirs for ours, theirs in zip(letters[fast], letters[slow], strict=True)
            )
            for fast, slow in pairs
        },
    )


def _fastest(models: Models, questions: QuestionSet, every: int) -> int:
    """The batch size that lm-eval is fastest with, on every so many questions."""
    few = questions.questions[::every]
    taken = {}
    for size in BATCH_SIZES:
        models.harness.batch_size_per_gpu = size
        began = time.perf_counter()
        models.lm_eval(questions.settings, few)
        taken[size] = time.perf_counter() - began
    return min(taken, key=taken.__getitem__)


def table(sets: Sequence[Measured]) -> str:
    """Medians over the rounds; ratios are taken within a round, with their range in brackets."""
    lines = [
        "| questions | | tokens a question | questions/s | drbode is faster, times |",
        "|---|---|--:|--:|--:|",
    ]
    for measured in sets:
        for number, arm in enumerate(measured.seconds[0]):
            name = arm.rpartition(", ")[0]
            speed = measured.questions / statistics.median(s[arm] for s in measured.seconds)
            times = measured.times(f"{name}, drbode", arm)
            beside = "" if arm.endswith("drbode") else harness.spread(times)
            where = f"{measured.name}, {measured.questions}" if number == 0 else ""
            lines.append(
                f"| {where} | {arm} | {measured.tokens[name]:.0f} | {speed:.1f} | {beside} |"
            )
    return "\n".join(lines)


def describe(sets: Sequence[Measured], protocol: str) -> dict[str, Any]:
    """Everything that was measured, and on what."""
    return {
        "benchmark": "fewshot",
        "protocol": protocol,
        **harness.machine(LIBRARIES),
        "threads": torch.get_num_threads(),
        "precision": "fp32",
        "max_tokens": settings(BODINHO, protocol, None).max_tokens,
        "sets": [asdict(measured) for measured in sets],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="times every arm is run")
    parser.add_argument("--questions", help="file of further questions")
    parser.add_argument("--protocol", choices=("alternatives", "letter"), default="alternatives")
    parser.add_argument("--first", type=int, help="so many questions of each set, for a trial")
    parser.add_argument("--every", type=int, default=8, help="batch sizes are tried on every n-th")
    parser.add_argument("--output", type=Path, default=RECORD, help="file of the record")
    arguments = parser.parse_args()
    models = load()
    counts = {BODINHO: arguments.first}
    if arguments.questions:
        half = len(sources.read("question", arguments.questions, "test", None, "--questions")) // 2
        counts[arguments.questions] = min(half, arguments.first or half)
    sets = [
        measure(models, path, arguments.protocol, count, arguments.rounds, arguments.every)
        for path, count in counts.items()
    ]
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps(describe(sets, arguments.protocol), indent=1) + "\n")
    print(table(sets))
    shipped = sets[0]
    for fast, slow, target in TARGETS:
        ratio = statistics.median(shipped.times(fast, slow))
        print(f"{fast}: {ratio:.2f} times {slow} on {shipped.name} (target {target:g})")
    if unequal := {pair: n for measured in sets for pair, n in measured.unequal.items() if n}:
        sys.exit(f"questions are answered differently, so the times compare nothing: {unequal}")


if __name__ == "__main__":
    main()
