"""Heads beside that of the vocabulary: the reward model's, and an encoder's for next sentences."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from drbode.config import BadInput
from drbode.models.base import ADAPTER, ADAPTER_CONFIG, Policy, read_tensors
from drbode.trees import Batch

PREFIX, SCORE = "base_model.model.", "score.weight"  # as transformers and peft name them


@dataclass(frozen=True)
class RewardModel:
    """A frozen reward model: the trained tensors it runs the policy's network with, and its head.

    The score of a completion is head . hidden state of its last token, in no unit; only the
    differences between scores of one prompt's completions mean anything.
    """

    state: Mapping[str, Tensor]
    head: Float[Tensor, " width"]

    def scores(self, policy: Policy, batch: Batch) -> Float[Tensor, " completions"]:
        return policy.under(self.state, lambda: score(policy, self.head, batch))

    def to(self, device: torch.device) -> "RewardModel":
        moved = {name: tensor.to(device) for name, tensor in self.state.items()}
        return RewardModel(moved, self.head.to(device))

    def save(self, policy: Policy, folder: Path) -> None:
        """Writes what transformers' sequence classification, with peft, loads to the same scores.

        An adapter goes with a head beside it; a fully trained network whole.
        """
        before = policy.state()
        policy.load_state(dict(self.state))
        try:
            if isinstance(policy.network, PeftModel):
                _save_adapter(policy, self.head, folder)
            else:
                _save_network(policy, self.head, folder)
        finally:
            policy.load_state(before)


def score(
    policy: Policy, head: Float[Tensor, " width"], batch: Batch
) -> Float[Tensor, " completions"]:
    """head . hidden state of each completion's last token."""
    return policy.hidden(batch)[batch.ends()].to(head.dtype) @ head


def next_sentence_logits(
    policy: Policy, firsts: Float[Tensor, "pairs width"]
) -> Float[Tensor, "pairs 2"]:
    """Whether second segments follow (0) or not (1), from the hidden states of start tokens."""
    pooled = policy.model.base_model.pooler(firsts[:, None])
    logits: Tensor = policy.model.cls.seq_relationship(pooled)
    return logits


def _save_adapter(policy: Policy, head: Tensor, folder: Path) -> None:
    policy.save(folder)
    tensors = load_file(folder / ADAPTER)
    tensors[PREFIX + SCORE] = head.detach().cpu()[None].clone()
    save_file(tensors, folder / ADAPTER, metadata={"format": "pt"})
    described = json.loads((folder / ADAPTER_CONFIG).read_text())
    described |= {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(described, indent=2, sort_keys=True))


def _save_network(policy: Policy, head: Tensor, folder: Path) -> None:
    config = type(policy.model.config).from_dict(policy.model.config.to_dict())
    config.num_labels = 1
    config.pad_token_id = policy.tokenizer.pad_token_id
    with torch.device("meta"):
        network = AutoModelForSequenceClassification.from_config(config)
    tensors = {n: t for n, t in policy.model.state_dict().items() if n in network.state_dict()}
    network.load_state_dict(tensors | {SCORE: head.detach()[None]}, assign=True)
    network.save_pretrained(folder, safe_serialization=True)
    policy.tokenizer.save_pretrained(folder)


def load_reward_model(policy: Policy, folder: Path, key: str) -> RewardModel:
    """The reward model that a run with the same base and method left in `folder`.

    Raises BadInput where it is none, or one of another base or method.
    """
    path = folder / (ADAPTER if isinstance(policy.network, PeftModel) else "model.safetensors")
    if not path.is_file():
        raise BadInput(
            f"{key}: there is no {path}; expected the folder `reward` of a run with the same base "
            "and method"
        )
    tensors = read_tensors(path, f"set {key} to another folder", str(policy.device))
    head = tensors.pop(SCORE, tensors.pop(PREFIX + SCORE, None))
    of_vocabulary = list(policy.model.get_output_embeddings().parameters())
    state = {}
    for name, parameter in policy.trainable().items():
        tensor = tensors.get(name.replace(".default", ""))
        if tensor is None and any(parameter is unused for unused in of_vocabulary):
            tensor = parameter.detach()  # which no score depends on
        if head is None or tensor is None or tensor.shape != parameter.shape:
            raise BadInput(
                f"{key}: {folder} holds no reward model of this base and method ({name} is missing "
                "or of another shape); expected the folder `reward` of a run with both the same"
            )
        state[name] = tensor
    assert head is not None, "checked beside the state"
    return RewardModel(state, head[0])
