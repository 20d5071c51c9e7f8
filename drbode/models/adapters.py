"""Two methods that peft has not, registered with it: bottleneck adapters, and biases with norms.

Registered, peft saves, loads, disables and unloads them as it does its own. A folder they are
saved in loads in plain peft after `import drbode.models.adapters`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils import register_peft_method
from torch import Tensor, nn
from torch.func import functional_call
from transformers.activations import ACT2FN


class _Layer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A layer of the base with one trained addition for each adapter's name."""

    base_layer: nn.Module
    # What is used of peft's class, which has no types.
    disable_adapters: bool
    merged: bool
    active_adapters: list[str]
    get_base_layer: Callable[[], Any]
    set_adapter: Callable[..., None]

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.merged_adapters: list[str] = []

    def trained(self) -> str | None:
        """The name of the adapter whose addition counts now, None where the base speaks alone."""
        if self.disable_adapters or self.merged:
            return None
        return next(iter(self.active_adapters), None)


class _Tuner(BaseTuner):  # type: ignore[misc]
    """Puts a layer of `tuner_layer_cls` around each target module."""

    # Said by name in every config that is made here; other models have to say them as well.
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer: Any = target
        if not isinstance(target, self.tuner_layer_cls):
            layer = self.tuner_layer_cls(target)
            self._replace_module(parent, target_name, layer, target)
        layer.add(adapter_name, peft_config)


# --- bottleneck adapters ------------------------------------------------------------------------


@dataclass
class BottleneckConfig(PeftConfig):  # type: ignore[misc]
    """What peft writes beside the weights of a bottleneck adapter."""

    target_modules: list[str] | None = field(default=None)
    exclude_modules: list[str] | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)  # a head, where there is one
    bottleneck: int = field(default=64)
    activation: str = field(default="gelu")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["BOTTLENECK"]


class BottleneckLayer(_Layer):
    """A linear layer, and after it h + W_up f(W_down h + b_down) + b_up.

    Houlsby et al. 2019, section 2.1. W_up and b_up are zero at the start, so that the logits are
    the base's. Not linear, so it cannot be merged.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    bottleneck_down: nn.ModuleDict
    bottleneck_up: nn.ModuleDict

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.activations: dict[str, Any] = {}

    def add(self, name: str, config: BottleneckConfig) -> None:
        base = self.get_base_layer()
        # transformers' Conv1D, which GPT-2 is made of, keeps its width in `nf`.
        width = base.out_features if isinstance(base, nn.Linear) else int(base.nf)
        self.bottleneck_down[name] = nn.Linear(width, config.bottleneck)
        self.bottleneck_up[name] = up = nn.Linear(config.bottleneck, width)
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
        self.activations[name] = ACT2FN[config.activation]
        self.to(base.weight.device)
        self.set_adapter(name, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        h: Tensor = self.base_layer(x, *args, **kwargs)
        name = self.trained()
        if name is None:
            return h
        down: Any = self.bottleneck_down[name]
        up = self.bottleneck_up[name]
        added: Tensor = up(self.activations[name](down(h.to(down.weight.dtype))))
        return h + added.to(h.dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise ValueError("a bottleneck adapter is not linear and cannot be merged into its base")


class BottleneckModel(_Tuner):
    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer


# --- biases and norms ---------------------------------------------------------------------------


@dataclass
class BitfitConfig(PeftConfig):  # type: ignore[misc]
    """What peft writes beside the biases and norms of BitFit."""

    target_modules: list[str] | None = field(default=None)
    exclude_modules: list[str] | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)  # a head, where there is one

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["BITFIT"]


class BitfitLayer(_Layer):
    """A layer whose vectors (bias, weight of a norm) are trained copies of the base's.

    Ben Zaken et al. 2022 train the biases; the weights of norms are trained with them, for many
    models have no bias. The copies are equal to the base's at the start.
    """

    adapter_layer_names = ("bitfit_vectors",)
    bitfit_vectors: nn.ModuleDict

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.bitfit_vectors = nn.ModuleDict()

    def add(self, name: str, config: BitfitConfig) -> None:
        self.bitfit_vectors[name] = nn.ParameterDict(
            {key: p.detach().clone() for key, p in vectors(self.get_base_layer())}
        )
        self.set_adapter(name, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the base layer gives: a tensor, or several, as the routers of experts do."""
        name = self.trained()
        trained: Any = {} if name is None else self.bitfit_vectors[name]
        return functional_call(self.base_layer, dict(trained.items()), (x, *args), kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Swaps the base's vectors for the trained ones."""
        for name in check_adapters_to_merge(self, adapter_names):
            self._swap(name)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        while self.merged_adapters:
            self._swap(self.merged_adapters.pop())

    def _swap(self, name: str) -> None:
        trained: Any = self.bitfit_vectors[name]
        for key, vector in vectors(self.get_base_layer()):
            vector.data, trained[key].data = trained[key].data, vector.data


class BitfitModel(_Tuner):
    prefix = "bitfit_"
    tuner_layer_cls = BitfitLayer


def vectors(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """A module's one-dimensional parameters, not those in it: biases, and the weights of norms."""
    return ((n, p) for n, p in module.named_parameters(recurse=False) if p.ndim == 1)


# --- registration -------------------------------------------------------------------------------


def _register(name: str, config: type[PeftConfig], model: type[BaseTuner]) -> None:
    """peft looks a method up by a member of its enumeration, which has to be added first."""
    member = str.__new__(PeftType, name.upper())
    member._name_ = member._value_ = name.upper()
    setattr(PeftType, member._name_, member)
    PeftType._member_names_.append(member._name_)
    PeftType._member_map_[member._name_] = member
    PeftType._value2member_map_[member._value_] = member
    register_peft_method(name=name, config_cls=config, model_cls=model)


_register("bottleneck", BottleneckConfig, BottleneckModel)
_register("bitfit", BitfitConfig, BitfitModel)
