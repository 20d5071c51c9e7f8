"""Fine-tuning methods: which tensors of a network train, and what is wrapped around it.

One function a method, named in the catalogue of `drbode.config`: of the model and the tuning it
gives the adapter's peft config, or has tensors of the network's own train and gives None.
"""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from drbode.config import METHODS, BadInput, LoraConfig, Tuning, load_function, one_of
from drbode.models.adapters import BitfitConfig, BottleneckConfig, vectors
from drbode.models.base import without_peft_warnings
from drbode.models.families import sublayers
from drbode.models.policy import Policy, kind_of

# What of an adapter's config has to be as asked where it is trained further, and the key it has.
SHAPES: Mapping[str, Mapping[str, str]] = {
    "LORA": {"r": "lora.r", "use_dora": "lora.use_dora", "use_rslora": "lora.use_rslora"},
    "BOTTLENECK": {"bottleneck": "adapter.bottleneck", "activation": "adapter.activation"},
    "BITFIT": {},
}


def wrap(policy: Policy, tuning: Tuning) -> None:
    """Makes the policy trainable as `tuning` says, in place; what is random follows its seed.

    A policy that already carries an adapter trains that one further. The logits are those of the
    policy as it came, exactly (olora and pissa: up to rounding; tuners of peft's that begin
    elsewhere: near them). Raises BadInput where the method does not fit the policy.
    """
    network = policy.network
    earlier = network.peft_config["default"] if isinstance(network, peft.PeftModel) else None
    if earlier is not None and not tuning.traits.adapter:
        raise BadInput(
            f"method: {tuning.method} cannot train model.path, which is an adapter; choose the "
            "method it was trained by"
        )
    prepare = load_function(tuning.traits.function, "method", one_of(METHODS))
    adapter = prepare(policy.model, tuning)
    if earlier is not None:
        _check_same(earlier, adapter, tuning)
    elif adapter is not None:
        policy.network = _attach(policy.model, adapter, tuning)
    policy.network.train()


def _attach(model: Any, adapter: peft.PeftConfig, tuning: Tuning) -> peft.PeftModel:
    """The model in a new adapter. Raises BadInput where the one does not fit the other."""
    key, kind = next(iter(tuning.traits.blocks), "method"), adapter.peft_type.value
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    with torch.random.fork_rng(), without_peft_warnings():
        torch.manual_seed(tuning.seed)
        try:
            network = peft.get_peft_model(model, adapter)
        except Exception as error:  # each tuner checks by itself, and raises what it likes
            raise BadInput(
                f"{key}: peft cannot put {kind} with these options on the model ({error}); change "
                "the options, or choose another method"
            ) from None
    if (model.get_input_embeddings(), model.get_output_embeddings()) != ends:
        raise BadInput(
            f"{key}: {kind} with these options changes the head or the embeddings, which are one "
            "tensor in tied models; leave them out of what it is put on"
        )
    trains = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not trains:
        raise BadInput(f"{key}: {kind} finds nothing in the model to train; choose another method")
    if kind != "BITFIT":  # which trains no matrix anywhere
        _say_what_is_skipped(network, kind)
    for parameter in trains:  # in fp32, also what peft copies from a base in bf16
        parameter.data = parameter.data.float()
    return network


def full(model: Any, tuning: Tuning) -> None:
    """Every parameter that a loss reaches."""
    model.requires_grad_(True)
    for name in unreached(model, tuning):
        model.get_submodule(name).requires_grad_(False)


def lora(model: Any, tuning: Tuning) -> peft.PeftConfig:
    """Low-rank adaptation, also of a base that is held in 4 bits; see the block `lora`."""
    block = tuning.lora
    names = {layer.split(".")[-1] for layer in linear_layers(model)}
    assert block.alpha != "auto", "resolved at the door"
    _check_lora(model, block, names)
    targets = block.target_modules
    if targets == "all-linear" and block.layers_to_transform is not None:
        targets = sorted(names)  # peft counts layers only where the targets are named
    init = block.init_lora_weights
    return peft.LoraConfig(
        task_type=task(model),
        r=block.r,
        lora_alpha=block.alpha,  # peft annotates int, and divides it by r
        lora_dropout=block.dropout,
        target_modules=targets,
        exclude_modules=[
            *(block.exclude_modules or []),
            *unreached(model, tuning),
            *routers(model),
        ]
        or None,
        layers_to_transform=block.layers_to_transform,
        rank_pattern=dict(block.rank_pattern or {}),
        alpha_pattern=dict(block.alpha_pattern or {}),
        bias=block.bias,
        lora_bias=block.lora_bias,
        use_rslora=block.use_rslora,
        use_dora=block.use_dora,
        init_lora_weights=True if init == "default" else init,
        # GPT-2's layers keep their weights transposed; peft warns where this is not said.
        fan_in_fan_out=transposed(model),
    )


def bottleneck(model: Any, tuning: Tuning) -> peft.PeftConfig:
    """Bottleneck adapters; see the block `adapter`."""
    attention, mlp = sublayers(model.config)
    alone = tuning.adapter.placement == "pfeiffer"
    targets = mlp if alone else [*attention, *mlp]
    if not targets:
        raise BadInput(
            "adapter.placement: pfeiffer finds no linear layer at the end of the model's MLPs, "
            "whose experts are one tensor; set it to houlsby, or choose another method"
        )
    return BottleneckConfig(
        task_type=task(model),
        target_modules=targets,
        exclude_modules=attention if alone else None,  # the end of BERT's second is that of both
        bottleneck=tuning.adapter.bottleneck,
        activation=tuning.adapter.activation,
    )


def bitfit(model: Any, tuning: Tuning) -> peft.PeftConfig:
    """Biases and the weights of norms."""
    head = model.get_output_embeddings()
    names = {
        name.split(".")[-1]
        for name, module in model.named_modules()
        # Nor what holds other modules, as an attention with its sinks: no layer lies in another.
        if head is not module and not any(module.children()) and any(vectors(module))
    }
    if not names:
        raise BadInput(
            "method: bitfit finds neither biases nor weights of norms in the model; choose another "
            "method"
        )
    return BitfitConfig(
        task_type=task(model),
        target_modules=sorted(names),
        exclude_modules=unreached(model, tuning) or None,
    )


def unreached(model: Any, tuning: Tuning) -> list[str]:
    """Modules that no loss of the run reaches: an encoder's for next sentences, without that."""
    encodes = kind_of(model.config) == "encoder"
    without = encodes and not tuning.next_sentences
    return ["bert.pooler.dense", "cls.seq_relationship"] if without else []


def task(model: Any) -> str | None:
    """What peft calls the task; it has no name for masked language modelling."""
    return "CAUSAL_LM" if kind_of(model.config) == "decoder" else None


def transposed(model: Any) -> bool:
    """Whether linear layers keep their weights as [in, out]."""
    return any(isinstance(module, Conv1D) for module in model.modules())


def bare_modules(model: Any) -> Iterator[tuple[str, Any]]:
    """The modules of the model and their names, as they are without an adapter around them."""
    adapted: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(adapted):
            continue
        if isinstance(module, BaseTunerLayer):
            adapted += (f"{name}.",)
            yield name, module.get_base_layer()
        else:
            yield name, module


def linear_layers(model: Any) -> list[str]:
    """Full names of the linear layers but the head, which is the embeddings' tensor where tied."""
    head = model.get_output_embeddings()
    linear = ((n, m) for n, m in bare_modules(model) if isinstance(m, nn.Linear | Conv1D))
    without = {*routers(model)}
    return [name for name, module in linear if module is not head and name not in without]


def routers(model: Any) -> list[str]:
    """Linear layers that a family has changed to give more than a product, as some routers."""
    family = type(model).__module__
    return [
        name
        for name, module in bare_modules(model)
        if isinstance(module, nn.Linear) and type(module).__module__ == family
    ]


def _say_what_is_skipped(network: nn.Module, kind: str) -> None:
    """Warns of experts whose weights are one tensor, which the adapter is not put on."""
    experts = {
        name.rpartition(".")[0].split(".")[-1]
        for name, parameter in network.named_parameters()
        if parameter.ndim > 2 and not parameter.requires_grad and ".base_layer." not in name
    }
    if experts:
        warnings.warn(
            f"{kind} is not put on {', '.join(sorted(experts))}, whose weights are one tensor for "
            "several experts: they stay as they are",
            stacklevel=2,
        )


def _check_lora(model: Any, block: LoraConfig, names: set[str]) -> None:
    """Raises BadInput for a layer that the model has not, or that cannot be adapted."""
    if block.target_modules != "all-linear":
        wanted = block.target_modules
        _check_targets(
            "lora.target_modules", [wanted] if isinstance(wanted, str) else wanted, names
        )
    _check_targets("lora.exclude_modules", block.exclude_modules or [], names)
    _check_targets("lora.rank_pattern", list(block.rank_pattern or ()), names)
    _check_targets("lora.alpha_pattern", list(block.alpha_pattern or ()), names)
    layers = int(model.config.num_hidden_layers)
    for number in block.layers_to_transform or []:
        if number >= layers:
            raise BadInput(
                f"lora.layers_to_transform: the model has layers 0 to {layers - 1}, got {number}"
            )


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


def _check_same(earlier: peft.PeftConfig, wanted: peft.PeftConfig, tuning: Tuning) -> None:
    """Raises BadInput where the adapter that is to be trained further is of another shape."""
    if earlier.peft_type != wanted.peft_type:
        raise BadInput(
            f"method: model.path is an adapter of the kind {str(earlier.peft_type.value).lower()}, "
            f"which {tuning.method} cannot train further; choose the method it was trained by"
        )
    if tuning.peft is not None:
        shape: Mapping[str, str] = dict.fromkeys(tuning.peft.options or (), "peft.options")
    else:
        shape = SHAPES[str(wanted.peft_type.value)]
    for name, key in shape.items():
        before, now = _plain(getattr(earlier, name)), _plain(getattr(wanted, name))
        if before != now:
            remedy = f"set {key}={str(before).lower()}" if tuning.peft is None else "leave it out"
            raise BadInput(
                f"{key}: model.path is an adapter with {name} {before}, got {now}; {remedy}"
            )


def _plain(value: Any) -> Any:
    """A field of an adapter's config, in which peft keeps names in sets."""
    return sorted(value) if isinstance(value, set | list) else value
