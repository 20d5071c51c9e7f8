"""The network and its tokenizer: found, loaded, and run on packed trees."""

import dataclasses
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from jaxtyping import Float, Int
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call
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
from drbode.models.attention import NAMES, Prefix
from drbode.objectives.logps import token_logps
from drbode.record import read_record
from drbode.trees import Batch

# Families whose attention goes through transformers' interface, and whose rule is plain causal in
# decoders, plain bidirectional in encoders.
FAMILIES: dict[str, ModelKind] = {
    "qwen3": "decoder",
    "llama": "decoder",
    "gpt2": "decoder",
    "bert": "encoder",
}

WRONG_KIND: dict[ModelKind, str] = {  # what is said of a model of the other kind than is needed
    "encoder": "an encoder, which predicts masked tokens and writes none; expected a decoder, or "
    "stages=mlm and the protocol alternatives alone",
    "decoder": "a decoder, which has no masked tokens to predict; stage mlm expects an encoder, as "
    "model=bertinho",
}

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
QUANTIZATION = "quantization.json"  # beside an adapter: how the base it was trained on was held

# Where modules keep a probability: nn.Dropout, and the attention of Llama and Qwen.
DROPOUTS = ("p", "attention_dropout")

T = TypeVar("T")
Attention = Literal["sdpa", "flex"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

logging.disable_progress_bar()  # a bar for a shard of weights tells nobody anything


class Policy(nn.Module):
    """A language model as drbode uses it: hidden states of trees, and their logps.

    A decoder predicts the token after a hidden state, an encoder the one that was masked there.
    `network` is the transformers model, or the peft model around it; which of its tensors train is
    written in their `requires_grad`. `quantization` says how the frozen ones are held.
    """

    def __init__(
        self,
        network: nn.Module,
        tokenizer: Any,
        attention: Attention = "sdpa",
        quantization: QloraConfig | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer
        self.attention = attention
        self.quantization = quantization
        self.model.set_attn_implementation(NAMES[attention])

    @property
    def model(self) -> Any:
        """The transformers model, adapters in place."""
        if isinstance(self.network, PeftModel):
            return self.network.get_base_model()
        return self.network

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def kind(self) -> ModelKind:
        return FAMILIES[self.model.config.model_type]

    @property
    def context(self) -> int:
        """The longest sequence the model has positions for, in tokens."""
        return int(self.model.config.max_position_embeddings)

    @property
    def holds_base(self) -> bool:
        """Whether the network with its adapter switched off is the base it was tuned from.

        It is not where biases were trained, or where the adapter began as a part that was taken
        out of the base's weights (PiSSA, OLoRA, CorDA).
        """
        if not isinstance(self.network, PeftModel):
            return False
        adapter = self.network.peft_config["default"]
        untouched = getattr(adapter, "init_lora_weights", True) in (True, False, "gaussian")
        return untouched and getattr(adapter, "bias", "none") == "none"

    def hidden(
        self,
        batch: Batch,
        prefix: Prefix | None = None,
        segments: Int[Tensor, " tokens"] | None = None,
    ) -> Float[Tensor, "tokens width"]:
        """Hidden states after the last norm, where the head reads them.

        `segments` are an encoder's token types; None: all are 0.
        """
        start = 0 if prefix is None else prefix.get_seq_length()
        types = {} if segments is None else {"token_type_ids": segments[None]}
        output = self.model.base_model(
            input_ids=batch.input_ids[None],
            position_ids=batch.positions[None] + start,
            past_key_values=prefix,
            layout=batch.layout,
            use_cache=False,
            **types,
        )
        states: Tensor = output.last_hidden_state[0]
        return states

    def logps(self, batch: Batch, prefix: Prefix | None = None) -> Float[Tensor, " supervised"]:
        """Log-probability (nats) of each supervised token."""
        hidden = self.hidden(batch, prefix)
        return self.predicted(hidden[batch.sources], batch.targets)

    def predicted(
        self, states: Float[Tensor, "supervised width"], targets: Int[Tensor, " supervised"]
    ) -> Float[Tensor, " supervised"]:
        """Log-probability (nats) that the head gives each target at its hidden state."""
        if self.kind == "encoder":
            states = self.model.cls.predictions.transform(states)
        head = self.model.get_output_embeddings()
        return token_logps(states, head.weight, targets, getattr(head, "bias", None))

    def prefix(self, ids: list[int]) -> Prefix:
        """Tokens that trees are to go on from, run once, without dropout or gradient.

        It holds while the weights stay as they are.
        """
        with self.evaluating(), torch.no_grad():
            output = self.model.base_model(
                input_ids=torch.tensor([ids], device=self.device),
                position_ids=torch.arange(len(ids), device=self.device)[None],
                layout=((len(ids),),),
                use_cache=True,
            )
        return Prefix([layer[:2] for layer in output.past_key_values])

    def forward(self, compute: Callable[[], T]) -> T:
        """What `under` calls, through torch.func."""
        return compute()

    def under(self, state: Mapping[str, Tensor], compute: Callable[[], T]) -> T:
        """Runs `compute`, which uses this policy, with other values of the trainable tensors.

        So one network plays policy, reference and reward model, whatever the method. No gradient
        is kept: recomputation under checkpointing would see the wrong tensors.
        """
        values = {f"network.{name}": tensor for name, tensor in state.items()}
        with torch.no_grad():
            result: T = functional_call(self, values, (compute,))
        return result

    def trainable(self) -> dict[str, nn.Parameter]:
        return {n: p for n, p in self.network.named_parameters() if p.requires_grad}

    def count(self) -> tuple[int, int]:
        """Parameters that train, and all parameters; a tied tensor is counted once.

        A tensor that holds two 4-bit weights in a byte counts for what it stands for.
        """
        parameters = list(self.network.parameters())
        return sum(p.numel() for p in parameters if p.requires_grad), sum(
            p.quant_state.shape.numel() if isinstance(p, Params4bit) else p.numel()
            for p in parameters
        )

    def state(self) -> dict[str, Tensor]:
        """A copy of the trainable tensors, on the CPU."""
        return {n: p.detach().cpu().clone() for n, p in self.trainable().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Takes trainable tensors back in; raises BadInput if they are of another method."""
        parameters = self.trainable()
        if state.keys() != parameters.keys():
            odd = sorted(state.keys() ^ parameters.keys())[0]
            raise BadInput(
                f"the checkpoint does not fit the model and method: {odd} is in one of them only; "
                "use force=true to start over"
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                if state[name].shape != parameter.shape:
                    raise BadInput(
                        f"the checkpoint does not fit: {name} has shape "
                        f"{tuple(state[name].shape)}, expected {tuple(parameter.shape)}; use "
                        "force=true to start over"
                    )
                parameter.copy_(state[name])

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Puts the network into evaluation mode, and back into the mode that it was in."""
        training = self.network.training
        self.network.eval()
        try:
            yield
        finally:
            self.network.train(training)

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Switches every dropout off, in training mode as well."""
        probabilities = {
            (module, name): getattr(module, name)
            for module in self.network.modules()
            for name in DROPOUTS
            if isinstance(getattr(module, name, None), float)
        }
        for module, name in probabilities:
            setattr(module, name, 0.0)
        try:
            yield
        finally:
            for (module, name), probability in probabilities.items():
                setattr(module, name, probability)

    @contextmanager
    def generating(self) -> Iterator[Any]:
        """The transformers model ready for `generate`: under `sdpa`, in evaluation mode.

        The tree functions take no padding mask, which batched generation needs.
        """
        self.model.set_attn_implementation("sdpa")
        try:
            with self.evaluating():
                yield self.network
        finally:
            self.model.set_attn_implementation(NAMES[self.attention])

    def save(self, folder: Path) -> None:
        """Writes the adapter in peft's format, or the weights as safetensors, and the tokenizer."""
        # The name of the tree attention is ours; what is written loads without drbode.
        self.model.set_attn_implementation("sdpa")
        try:
            self.network.save_pretrained(str(folder), safe_serialization=True)  # type: ignore[operator]
        finally:
            self.model.set_attn_implementation(NAMES[self.attention])
        self.tokenizer.save_pretrained(str(folder))
        if self.quantization is not None and isinstance(self.network, PeftModel):
            held = json.dumps(dataclasses.asdict(self.quantization), indent=1)
            (folder / QUANTIZATION).write_text(held + "\n")


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
    to be had, is of a family that the tree attention does not know or not of the `kind` that is
    needed (None: either will do), or is damaged.
    """
    described = describe(config, kind)
    path, options = _source(config)
    encodes = FAMILIES[described.config.model_type] == "encoder"
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
        if adapter_base(config.path):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")  # peft's
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
        return int(self.config.max_position_embeddings)


def describe(config: ModelConfig, kind: ModelKind | None) -> Description:
    """The model's own config and tokenizer. Raises BadInput as `load_policy` does."""
    path, options = _source(config)
    base = adapter_base(config.path)
    with _to_be_had(config):
        described = AutoConfig.from_pretrained(path, **options)
        tokenizer = AutoTokenizer.from_pretrained(
            config.path if base else path, **({} if base else options)
        )
    _check_family(described, path, kind)
    if config.chat_template is not None:
        template = Path(config.chat_template)
        if not template.is_file():
            raise BadInput(f"model.chat_template: there is no file {template}")
        tokenizer.chat_template = template.read_text()
    return Description(described, tokenizer)


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
    policy: Policy, own: ModelConfig, other: ModelConfig, load: Callable[[], Policy]
) -> Iterator[Policy]:
    """The policy of `other` while the context lasts; `policy` is that of `own`.

    On the same network where that can be: with the adapter switched off where `other` is the base
    that it holds, with other tensors in it where `other` is an adapter of the same kind on the same
    base. Else `load` puts it beside.
    """
    if other == own:
        yield policy
    elif policy.holds_base and adapter_base(own.path) == other.path:
        with policy.network.disable_adapter():  # type: ignore[operator]
            yield policy
    elif (state := _same_adapter(policy, own.path, other)) is not None:
        before = policy.state()
        policy.load_state(state)
        try:
            yield policy
        finally:
            policy.load_state(before)
    else:
        yield load()


def _same_adapter(policy: Policy, own: str, other: ModelConfig) -> dict[str, Tensor] | None:
    """The tensors of an adapter that fits the policy's network; None where it does not fit."""
    folders = (Path(own), Path(other.path))
    if not all((folder / ADAPTER).is_file() for folder in folders):
        return None
    kinds = [_kind(folder) for folder in folders]
    if kinds[0] != kinds[1] or policy.quantization != quantization_of(other):
        return None
    tensors = load_file(folders[1] / ADAPTER)
    state = {name: tensors.get(name.replace(".default", "")) for name in policy.trainable()}
    known = {name: tensor for name, tensor in state.items() if tensor is not None}
    return known if len(known) == len(state) else None


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


def _check_family(described: Any, path: str, kind: ModelKind | None) -> None:
    windows = "sliding_attention" in (getattr(described, "layer_types", None) or ())
    if described.model_type not in FAMILIES or windows:
        family = f"{described.model_type}{' with sliding windows' if windows else ''}"
        raise BadInput(
            f"model.path: {path} is of the family {family}, which the tree attention was not "
            f"tried on; expected one of {', '.join(FAMILIES)}"
        )
    found = FAMILIES[described.model_type]
    if kind is not None and found != kind:
        raise BadInput(f"model.path: {path} is {WRONG_KIND[found]}")
    if found == "encoder" and (described.is_decoder or not described.tie_word_embeddings):
        raise BadInput(
            f"model.path: {path} is a BERT set up as a decoder or with a head of its own, which "
            "the stage mlm does not know; expected is_decoder false and tied embeddings"
        )
