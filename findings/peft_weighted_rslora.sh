#!/usr/bin/env bash
# peft's add_weighted_adapter makes rsLoRA adapters sqrt(rank) times too strong.
#
# Expected: a combination of one adapter with weight 1.0 is that adapter, and a combination of two
# with 0.5 and 0.5 is their mean, as it is for plain LoRA.
# What happens: the scaling of each source is multiplied into its matrices, and the new adapter gets
# lora_alpha = r so that its own scaling is 1. It is lora_alpha / r only without rsLoRA: use_rslora
# is copied from the first source, so the new scaling is r / sqrt(r) = sqrt(r). All combination
# types are alike; "cat" adds up the ranks and is off by the root of the sum. Nothing is said.
# With: torch 2.13.0, peft 0.21.2.
# Whom it hurts: rsLoRA is for high ranks, where the error is largest: 8 times too strong at r = 64,
# 16 times at 256. Merges of adapters (checkpoint averages, task arithmetic) look broken or
# overtrained.
# What avoids it: divide the weights by the root of the new adapter's rank; or, just before
# combining, model.peft_config[first].use_rslora = False, which leaves the scaling of the layers
# there as it is.
#
# Printed:
#
#   torch 2.13.0 peft 0.21.2
#   LoRA   r= 4 linear of 1: 1.00 times as strong, scaling 1.00
#   LoRA   r=64 linear of 1: 1.00 times as strong, scaling 1.00
#   LoRA   r=64 svd    of 1: 1.00 times as strong, scaling 1.00
#   LoRA   r=64 cat    of 2: 1.00 times as strong, scaling 1.00
#   rsLoRA r= 4 linear of 1: 2.00 times as strong, scaling 2.00
#   rsLoRA r=64 linear of 1: 8.00 times as strong, scaling 8.00
#   rsLoRA r=64 svd    of 1: 8.00 times as strong, scaling 8.00
#   rsLoRA r=64 cat    of 2: 11.31 times as strong, scaling 11.31
#   as described: True
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 peft==0.21.2
venv/bin/python - <<'PY'
import sys

import peft
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

print("torch", torch.__version__.split("+")[0], "peft", peft.__version__)


def strength(rank, rslora, kind, count):
    """Norm of the combined update over that of the right one: the mean of `count` adapters."""
    torch.manual_seed(0)
    config = LoraConfig(r=rank, lora_alpha=16, use_rslora=rslora, target_modules=["0"])
    model = get_peft_model(nn.Sequential(nn.Linear(256, 256)), config, adapter_name="first")
    names = ["first", "second"][:count]
    if count == 2:
        model.add_adapter("second", config)
    layer = model.base_model.model[0]
    for name in names:
        nn.init.normal_(layer.lora_B[name].weight)
    right = sum(layer.get_delta_weight(name) for name in names) / count
    # "linear" combines the matrices, not their product: only for one adapter is it exact
    model.add_weighted_adapter(names, [1 / count] * count, "made", combination_type=kind)
    return (layer.get_delta_weight("made").norm() / right.norm()).item(), layer.scaling["made"]


as_described = True
for rslora in (False, True):
    for rank, kind, count in ((4, "linear", 1), (64, "linear", 1), (64, "svd", 1), (64, "cat", 2)):
        factor, scaling = strength(rank, rslora, kind, count)
        print(f"{'rsLoRA' if rslora else 'LoRA':6} r={rank:2} {kind:6} of {count}: "
              f"{factor:.2f} times as strong, scaling {scaling:.2f}")
        wanted = (rank * (count if kind == "cat" else 1)) ** 0.5 if rslora else 1.0
        as_described &= abs(factor - wanted) < 0.01 * wanted
print("as described:", as_described)
sys.exit(not as_described)
PY
