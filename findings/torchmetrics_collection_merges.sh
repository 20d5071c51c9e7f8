#!/usr/bin/env bash
# torchmetrics' MetricCollection makes one metric of two that the first batch does not tell apart.
#
# Expected: metrics in a collection compute what each would compute alone.
# What happens: to save work, the collection looks after the first update which metrics hold equal
# states, takes those to be the same from then on and updates only one of each group. It does not
# ask for their settings: accuracies at the thresholds 0.5 and 0.9 that agree on the first batch (no
# score between the two) are one metric for good, and both are reported with the value at 0.5.
# Nothing is said; which of them merge depends on the first batch, so on shuffling and batch size.
# With: torch 2.13.0, torchmetrics 1.9.0.
# Whom it hurts: whoever reports several thresholds, top-k or class counts of one score beside each
# other, as for reward models and classifiers of harmful answers. With small batches, or a model
# that is sure at first, the strict metric is reported as good as the lenient one.
# What avoids it: MetricCollection(..., compute_groups=False).
#
# Printed:
#
#   torch 2.13.0 torchmetrics 1.9.0
#   the sure batch first
#     each alone        {'accuracy at 50 %': 0.667, 'accuracy at 90 %': 0.5, 'recall at 90 %': 0.333}
#     collection        {'accuracy at 50 %': 0.667, 'accuracy at 90 %': 0.667, 'recall at 90 %': 1.0}
#     compute_groups=no {'accuracy at 50 %': 0.667, 'accuracy at 90 %': 0.5, 'recall at 90 %': 0.333}
#   the unsure batch first
#     each alone        {'accuracy at 50 %': 0.667, 'accuracy at 90 %': 0.5, 'recall at 90 %': 0.333}
#     collection        {'accuracy at 50 %': 0.667, 'accuracy at 90 %': 0.5, 'recall at 90 %': 0.333}
#     compute_groups=no {'accuracy at 50 %': 0.667, 'accuracy at 90 %': 0.5, 'recall at 90 %': 0.333}
#   as described: True
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 torchmetrics==1.9.0
venv/bin/python - <<'PY'
import sys

import torch
import torchmetrics
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryRecall

print("torch", torch.__version__.split("+")[0], "torchmetrics", torchmetrics.__version__)


def metrics():
    return {
        "accuracy at 50 %": BinaryAccuracy(threshold=0.5),
        "accuracy at 90 %": BinaryAccuracy(threshold=0.9),
        "recall at 90 %": BinaryRecall(threshold=0.9),
    }


batches = [
    (torch.tensor([0.95, 0.02, 0.99]), torch.tensor([1, 0, 0])),  # sure of each
    (torch.tensor([0.60, 0.70, 0.80]), torch.tensor([1, 1, 0])),
]


def measured(batches):
    alone = metrics()
    together = MetricCollection(metrics())
    ungrouped = MetricCollection(metrics(), compute_groups=False)
    for scores, labels in batches:
        together.update(scores, labels)
        ungrouped.update(scores, labels)
        for metric in alone.values():
            metric.update(scores, labels)
    return [
        {name: round(float(value), 3) for name, value in values.items()}
        for values in (
            {name: metric.compute() for name, metric in alone.items()},
            together.compute(),
            ungrouped.compute(),
        )
    ]


as_described = []
for title, order in (("the sure batch first", batches), ("the unsure batch first", batches[::-1])):
    alone, together, ungrouped = measured(order)
    print(title)
    print("  each alone       ", alone)
    print("  collection       ", together)
    print("  compute_groups=no", ungrouped)
    as_described += [alone == ungrouped, alone != together]
as_described = as_described == [True, True, True, False]
print("as described:", as_described)
sys.exit(not as_described)
PY
