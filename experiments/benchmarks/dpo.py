"""Direct preference optimization against trl 1.16's DPOTrainer, passes of the reference counted.

    python experiments/benchmarks/dpo.py
    python experiments/benchmarks/dpo.py --shape 0.6b-4 --rows 16

Pairs of random token ids with log-normal lengths, sigmoid loss, beta 0.1; the reference is the
policy as it was at the start. What is the same in all arms, and what is timed, stands in
`harness.py`. The arms:

    drbode                  this program: one pass over all pairs for the reference, then the steps
    trl                     as it comes: a step is one batch of 8 pairs, padded, each prompt
                            computed for both its completions, and the reference's pass in it
    trl precomputed         precompute_ref_log_probs: the reference's pass ahead of the steps
    trl precomputed single  the same with little padding: 8 micro-batches of one pair, accumulated

trl 1.16 switches its padding_free off for DPO.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import costs
import harness
import preferences
import workload

PEERS = {
    "trl": {"batch": "whole", "precompute": False},
    "trl precomputed": {"batch": "whole", "precompute": True},
    "trl precomputed single": {"batch": "single", "precompute": True},
}


def trl(
    arm: Mapping[str, Any],
    setting: workload.Setting,
    rows: list[Any],
    folder: Path,
    clock: costs.Clock,
) -> list[float]:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class Tokenised(DPOTrainer):
        def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
            return dataset

        def _precompute_ref_logps(self, *arguments: Any) -> Dataset:
            with clock.ahead():
                return super()._precompute_ref_logps(*arguments)

    network = workload.adapted(workload.make_network(setting, folder), setting, "CAUSAL_LM")
    data = Dataset.from_list(
        [
            {"prompt_ids": tree.prompt, "chosen_ids": chosen.ids, "rejected_ids": rejected.ids}
            for tree in rows
            for chosen, rejected in [tree.completions]
        ]
    )
    words = workload.tokenizer(setting)
    clock.loaded()
    trainer = Tokenised(
        network,
        args=DPOConfig(
            **workload.trl_settings(setting, folder),
            **workload.batches(setting)[arm["batch"]],
            precompute_ref_log_probs=arm["precompute"],
            max_length=None,  # none is cut
            beta=0.1,
        ),
        train_dataset=data,
        processing_class=words,
    )
    return harness.train(trainer, clock)


WORK = workload.Work(
    stage="dpo",
    unit="pairs",
    peers=PEERS,
    targets=(workload.Target("trl", 16), workload.Target("trl precomputed", 10, 4)),
    trees=preferences.trees,
    peer=trl,
    head=True,
    forward=1,
    words=("nll_weight=0",),
)

if __name__ == "__main__":
    harness.main(WORK, __doc__)
