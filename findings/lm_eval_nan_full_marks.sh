#!/usr/bin/env bash
# lm-eval gives a model whose outputs are all NaN full marks where the right choice comes first.
#
# Expected: a model that gives NaN for each choice (overflow in half precision, a broken merge) is
# refused, or scores 0, or what guessing does.
# What happens: the choice is numpy's argmax of the likelihoods, which is the first NaN, so choice
# 0; a tie goes to the first choice too. In tasks that list the right choice first for every
# question (doc_to_target: 0, as in the shipped truthfulqa_mc1 and its translations, and pairs of a
# good and a bad sentence such as blimp) that is an accuracy of 1.0, with no warning. A model with
# one constant score for all does as well.
# With: lm_eval 0.4.13.
# Whom it hurts: sweeps over merges, quantizations and learning rates, where the run that broke tops
# the table; also a half-broken one, whose NaN questions all count as right.
# What avoids it: looking for NaN in the logged samples, one task beside it whose right choice
# moves, and shuffling the choices of one's own tasks.
#
# Printed:
#
#   lm_eval 0.4.13
#   truthfulqa_mc1 says doc_to_target: 0
#   NaN for every choice                       accuracy 1.00
#   the same score for every choice            accuracy 1.00
#   as described: True
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q lm_eval==0.4.13
venv/bin/python - <<'PY'
import importlib.metadata
import json
import logging
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import datasets
import lm_eval
import yaml
from lm_eval.api.model import LM

datasets.disable_progress_bars()
logging.disable(logging.WARNING)
print("lm_eval", importlib.metadata.version("lm_eval"))
# The shipped task, on questions that are here.
file = Path(lm_eval.__file__).parent / "tasks/truthfulqa/truthfulqa_mc1.yaml"
shipped = yaml.safe_load(file.read_text())
print("truthfulqa_mc1 says doc_to_target:", shipped["doc_to_target"])
questions = [
    {"question": f"{a} + {a}?", "mc1_targets": {"choices": [str(2 * a), str(a), str(3 * a)]}}
    for a in range(1, 21)
]
Path("here.json").write_text("\n".join(json.dumps(row) for row in questions))
here = {"dataset_path": "json", "dataset_name": None,
        "dataset_kwargs": {"data_files": {"validation": "here.json"}}}


class Model(LM):
    def __init__(self, score):
        super().__init__()
        self.score = score

    def loglikelihood(self, requests, **_):
        return [(self.score(request.args[1]), False) for request in requests]

    def loglikelihood_rolling(self, requests, **_):
        raise NotImplementedError

    generate_until = loglikelihood_rolling


def accuracy(score):
    found = lm_eval.simple_evaluate(Model(score), tasks=[{**shipped, **here}], bootstrap_iters=0)
    return found["results"]["truthfulqa_mc1"]["acc,none"]


found = {
    "NaN for every choice": accuracy(lambda text: float("nan")),
    "the same score for every choice": accuracy(lambda text: -1.0),
}
for name, value in found.items():
    print(f"{name:42} accuracy {value:.2f}")
as_described = list(found.values()) == [1.0, 1.0]
print("as described:", as_described)
sys.exit(not as_described)
PY
