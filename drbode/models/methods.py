"""Fine-tuning methods: which tensors of a network train, and what is wrapped around it."""

import warnings

import torch
from peft import LoraConfig as PeftLora
from peft import PeftModel, get_peft_model
from transformers.pytorch_utils import Conv1D

from drbode.config import BadInput, LoraConfig, Method
from drbode.models.base import Policy


def wrap(policy: Policy, method: Method, lora: LoraConfig, seed: int) -> None:
    """Makes the policy trainable by `method`, in place; what is drawn at random follows `seed`.

    A policy that already carries an adapter trains that one further. The logits are those of the
    policy as it came, exactly. Raises BadInput where the method does not fit the policy.
    """
    match method:
        case "full":
            if isinstance(policy.network, PeftModel):
                raise BadInput(
                    "method: full cannot train model.path, which is an adapter; choose the method "
                    "it was trained by"
                )
            policy.network.requires_grad_(True)
        case "lora":
            _wrap_lora(policy, lora, seed)
    policy.network.train()


def _wrap_lora(policy: Policy, lora: LoraConfig, seed: int) -> None:
    if isinstance(policy.network, PeftModel):
        earlier = policy.network.peft_config["default"]
        if earlier.r != lora.r:
            raise BadInput(
                f"lora.r: model.path is an adapter of rank {earlier.r}, got {lora.r}; set "
                f"lora.r={earlier.r}"
            )
        for name, parameter in policy.network.named_parameters():
            parameter.requires_grad_("lora_" in name)
        return
    assert lora.alpha != "auto", "resolved at the door"
    if lora.target_modules != "all-linear":
        _check_targets(policy, lora)
    wanted = PeftLora(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,  # peft annotates int, and divides it by r
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        # GPT-2's layers keep their weights transposed; peft warns where this is not said.
        fan_in_fan_out=policy.model.config.model_type == "gpt2",
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")  # peft's own call
        torch.manual_seed(seed)
        policy.network = get_peft_model(policy.model, wanted)


def _check_targets(policy: Policy, lora: LoraConfig) -> None:
    wanted = lora.target_modules
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    linear = (torch.nn.Linear, Conv1D)
    names = {n.split(".")[-1] for n, m in policy.model.named_modules() if isinstance(m, linear)}
    names.discard("lm_head")
    for name in wanted:
        if name not in names:
            raise BadInput(
                f"lora.target_modules: the model has no linear layer {name} to adapt; expected "
                f"all-linear or some of {', '.join(sorted(names))}"
            )
