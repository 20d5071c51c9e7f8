"""The pairs that `dpo.py` and `reward.py` train on: random ids, log-normal lengths."""

import random
from typing import Any

import workload

PROMPT: workload.Lengths = (4.8, 0.4, 40, 300)
COMPLETION: workload.Lengths = (3.4, 0.6, 5, 150)


def trees(setting: workload.Setting) -> list[Any]:
    """A prompt, its chosen completion and its rejected one; `row_tokens` is all three's."""
    from drbode.trees import Tree

    draw = random.Random(workload.SEED)
    vocabulary = workload.SHAPES[setting.shape].vocabulary

    def lengths() -> list[workload.Lengths]:
        if setting.row_tokens is None:
            return [PROMPT, COMPLETION, COMPLETION]
        side = setting.row_tokens // 6  # the prompts are about four times as long as a completion
        prompt = setting.row_tokens - 2 * side
        return [(0.0, 0.0, length, length) for length in (prompt, side, side)]

    def pair() -> Any:
        prompt, chosen, rejected = (
            workload.draw_ids(draw, length, vocabulary) for length in lengths()
        )
        return Tree(prompt, [workload.completion(chosen), workload.completion(rejected)])

    return [pair() for _ in range(setting.rows)]
