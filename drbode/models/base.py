"""The network and its tokenizer: where they are, whether they can be used, and loading them."""

import dataclasses
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForPreTraining,
    AutoTokenizer,
    BitsAndBytesConfig,
)
from transformers.utils import logging

import drbode.models.adapters  # noqa: F401 -- registers its methods, so that peft can load them
from drbode.config import (
    BERTINHO,
    BODINHO,
    SHIPPED,
    BadInput,
    ModelConfig,
    ModelKind,
    QloraConfig,
    build,
)
from drbode.models.attention import NAMES
from drbode.models.families import own_modules, prove
from drbode.models.policy import QUANTIZATION, Attention, Policy, context_of, kind_of
from drbode.record import read_record

__all__ = ["NAMES", "QUANTIZATION", "Attention", "Policy"]  # what other rooms find here as well

WRONG_KIND: dict[ModelKind, str] = {  # what is said of a model of the other kind than is needed
    "encoder": "an encoder, which predicts masked tokens and writes none; expected a decoder, or "
    "stages=mlm and the protocol alternatives alone",
    "decoder": "a decoder, which has no masked tokens to predict; stage mlm expects an encoder, as "
    "model=bertinho",
}

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

logging.disable_progress_bar()  # a bar for a shard of weights tells nobody anything


def bodinho_folder() -> Path:
    """Where the shipped model lies."""
    return shipped_folder(BODINHO)


def shipped_folder(name: str) -> Path:
    """Where the model of this name lies in the package."""
    return Path(str(resources.files("drbode"))) / SHIPPED[name]


def adapter_base(folder: str) -> str | None:
    """The base model's path, if `folder` holds a peft adapter."""
    described = Path(folder) / ADAPTER_CONFIG
    if not described.is_file():
        return None
    try:
        base = json.loads(described.read_text())["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"model.path: {described} is damaged ({error})") from None
    # An adapter may have been trained where drbode was installed elsewhere.
    if Path(base).name == "base" and Path(base).parent.name == BODINHO:
        return BODINHO
    if Path(base).name == BERTINHO and Path(base).parent.name == "data":
        return BERTINHO
    return str(base)


def read_tensors(path: Path, remedy: str, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises BadInput, with what to do, where it is damaged."""
    try:
        return load_file(path, device=device)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path}: is damaged or missing ({error}); {remedy}") from None


def _location(path: str) -> str:
    return str(shipped_folder(path)) if path in SHIPPED else path


def quantization_of(config: ModelConfig) -> QloraConfig | None:
    """How the base of the adapter in `model.path` was held when it was trained."""
    described = Path(config.path) / QUANTIZATION
    if config.quantization == "none" or not described.is_file():
        return None
    try:
        return build(QloraConfig, json.loads(described.read_text()))
    except (ValueError, BadInput) as error:
        raise BadInput(f"model.path: {described} is damaged ({error})") from None


def load_policy(
    config: ModelConfig,
    dtype: torch.dtype,
    attention: Attention,
    seed: int = 0,
    quantization: QloraConfig | None = None,
    kind: ModelKind | None = "decoder",
) -> Policy:
    """The base network (an adapter's folder: with the adapter) and its tokenizer.

    The base is held in 4 bits where `quantization` says how. Raises BadInput where the model is not
    to be had, is of a family that packed trees compute otherwise or not of the `kind` that is
    needed (None: either will do), or is damaged.
    """
    described = describe(config, kind, attention)
    path, options = _source(config)
    encodes = kind_of(described.config) == "encoder"
    auto = AutoModelForPreTraining if encodes else AutoModelForCausalLM
    with _to_be_had(config):
        torch.manual_seed(seed)  # of what is random: all weights, or a head that is not there yet
        if config.init == "random":
            network = auto.from_config(described.config, dtype=dtype)
        else:
            if quantization is not None:
                options["quantization_config"] = _bits_and_bytes(quantization)
            network = auto.from_pretrained(path, dtype=dtype, use_safetensors=True, **options)
            _hold_in_one_format(network)
    _check_modules(network, described.config, config, attention)
    if adapter_base(config.path):
        with _to_be_had(config), without_peft_warnings():
            # Without which tensors that the file lacks would begin anew in silence.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            network = PeftModel.from_pretrained(network, config.path, is_trainable=True)
    return Policy(network, described.tokenizer, attention, quantization)


class Description(NamedTuple):
    """What is known of a model before its weights are loaded."""

    config: Any
    tokenizer: Any

    @property
    def context(self) -> int:
        """The longest sequence the model has positions for, in tokens."""
        return context_of(self.config)


def describe(
    config: ModelConfig, kind: ModelKind | None, attention: Attention = "sdpa"
) -> Description:
    """The model's own config and tokenizer. Raises BadInput as `load_policy` does."""
    path, options = _source(config)
    base = adapter_base(config.path)
    with _to_be_had(config):
        described = AutoConfig.from_pretrained(path, **options)
        tokenizer = AutoTokenizer.from_pretrained(
            config.path if base else path, **({} if base else options)
        )
    _check_kind(described, path, kind)
    problem = prove(described, attention, config.trust_remote_code).problem
    if problem is not None:
        raise BadInput(
            f"model.path: {path} is of the family {described.model_type}, which cannot be trained "
            f"on packed trees: {problem}; expected a model whose layers all attend through "
            "transformers' interface, as those of Qwen3, Llama and Mistral do"
        )
    if config.chat_template is not None:
        template = Path(config.chat_template)
        if not template.is_file():
            raise BadInput(f"model.chat_template: there is no file {template}")
        tokenizer.chat_template = template.read_text()
    return Description(described, tokenizer)


@contextmanager
def without_peft_warnings() -> Iterator[None]:
    """Keeps what peft says of its own calls, and of norms that it adapts all the same."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
        warnings.filterwarnings("ignore", message="Unsupported layer type")
        yield


def _source(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """Where transformers finds the base, and which of it."""
    path = _location(adapter_base(config.path) or config.path)
    return path, {"revision": config.revision, "trust_remote_code": config.trust_remote_code}


@contextmanager
def _to_be_had(config: ModelConfig) -> Iterator[None]:
    """Turns what transformers, peft and tokenizers raise into a sentence about `model.path`."""
    try:
        yield
    except Exception as error:  # tokenizers' and safetensors' own have no class in common
        first = " ".join(str(error).strip().split("\n")[:2]).split(". ")[0]
        for folder in {config.path, _source(config)[0]}:
            for path in sorted(Path(folder).glob("*.safetensors")):
                read_tensors(path, f"get {folder} once more, or set model.path to another")
        raise BadInput(
            f"model.path: {config.path} could not be loaded as a model ({first}); expected "
            f"{BODINHO}, a folder with config.json and safetensors weights, a folder that a run "
            "left, or a hub id that can be reached from here"
        ) from None


def _hold_in_one_format(network: nn.Module) -> None:
    """Keeps 4-bit weights on a CPU as they were quantized.

    On processors with AVX512-BF16, bitsandbytes repacks them in the first evaluation, in place and
    with constants rounded to bf16: the base would be another one than it was in training.
    """
    for module in network.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def base_of(model: ModelConfig) -> tuple[ModelConfig, int] | None:
    """The model that `model` was tuned from, and the seed of its weights where they were drawn.

    None where neither an adapter nor the record of a run tells.
    """
    if (path := adapter_base(model.path)) is not None:
        return dataclasses.replace(model, path=path), 0
    folder = Path(model.path).resolve()
    run = read_record(folder.parent)
    if run is None or folder.name not in run.stages:
        return None
    before = run.config["model"]
    same = {key: before[key] for key in ("path", "revision", "init")}
    return dataclasses.replace(model, **same), run.config["seed"]


@contextmanager
def speaking_as(
    policy: Policy, loaded: ModelConfig, other: ModelConfig, load: Callable[[], Policy]
) -> Iterator[Policy]:
    """The policy of `other` while the context lasts; `policy` is that of `loaded`.

    On the same network where that can be: with the adapter switched off where `other` is the base
    that it holds, with other tensors in it where `other` is an adapter of the same kind on the same
    base. Else `load` puts it beside.
    """
    if other == loaded:
        yield policy
    elif policy.holds_base and adapter_base(loaded.path) == other.path:
        with policy.network.disable_adapter():  # type: ignore[operator]
            yield policy
    elif (state := _same_adapter(policy, loaded.path, other)) is not None:
        before = policy.state()
        policy.load_state(state)
        try:
            yield policy
        finally:
            policy.load_state(before)
    else:
        yield load()


def _same_adapter(policy: Policy, loaded: str, other: ModelConfig) -> dict[str, Tensor] | None:
    """The tensors of an adapter that fits the policy's network; None where it does not fit."""
    folders = (Path(loaded), Path(other.path))
    if not all((folder / ADAPTER).is_file() for folder in folders):
        return None
    kinds = [_kind(folder) for folder in folders]
    if kinds[0] != kinds[1] or policy.quantization != quantization_of(other):
        return None
    tensors = load_file(folders[1] / ADAPTER)
    state = {name: tensors.get(name.replace(".default", "")) for name in policy.trainable()}
    known = {name: tensor for name, tensor in state.items() if tensor is not None}
    # More than what trains is in it where a frozen part was drawn, as the projections of VeRA.
    return known if len(known) == len(state) == len(tensors) else None


def _kind(folder: Path) -> dict[str, Any]:
    """What an adapter's folder says of it; peft writes its sets in any order."""
    described = json.loads((folder / ADAPTER_CONFIG).read_text())
    return {k: sorted(v) if isinstance(v, list) else v for k, v in described.items()}


def _bits_and_bytes(quantization: QloraConfig) -> BitsAndBytesConfig:
    assert quantization.compute_dtype != "auto", "resolved by the machine"
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.quant_type,
        bnb_4bit_use_double_quant=quantization.double_quantization,
        bnb_4bit_compute_dtype=DTYPES[quantization.compute_dtype],
    )


def _check_kind(described: Any, path: str, kind: ModelKind | None) -> None:
    """Raises BadInput for an encoder where a decoder is needed, and the other way round."""
    kind_found = kind_of(described)
    if kind is not None and kind_found != kind:
        raise BadInput(f"model.path: {path} is {WRONG_KIND[kind_found]}")
    if kind_found == "encoder" and (described.is_decoder or not described.tie_word_embeddings):
        raise BadInput(
            f"model.path: {path} is a BERT set up as a decoder or with a head of its own, which "
            "the stage mlm does not know; expected is_decoder false and tied embeddings"
        )


def _check_modules(
    network: nn.Module, described: Any, config: ModelConfig, attention: Attention
) -> None:
    """Raises BadInput where the network holds modules that the small one it was proved on lacks."""
    proved = prove(described, attention, config.trust_remote_code).modules
    unproved = sorted(own_modules(network) - proved)
    if unproved:
        raise BadInput(
            f"model.path: {config.path} holds modules that a small network of its config has not "
            f"({', '.join(unproved)}), so that it could not be tried on packed trees; expected a "
            "model whose config names the kind of each layer"
        )
