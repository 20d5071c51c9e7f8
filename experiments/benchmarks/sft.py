"""Supervised fine-tuning against trl 1.16's SFTTrainer: speed, memory, and that both learn alike.

    python experiments/benchmarks/sft.py
    python experiments/benchmarks/sft.py --shape 0.6b-4 --rows 16
    python experiments/benchmarks/sft.py --shape 0.6b-4 --row-tokens 2048 --rows 2 --rows-a-step 1

Rows of random token ids with log-normal lengths; the prompts' tokens are not learnt from. What is
the same in all arms, and what is timed, stands in `harness.py`. The arms:

    drbode       this program
    trl          as it comes: a step is one batch of 8 rows, padded to the longest
    trl packed   padding_free: a step's rows in one sequence, kept apart by SDPA's mask (trl
                 recommends FlashAttention for it, which needs a GPU)
    trl single   no padding at all: 8 micro-batches of one row, accumulated
"""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import costs
import harness
import workload

PROMPT: workload.Lengths = (3.6, 0.6, 8, 200)
COMPLETION: workload.Lengths = (4.2, 0.7, 8, 400)

PEERS = {
    "trl": {"batch": "whole"},
    "trl packed": {"batch": "whole", "padding_free": True},
    "trl single": {"batch": "single"},
}


def trees(setting: workload.Setting) -> list[Any]:
    from drbode.trees import Tree

    draw = random.Random(workload.SEED)
    vocabulary = workload.SHAPES[setting.shape].vocabulary

    def row() -> Any:
        if setting.row_tokens is None:
            prompt = workload.draw_ids(draw, PROMPT, vocabulary)
            return Tree(
                prompt, [workload.completion(workload.draw_ids(draw, COMPLETION, vocabulary))]
            )
        ids = [draw.randrange(workload.SPECIAL, vocabulary) for _ in range(setting.row_tokens)]
        return Tree(ids[:1], [workload.completion(ids[1:])])

    return [row() for _ in range(setting.rows)]


def trl(
    arm: Mapping[str, Any],
    setting: workload.Setting,
    rows: list[Any],
    folder: Path,
    clock: costs.Clock,
) -> list[float]:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    network = workload.adapted(workload.make_network(setting, folder), setting, "CAUSAL_LM")
    data = Dataset.from_list(
        [
            {
                "input_ids": tree.prompt + completion.ids,
                "completion_mask": [0] * len(tree.prompt) + [1] * len(completion.ids),
            }
            for tree in rows
            for completion in tree.completions
        ]
    )
    words = workload.tokenizer(setting)
    clock.loaded()
    trainer = SFTTrainer(
        network,
        SFTConfig(
            **workload.trl_settings(setting, folder),
            **workload.batches(setting)[arm["batch"]],
            padding_free=arm.get("padding_free", False),
            max_length=None,  # none is cut
            completion_only_loss=True,
        ),
        train_dataset=data,
        processing_class=words,
    )
    return harness.train(trainer, clock)


WORK = workload.Work(
    stage="sft",
    unit="rows",
    peers=PEERS,
    targets=(
        workload.Target("trl", 10),
        workload.Target("trl packed", 4, 2),
        workload.Target("trl single", 4, 2),
    ),
    trees=trees,
    peer=trl,
    head=True,
)

if __name__ == "__main__":
    harness.main(WORK, __doc__)
