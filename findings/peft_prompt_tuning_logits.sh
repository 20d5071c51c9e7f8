#!/usr/bin/env bash
# With prompt tuning peft gives more logits than tokens, and log-probabilities of the wrong places.
#
# Expected: model(input_ids).logits has one position for each token of input_ids, as before peft and
# as with every other method of it, prefix tuning among them.
# What happens: prompt tuning and p-tuning put virtual tokens before the sequence and return logits
# for these too. The built-in loss knows of it; the usual lines of one's own do not: logits[:,
# :-1].log_softmax(-1).gather(2, ids[:, 1:, None]) has no wrong shape for torch, whose gather takes
# an index that is shorter, so it reads each token's probability several positions too early: from
# virtual tokens, and from before the words that the token depends on. Nothing is said.
# With: torch 2.13.0, peft 0.21.2, transformers 5.23.0.
# Whom it hurts: DPO and other preference losses, scores of multiple choice by likelihood, and
# perplexity per token, all of which are mostly written so. They train and rank, on numbers that
# mean nothing; logits[i, length - 1], for the next token of padded rows, is wrong by as much.
# What avoids it: logits[:, -input_ids.shape[1]:], which is right with every method.
#
# Printed:
#
#   torch 2.13.0 peft 0.21.2 transformers 5.23.0
#   LoraConfig          ids (2, 16) logits (2, 16, 20): -loss  -0.00, own  -0.00, cut  -0.00
#   PrefixTuningConfig  ids (2, 16) logits (2, 16, 20): -loss  -0.20, own  -0.20, cut  -0.20
#   PromptTuningConfig  ids (2, 16) logits (2, 20, 20): -loss  -0.00, own  -7.02, cut  -0.00
#   PromptEncoderConfig ids (2, 16) logits (2, 20, 20): -loss  -0.00, own  -7.30, cut  -0.00
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
from peft import (
    LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model,
)
from transformers import LlamaConfig, LlamaForCausalLM

warnings.filterwarnings("ignore", category=FutureWarning)
print("torch", torch.__version__.split("+")[0], "peft", peft.__version__, "transformers",
      transformers.__version__)
ids = torch.arange(3, 19).repeat(2, 1)  # 3, 4, 5, ... which the model learns by heart
labels = ids.clone()
labels[:, 0] = -100  # which nothing precedes


def learnt():
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2,
        )
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
        optimizer.step()
    return model.eval()


def own(logits):
    """The mean log-probability of each row's tokens, in the usual lines."""
    return logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).mean().item()


as_described = True
for config in (
    LoraConfig(task_type="CAUSAL_LM"),
    PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    PromptEncoderConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
):
    model = get_peft_model(learnt(), config).eval()
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)
    cut = own(out.logits[:, -ids.shape[1] :])
    print(f"{type(config).__name__:19} ids {tuple(ids.shape)} logits {tuple(out.logits.shape)}: "
          f"-loss {-out.loss:6.2f}, own {own(out.logits):6.2f}, cut {cut:6.2f}")
    longer = out.logits.shape[1] - ids.shape[1]
    as_described &= longer == 4 * ("Prompt" in type(config).__name__)
    as_described &= abs(cut + out.loss.item()) < 1e-3
    as_described &= (abs(own(out.logits) + out.loss.item()) > 0.1) == (longer > 0)
print("as described:", as_described)
sys.exit(not as_described)
PY
