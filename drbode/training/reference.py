"""Log-probabilities of a preference set under the reference policy: one pass, kept by content."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor

from drbode.data.splits import Split
from drbode.models.base import Policy, read_tensors
from drbode.models.machine import Machine
from drbode.record import versions, whole
from drbode.trees import Forest, Tree, pack, within

SOFTWARE = ("torch", "transformers", "peft", "bitsandbytes")


def with_reference(
    policy: Policy,
    split: Split,
    max_tokens: int,
    machine: Machine,
    cache: Path,
    base: Mapping[str, Tensor] | None = None,
) -> Split:
    """The same rows, each with the logps of its completions under the policy as it is now.

    With `base`, the tensors that the run began with, under these, an adapter switched off. Kept in
    `cache` under a digest of all they depend on (weights and how they are held, tokens, precision,
    software), so that a sweep over what the reference does not see pays once.
    """

    def compute() -> Tensor:
        return _logps(policy, split.trees, max_tokens, machine)

    path = cache / f"{_digest(policy, split.trees, machine, base)}.safetensors"
    if path.is_file():
        logps = read_tensors(path, "delete it, and it is computed again")["logps"]
    else:
        if base is None:
            logps = compute()
        elif isinstance(policy.network, PeftModel):
            with policy.network.disable_adapter():
                logps = compute()
        else:
            own = {name: tensor.to(policy.device) for name, tensor in base.items()}
            logps = policy.under(own, compute)
        with whole(path) as draft:
            save_file({"logps": logps}, draft)
    numbers = iter(logps.tolist())
    trees = (t._replace(reference=tuple(next(numbers) for _ in t.completions)) for t in split.trees)
    return Split(Forest(trees), split.ledger)


@torch.no_grad()
def _logps(policy: Policy, trees: Sequence[Tree], max_tokens: int, machine: Machine) -> Tensor:
    sums = []
    with machine.autocast():
        for group in within(trees, max_tokens):
            batch = pack(group).to(policy.device)
            sums.append(batch.sums(policy.logps(batch)).cpu())
    return torch.cat(sums)


def _digest(
    policy: Policy, trees: Sequence[Tree], machine: Machine, base: Mapping[str, Tensor] | None
) -> str:
    total = hashlib.sha256()
    weights = dict(policy.network.state_dict())
    if base is not None:
        weights = {n: t for n, t in weights.items() if n not in policy.trainable()} | dict(base)
    for name, tensor in sorted(weights.items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    tokens = [[t.prompt, [[c.ids, c.supervised] for c in t.completions]] for t in trees]
    software = {name: versions()[name] for name in SOFTWARE}
    held = [str(policy.quantization), machine.precision, machine.attention, software]
    total.update(json.dumps([tokens, held, base is None]).encode())
    return total.hexdigest()[:24]
