#!/usr/bin/env bash
# peft's modules_to_save matches ends of names: "norm" is every layer's norms, not the final one.
#
# Expected: modules_to_save=["norm"] names the module called norm, as in target_modules, where a
# name stands for a whole part of the path.
# What happens: every module whose name ends in these letters is copied, trained in full and saved:
# input_layernorm and post_attention_layernorm of each layer as well as the model's norm. Nothing is
# said. target_modules of the same config, or of LN_TUNING, take the same name for the last norm
# alone.
# With: torch 2.13.0, peft 0.21.2, transformers 5.23.0.
# Whom it hurts: "train LoRA and the final norm" trains two more norms in each layer. An ablation of
# what is trained, or a count of parameters, is then of something else than was written down, and a
# learning rate that suits an adapter moves every norm of the base.
# What avoids it: names from a dot on, such as "model.norm", and a look at what requires a gradient.
#
# Printed:
#
#   torch 2.13.0 peft 0.21.2 transformers 5.23.0
#   modules_to_save=['norm'] trains in full:
#     model.layers.0.input_layernorm
#     model.layers.0.post_attention_layernorm
#     model.layers.1.input_layernorm
#     model.layers.1.post_attention_layernorm
#     model.norm
#   modules_to_save=['.norm'] trains in full:
#     model.norm
#   target_modules=['norm'] of LN_TUNING trains:
#     model.norm
#   as described: True
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 peft==0.21.2 transformers==5.23.0
venv/bin/python - <<'PY'
import sys
import warnings

import peft
import torch
import transformers
from peft import LNTuningConfig, LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

warnings.filterwarnings("ignore", category=FutureWarning)
print("torch", torch.__version__.split("+")[0], "peft", peft.__version__, "transformers",
      transformers.__version__)
config = LlamaConfig(
    vocab_size=200, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2,
)


def saved(name):
    model = get_peft_model(
        LlamaForCausalLM(config), LoraConfig(target_modules=["q_proj"], modules_to_save=[name])
    )
    mark = ".modules_to_save.default"
    return [
        n.replace("base_model.model.", "").replace(mark, "").replace(".weight", "")
        for n, p in model.named_parameters()
        if p.requires_grad and mark in n
    ]


norms, final = saved("norm"), saved(".norm")
print("modules_to_save=['norm'] trains in full:", *norms, sep="\n  ")
print("modules_to_save=['.norm'] trains in full:", *final, sep="\n  ")
tuned = get_peft_model(LlamaForCausalLM(config), LNTuningConfig(target_modules=["norm"]))
targets = tuned.base_model.targeted_module_names
print("target_modules=['norm'] of LN_TUNING trains:", *targets, sep="\n  ")
as_described = len(norms) == 5 and final == ["model.norm"] and targets == ["model.norm"]
print("as described:", as_described)
sys.exit(not as_described)
PY
