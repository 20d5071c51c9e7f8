"""A language model as drbode uses it: a transformers network that is run on packed trees."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from bitsandbytes.nn import Params4bit
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn
from torch.func import functional_call
from transformers import DynamicCache
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from drbode.config import BadInput, ModelKind, QloraConfig
from drbode.models.attention import NAMES, Prefix
from drbode.objectives.logps import token_logps
from drbode.trees import Batch

QUANTIZATION = "quantization.json"  # beside an adapter: how the base it was trained on was held

# Where modules keep a probability: nn.Dropout, the attention of Llama and Qwen, and, for each
# adapter's name, some of peft's tuners.
DROPOUTS = ("p", "attention_dropout", "rank_dropout", "module_dropout")

T = TypeVar("T")
Attention = Literal["sdpa", "flex"]


def kind_of(config: Any) -> ModelKind:
    """Whether a model of this config is an encoder: transformers has it predict masked tokens."""
    masks = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return "encoder" if masks else "decoder"


def context_of(config: Any) -> int:
    """The longest sequence a model of this config has positions for, in tokens.

    Where longer ones turn every position otherwise (LongRoPE, dynamic NTK), as far as none do:
    packed trees of several lengths would be turned as the longest of them.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    longest = int(config.max_position_embeddings)
    if rope.get("rope_type") in ("longrope", "dynamic"):
        return int(rope.get("original_max_position_embeddings") or longest)
    return longest


def head_transform(config: Any) -> tuple[float, float | None]:
    """What the family multiplies its logits by after the head, and the soft cap it puts on them."""
    divided = getattr(config, "logits_scaling", None) or 1.0  # Granite
    multiplied = getattr(config, "logit_scale", None)  # Cohere
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma
    return (1.0 if multiplied is None else multiplied) / divided, cap


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
        # What transformers itself runs: in eager mode where it has no faster way (soft cap, sinks).
        self.plain = "sdpa" if self.model._supports_sdpa else "eager"
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
        return kind_of(self.model.config)

    @property
    def context(self) -> int:
        """The longest sequence the model has positions for, in tokens."""
        return context_of(self.model.config)

    @property
    def windowed(self) -> bool:
        """Whether some layer sees the last tokens only."""
        return getattr(self.model.config, "sliding_window", None) is not None

    @property
    def holds_base(self) -> bool:
        """Whether the network with its adapter switched off is the base it was tuned from.

        It is not where biases were trained, or where the adapter began as a part that was taken
        out of the base's weights (PiSSA, OLoRA, CorDA).
        """
        if not isinstance(self.network, PeftModel):
            return False
        adapter = self.network.peft_config["default"]
        starts = {
            field.name: field.default
            for field in dataclasses.fields(adapter)
            if field.name.startswith("init_")
        }
        untouched = all(
            getattr(adapter, name) in (True, False, "gaussian", default)
            for name, default in starts.items()
        )
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
        bias = getattr(head, "bias", None)
        scale, cap = head_transform(self.model.config)
        return token_logps(states, head.weight, targets, bias, scale=scale, cap=cap)

    def prefix(self, ids: list[int]) -> Prefix:
        """Tokens that trees are to go on from, run once, without dropout or gradient.

        It holds while the weights stay as they are.
        """
        with self.evaluating(), torch.no_grad():
            output = self.model.base_model(
                input_ids=torch.tensor([ids], device=self.device),
                position_ids=torch.arange(len(ids), device=self.device)[None],
                layout=((len(ids),),),
                # One that keeps every key, also where the model has windows: which of them a token
                # sees is the tree attention's to say.
                past_key_values=DynamicCache(),
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
            (module, name): value
            for module in self.network.modules()
            for name in DROPOUTS
            if isinstance(value := getattr(module, name, None), float | dict)
        }
        for (module, name), value in probabilities.items():
            setattr(module, name, dict.fromkeys(value, 0.0) if isinstance(value, dict) else 0.0)
        try:
            yield
        finally:
            for (module, name), probability in probabilities.items():
                setattr(module, name, probability)

    @contextmanager
    def generating(self) -> Iterator[Any]:
        """The transformers model ready for `generate`: its attention plain, in evaluation mode.

        The tree functions take no padding mask, which batched generation needs.
        """
        self.model.set_attn_implementation(self.plain)
        try:
            with self.evaluating():
                yield self.network
        finally:
            self.model.set_attn_implementation(NAMES[self.attention])

    def save(self, folder: Path) -> None:
        """Writes the adapter in peft's format, or the weights as safetensors, and the tokenizer."""
        # The name of the tree attention is ours; what is written loads without drbode.
        self.model.set_attn_implementation(self.plain)
        try:
            self.network.save_pretrained(str(folder), safe_serialization=True)  # type: ignore[operator]
        finally:
            self.model.set_attn_implementation(NAMES[self.attention])
        self.tokenizer.save_pretrained(str(folder))
        if self.quantization is not None and isinstance(self.network, PeftModel):
            held = json.dumps(dataclasses.asdict(self.quantization), indent=1)
            (folder / QUANTIZATION).write_text(held + "\n")
