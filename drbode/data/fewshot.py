"""Examples for the prompt: which questions of a pool stand, answered, before a question."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rank_bm25 import BM25Okapi

from drbode.config import BODINHO, BadInput, BenchmarkConfig, is_function
from drbode.data import sources
from drbode.data.bodinho import Conditions
from drbode.data.contamination import Index, words
from drbode.data.rows import QUESTION, QUESTION_OPTIONAL, Question, parse_questions


class PositiveBM25(BM25Okapi):  # type: ignore[misc]
    """Okapi BM25 whose weights stay positive: log(1 + (N - n + 0.5) / (n + 0.5)).

    Without the 1, a word of half the pool weighs nothing and a more frequent one less, so that in
    a small pool the question that shares most words comes last.
    """

    def _calc_idf(self, nd: Mapping[str, int]) -> None:
        self.idf = {
            word: math.log(1 + (self.corpus_size - n + 0.5) / (n + 0.5)) for word, n in nd.items()
        }


@dataclass(frozen=True)
class Pool:
    """Questions to take examples from; `shared` ones are left out, for the benchmark asks them."""

    questions: list[Question]
    shared: int
    digest: str

    def as_dict(self) -> dict[str, Any]:
        return {"pool": len(self.questions), "shared": self.shared, "digest": self.digest}


def with_examples(
    questions: Sequence[Question], config: BenchmarkConfig, conditions: Conditions
) -> tuple[list[Question], Pool]:
    """Each question with `num_fewshot` examples, in the order in which they stand before it.

    `fixed`: the same ones everywhere. `random`: others for each question, whatever the questions
    around it. Of both, fewer examples are the last of more. `similar`: those whose stems score
    highest against the question's by Okapi BM25 (Robertson and Zaragoza 2009,
    https://doi.org/10.1561/1500000019), the most similar one last.
    """
    pool = _pool(questions, config, conditions)
    count, seed = config.num_fewshot, config.fewshot_seed
    if config.fewshot_choice == "similar":
        index = PositiveBM25([_plain(q).split() for q in pool.questions])

    def examples(question: Question) -> list[Question]:
        match config.fewshot_choice:
            case "fixed":
                return random.Random(seed).sample(pool.questions, len(pool.questions))
            case "random":
                chance = random.Random(f"{seed} {_plain(question)}")
                return chance.sample(pool.questions, len(pool.questions))
            case "similar":
                scores = index.get_scores(_plain(question).split())
                order = sorted(range(len(scores)), key=lambda i: -scores[i])
                return [pool.questions[i] for i in order]

    return [replace(q, examples=tuple(examples(q)[count - 1 :: -1])) for q in questions], pool


def _pool(questions: Sequence[Question], config: BenchmarkConfig, conditions: Conditions) -> Pool:
    """Raises BadInput where the pool has too few questions that the benchmark does not ask."""
    key, path = "benchmark.fewshot_path", config.fewshot_path
    if path != BODINHO and not is_function(path) and not Path(path).is_file():
        raise BadInput(
            f"{key}: there is no file {path}; expected {BODINHO}, or a .jsonl, .json or .parquet "
            "file or module:function in the benchmark's columns"
        )
    columns = sources.Columns(QUESTION, QUESTION_OPTIONAL)
    records = sources.read("question", path, "examples", None, key, conditions, columns)
    offered, _ = parse_questions(records)
    index = Index(questions)
    kept = [question for question in offered if not _stands_in(question, index)]
    shared = len(offered) - len(kept)
    if len(kept) < config.num_fewshot:
        raise BadInput(
            f"benchmark.num_fewshot: expected at most {len(kept)}, for {path} holds {len(offered)} "
            f"questions of which the benchmark asks {shared} itself, got {config.num_fewshot}; "
            f"lower it or give more examples as {key}"
        )
    return Pool(kept, shared, sources.digest(records))


def _stands_in(question: Question, index: Index) -> bool:
    """Whether the benchmark asks a question of the pool.

    The right answer beside an alike stem shows nothing here: that an example offers it among its
    alternatives does not make it the same question.
    """
    matches = index.find([question.stem, *question.alternatives.values()])
    return any(match.rule != "beside its answer" for match in matches)


def _plain(question: Question) -> str:
    return " ".join(words(question.stem))
