#!/usr/bin/env bash
# Packed rows attend to each other or not by use_cache, in training, with the same position_ids.
#
# Expected: transformers' DataCollatorWithFlattening lays rows end to end and gives position_ids
# that begin again at each, by which the model's attention keeps the rows apart, or does not where
# it is not able to (of that the collator's documentation warns). Neither a setting about the
# key-value cache nor an attention mask of nothing but ones changes logits.
# What happens: rows are told apart by position_ids only where there is neither an attention mask
# nor a cache. use_cache is True by default, also in train mode, and makes a cache in every forward:
# then each row attends to all rows before it. Gradient checkpointing turns the cache off, and with
# it the leak: it changes the loss. A mask of ones brings the leak back. Nothing is said of the
# rows.
# With: torch 2.13.0, transformers 5.23.0, attention sdpa (eager is alike).
# Whom it hurts: training loops of one's own (Trainer and trl set use_cache=False themselves, so
# what is taken from them works there and leaks here): rows see foreign rows, a run with
# checkpointing is not the run without it, and packed evaluation gives losses of another context.
# What avoids it: use_cache=False in each forward (or in the model's config), and no attention mask.
#
# Printed:
#
#   torch 2.13.0 transformers 5.23.0
#   the collator gives ['input_ids', 'labels', 'position_ids'] position_ids [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5]
#   as the collator gives it       loss 4.5887, logits off by 0.5
#   use_cache=False                loss 4.5795, logits off by 1e-07
#   use_cache=False, mask of ones  loss 4.5887, logits off by 0.5
#   gradient checkpointing         loss 4.5795, logits off by 1e-07
#   as described: True
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 transformers==5.23.0
venv/bin/python - <<'PY'
import sys

import torch
import transformers
from transformers import DataCollatorWithFlattening, LlamaConfig, LlamaForCausalLM

print("torch", torch.__version__.split("+")[0], "transformers", transformers.__version__)
torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )
).train()
rows = [{"input_ids": torch.randint(3, 100, (n,)).tolist()} for n in (5, 7, 6)]
batch = DataCollatorWithFlattening(return_tensors="pt")(rows)
print("the collator gives", sorted(batch), "position_ids", batch["position_ids"][0].tolist())
with torch.no_grad():
    alone = [model(input_ids=torch.tensor([row["input_ids"]])).logits for row in rows]
alone = torch.cat(alone, dim=1)


def off(**more):
    """The largest difference of the packed logits to those of each row alone, and the loss."""
    out = model(**batch, **more)
    return (out.logits - alone).abs().max().item(), out.loss.item()


ones = torch.ones_like(batch["input_ids"])
found = {
    "as the collator gives it": off(),
    "use_cache=False": off(use_cache=False),
    "use_cache=False, mask of ones": off(use_cache=False, attention_mask=ones),
}
model.gradient_checkpointing_enable()
found["gradient checkpointing"] = off()
for name, (difference, loss) in found.items():
    print(f"{name:30} loss {loss:.4f}, logits off by {difference:.1g}")
leaks = [difference > 1e-2 for difference, _ in found.values()]
as_described = leaks == [True, False, True, False]
print("as described:", as_described)
sys.exit(not as_described)
PY
