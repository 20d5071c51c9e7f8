#!/usr/bin/env bash
# An adapter that began with peft's fast PiSSA (pissa_niter_N) is another model once it is loaded.
#
# Expected: save_pretrained and PeftModel.from_pretrained onto the same base give the same logits.
# What happens: PiSSA takes the adapter's start out of the base's weights. Loading does that again,
# by a new singular value decomposition, and then puts the trained tensors in. With "pissa" the
# decomposition is exact and comes out the same. With "pissa_niter_4" it begins at random vectors,
# so another part is taken out of the base than in training: base and adapter no longer belong
# together. On weights with a flat spectrum (drawn at random) the logits move back and forth by
# nearly half of what training moved them; with a spectrum that falls it is less and still there.
# Nothing is said.
# With: torch 2.13.0, peft 0.21.2, transformers 5.23.0.
# Whom it hurts: the fast variant is what peft's documentation offers where the exact one takes too
# long, so for large models. What was validated during training is not what is later loaded,
# evaluated or resumed from.
# What avoids it: "pissa"; or saving with path_initial_model_for_weight_conversion, which makes a
# LoRA on the unchanged base; or merging before saving.
#
# Printed:
#
#   torch 2.13.0 peft 0.21.2 transformers 5.23.0
#   pissa          flat     loss 4.9780, loaded 4.9780; logits moved 0.71 in training and 0 by loading
#   pissa_niter_4  flat     loss 4.9791, loaded 5.0135; logits moved 0.65 in training and 0.29 by loading
#   pissa          falling  loss 5.0309, loaded 5.0309; logits moved 0.61 in training and 0 by loading
#   pissa_niter_4  falling  loss 5.0287, loaded 5.0296; logits moved 0.59 in training and 0.056 by loading
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
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

warnings.filterwarnings("ignore", category=FutureWarning)
print("torch", torch.__version__.split("+")[0], "peft", peft.__version__, "transformers",
      transformers.__version__)
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
ids = torch.randint(3, 200, (2, 12), generator=torch.Generator().manual_seed(0))


def base(falling):
    """The same base each time; with `falling`, singular values go like 1 / sqrt(rank)."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=200, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4,
        )
    )
    for name, weight in model.named_parameters():
        if falling and any(target in name for target in TARGETS):
            u, s, v = torch.linalg.svd(weight.data)
            weight.data = u @ torch.diag(s.max() / torch.arange(1, len(s) + 1) ** 0.5) @ v
    return model.eval()


def trained_and_loaded(init, falling, folder):
    model = base(falling)
    before = model(ids).logits
    torch.manual_seed(1)
    model = get_peft_model(
        model, LoraConfig(r=8, target_modules=TARGETS, init_lora_weights=init)
    ).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    out = model.eval()(input_ids=ids, labels=ids)
    model.save_pretrained(folder)
    torch.manual_seed(2)  # another process
    again = PeftModel.from_pretrained(base(falling), folder).eval()(input_ids=ids, labels=ids)
    learnt = (out.logits - before).abs().max().item()
    lost = (again.logits - out.logits).abs().max().item()
    print(f"{init:14} {'falling' if falling else 'flat':8} loss {out.loss:.4f}, loaded "
          f"{again.loss:.4f}; logits moved {learnt:.2f} in training and {lost:.2g} by loading")
    return lost


as_described = True
with torch.enable_grad():
    for falling in (False, True):
        for init in ("pissa", "pissa_niter_4"):
            lost = trained_and_loaded(init, falling, f"{init}-{falling}")
            as_described &= (lost > 1e-3) == (init != "pissa")
print("as described:", as_described)
sys.exit(not as_described)
PY
