"""The reward model against trl 1.16's RewardTrainer: speed, memory, and that both learn alike.

    python experiments/benchmarks/reward.py
    python experiments/benchmarks/reward.py --shape 0.6b-4 --rows 16

The pairs of `dpo.py`, the Bradley-Terry loss, and a scalar head that starts at zero in all arms
(trl's would be random). What is the same in all arms, and what is timed, stands in
`harness.py`. The arms:

    drbode       this program
    trl          as it comes: a step is one batch of 8 pairs, padded, each prompt computed for both
                 its completions
    trl single   little padding: 8 micro-batches of one pair, accumulated
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import costs
import harness
import preferences
import workload

PEERS = {"trl": {"batch": "whole"}, "trl single": {"batch": "single"}}


def trl(
    arm: Mapping[str, Any],
    setting: workload.Setting,
    rows: list[Any],
    folder: Path,
    clock: costs.Clock,
) -> list[float]:
    import torch
    from datasets import Dataset
    from transformers import Qwen3ForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    class Tokenised(RewardTrainer):
        def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
            return dataset

    base = workload.make_network(setting, folder)
    base.config.num_labels = 1
    with torch.device("meta"):
        network = Qwen3ForSequenceClassification(base.config)
    network.model = base.model
    # Of the scalar head no draw is kept: `adapted` puts it to zero.
    network.score = torch.nn.Linear(base.config.hidden_size, 1, bias=False, device=setting.device)
    network = workload.adapted(network, setting, "SEQ_CLS")
    data = Dataset.from_list(
        [
            {"chosen_ids": tree.prompt + chosen.ids, "rejected_ids": tree.prompt + rejected.ids}
            for tree in rows
            for chosen, rejected in [tree.completions]
        ]
    )
    words = workload.tokenizer(setting)
    clock.loaded()
    trainer = Tokenised(
        network,
        args=RewardConfig(
            **workload.trl_settings(setting, folder),
            **workload.batches(setting)[arm["batch"]],
            max_length=None,  # none is cut
        ),
        train_dataset=data,
        processing_class=words,
    )
    return harness.train(trainer, clock)


WORK = workload.Work(
    stage="reward",
    unit="pairs",
    peers=PEERS,
    targets=(workload.Target("trl", 10, 4),),
    trees=preferences.trees,
    peer=trl,
    head=False,
)

if __name__ == "__main__":
    harness.main(WORK, __doc__)
