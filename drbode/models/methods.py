"""Fine-tuning methods: which tensors of a network train, and what is wrapped around it."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig as PeftLora
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from drbode.config import AdapterConfig, BadInput, LoraConfig, Method, TrainConfig
from drbode.models.adapters import SUBLAYERS, BitfitConfig, BottleneckConfig, vectors
from drbode.models.base import FAMILIES, Policy

# What of an adapter's config has to be as asked where it is trained further, and the key it has.
SHAPES: Mapping[str, Mapping[str, str]] = {
    "LORA": {"r": "lora.r", "use_dora": "lora.use_dora", "use_rslora": "lora.use_rslora"},
    "BOTTLENECK": {"bottleneck": "adapter.bottleneck", "activation": "adapter.activation"},
    "BITFIT": {},
}


def wrap(policy: Policy, asked: TrainConfig) -> None:
    """Makes the policy trainable by `asked.method`, in place; what is random follows the seed.

    A policy that already carries an adapter trains that one further. The logits are those of the
    policy as it came, exactly (olora and pissa: up to rounding). Raises BadInput where the method
    does not fit the policy.
    """
    if asked.method == "full":
        if isinstance(policy.network, PeftModel):
            raise BadInput(
                "method: full cannot train model.path, which is an adapter; choose the method "
                "it was trained by"
            )
        policy.network.requires_grad_(True)
        for name in idle_modules(policy.model, asked):
            policy.model.get_submodule(name).requires_grad_(False)
    else:
        wanted = peft_config(policy.model, asked)
        if isinstance(policy.network, PeftModel):
            _check_same(policy.network.peft_config["default"], wanted, asked.method)
        else:
            with torch.random.fork_rng(), warnings.catch_warnings():
                # peft's own call of torch's checkpoint
                warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
                torch.manual_seed(asked.seed)
                policy.network = get_peft_model(policy.model, wanted)
    policy.network.train()


def peft_config(model: Any, asked: TrainConfig) -> PeftConfig:
    """What a method other than `full` is to peft."""
    match asked.method:
        case "lora" | "qlora":
            return _lora(model, asked.lora, idle_modules(model, asked))
        case "adapter":
            return _bottleneck(model, asked.adapter)
        case "bitfit":
            return _bitfit(model, idle_modules(model, asked))
        case "full":
            raise ValueError("full fine-tuning wraps nothing")


def idle_modules(model: Any, asked: TrainConfig) -> list[str]:
    """Modules that no loss of the run reaches: an encoder's for next sentences, without that."""
    encodes = FAMILIES[model.config.model_type] == "encoder"
    return ["bert.pooler.dense", "cls.seq_relationship"] if encodes and not asked.mlm.nsp else []


def _task(model: Any) -> str | None:
    """What peft calls the task; it has no name for masked language modelling."""
    return "CAUSAL_LM" if FAMILIES[model.config.model_type] == "decoder" else None


def _lora(model: Any, lora: LoraConfig, idle: list[str]) -> PeftConfig:
    assert lora.alpha != "auto", "resolved at the door"
    linear = (nn.Linear, Conv1D)
    names = {n.split(".")[-1] for n, m in model.named_modules() if isinstance(m, linear)}
    names -= {n.split(".")[-1] for n, m in model.named_modules() if _is_tied_or_head(model, m)}
    if lora.target_modules != "all-linear":
        wanted = lora.target_modules
        _check_targets(
            "lora.target_modules", [wanted] if isinstance(wanted, str) else wanted, names
        )
    _check_targets("lora.exclude_modules", lora.exclude_modules or [], names)
    _check_targets("lora.rank_pattern", list(lora.rank_pattern or ()), names)
    _check_targets("lora.alpha_pattern", list(lora.alpha_pattern or ()), names)
    layers = int(model.config.num_hidden_layers)
    for number in lora.layers_to_transform or []:
        if number >= layers:
            raise BadInput(
                f"lora.layers_to_transform: the model has layers 0 to {layers - 1}, got {number}"
            )
    targets = lora.target_modules
    if targets == "all-linear" and lora.layers_to_transform is not None:
        targets = sorted(names)  # peft counts layers only where the targets are named
    return PeftLora(
        task_type=_task(model),
        r=lora.r,
        lora_alpha=lora.alpha,  # peft annotates int, and divides it by r
        lora_dropout=lora.dropout,
        target_modules=targets,
        exclude_modules=[*(lora.exclude_modules or []), *idle] or None,
        layers_to_transform=lora.layers_to_transform,
        rank_pattern=dict(lora.rank_pattern or {}),
        alpha_pattern=dict(lora.alpha_pattern or {}),
        bias=lora.bias,
        lora_bias=lora.lora_bias,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        init_lora_weights=True if lora.init_lora_weights == "default" else lora.init_lora_weights,
        # GPT-2's layers keep their weights transposed; peft warns where this is not said.
        fan_in_fan_out=model.config.model_type == "gpt2",
    )


def _bottleneck(model: Any, adapter: AdapterConfig) -> PeftConfig:
    both = SUBLAYERS[model.config.model_type]
    alone = adapter.placement == "pfeiffer"
    return BottleneckConfig(
        task_type=_task(model),
        target_modules=list(both[1:] if alone else both),
        exclude_modules=[both[0]] if alone else None,  # the end of BERT's second is that of both
        bottleneck=adapter.bottleneck,
        activation=adapter.activation,
    )


def _bitfit(model: Any, idle: list[str]) -> PeftConfig:
    head = model.get_output_embeddings()
    names = {
        name.split(".")[-1]
        for name, module in model.named_modules()
        # Nor what holds the head: BERT's keeps a second name of the head's bias.
        if head not in (module, *module.children()) and any(vectors(module))
    }
    return BitfitConfig(
        task_type=_task(model), target_modules=sorted(names), exclude_modules=idle or None
    )


def _is_tied_or_head(model: Any, module: nn.Module) -> bool:
    """The head and the embeddings: one tensor in tied models, and read as plain matrices here."""
    return module is model.get_output_embeddings() or module is model.get_input_embeddings()


def _check_targets(key: str, wanted: list[str], names: set[str]) -> None:
    for name in wanted:
        if name in ("lm_head", "embed_tokens", "wte", "wpe"):
            raise BadInput(
                f"{key}: {name} is not adapted: head and embeddings are one tensor in tied models; "
                f"leave it out, expected some of {', '.join(sorted(names))}"
            )
        if name not in names:
            raise BadInput(
                f"{key}: the model has no linear layer {name} to adapt; expected some of "
                f"{', '.join(sorted(names))}"
                + (", or all-linear" if key == "lora.target_modules" else "")
            )


def _check_same(earlier: PeftConfig, wanted: PeftConfig, method: Method) -> None:
    """Raises BadInput where the adapter that is to be trained further is of another shape."""
    if earlier.peft_type != wanted.peft_type:
        raise BadInput(
            f"method: model.path is an adapter of the kind {str(earlier.peft_type.value).lower()}, "
            f"which {method} cannot train further; choose the method it was trained by"
        )
    for name, key in SHAPES[str(wanted.peft_type.value)].items():
        before, now = getattr(earlier, name), getattr(wanted, name)
        if before != now:
            raise BadInput(
                f"{key}: model.path is an adapter with {name} {before}, got {now}; set "
                f"{key}={str(before).lower()}"
            )
