"""Log-probabilities of a preference set under the reference policy: one pass, kept by content."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from drbode.config import BadInput
from drbode.data.splits import Split
from drbode.models.base import Policy
from drbode.models.machine import Machine
from drbode.record import versions
from drbode.training.checksums import load_tensors, save_tensors
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
    software), so that a sweep over what the reference does not see pays once. Raises BadInput where
    one of them is not finite.
    """

    path = cache / f"{_digest(policy, split.trees, machine, base)}.safetensors"
    logps = _kept(path)
    if logps is None:
        logps = _computed(policy, split.trees, max_tokens, machine, base)
        save_tensors({"logps": logps}, path)
    numbers = iter(logps.tolist())
    trees = (t._replace(reference=tuple(next(numbers) for _ in t.completions)) for t in split.trees)
    return Split(Forest(trees), split.ledger)


def _kept(path: Path) -> Tensor | None:
    """What was computed before; None where nothing was, or where the file is damaged."""
    if not path.is_file():
        return None
    try:
        return load_tensors(path, "it is computed again")["logps"]
    except BadInput as error:
        print(error)
        return None


def _computed(
    policy: Policy,
    trees: Sequence[Tree],
    max_tokens: int,
    machine: Machine,
    base: Mapping[str, Tensor] | None,
) -> Tensor:
    def compute() -> Tensor:
        return _logps(policy, trees, max_tokens, machine)

    if base is None:
        logps = compute()
    elif isinstance(policy.network, PeftModel):
        with policy.network.disable_adapter():
            logps = compute()
    else:
        tensors = {name: tensor.to(policy.device) for name, tensor in base.items()}
        logps = policy.under(tensors, compute)
    if not torch.isfinite(logps).all():
        raise BadInput(
            "dpo: a log-probability under the reference policy is NaN or infinite; look for such "
            "numbers in the weights of model.path, and for a value that is too large in the "
            "settings of the method (such as lora.alpha)"
        )
    return logps


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
