"""Method `peft`: any tuner that peft registers, by its type and the options of its config class."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import peft
from peft.config import PromptLearningConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from drbode.config import BadInput, Tuning, nearest, one_of
from drbode.models.methods import bare_modules, linear_layers, routers, task, transposed, unreached

# Types that are registered and cannot be trained here, each with the reason.
UNFIT: Mapping[str, str] = {
    "ADALORA": "hands its ranks out after each step, which no stage has it do",
    "ADAPTION_PROMPT": "puts a prompt into the attention, for which packed trees have no place",
    "BITFIT": "is method=bitfit",
    "BOTTLENECK": "is method=adapter",
    "POLY": "has to be told a task with each row, which rows here do not name",
    "PVERA": "draws its adapter anew in every pass, so that policy and reference differ by chance",
    "SHADOW": "runs a second network beside the model, which packed trees do not pass through",
    "TINYLORA": "shares tensors between layers as no reference can be run beside it",
    "TRAINABLE_TOKENS": "trains rows of the embeddings, which are the head too in tied models",
    "UNILORA": "shares tensors between layers as no reference can be run beside it",
    "XLORA": "mixes adapters that are there already, of which a run has one",
}
PROMPTS = "puts tokens before the sequence, for which packed trees have no place"

# Where peft's own default begins beside the base, what begins at it.
STARTS: Mapping[str, Mapping[str, Any]] = {
    "C3A": {"init_weights": True},
    "FOURIERFT": {"init_weights": True},
}
OF_PEFT = {field.name for field in dataclasses.fields(peft.PeftConfig)}  # which no user sets
NAMES = ("target_modules", "exclude_modules", "feedforward_modules", "modules_to_save")

# A layer's MLP: what lies in a numbered layer and not in its attention.
IN_MLP = re.compile(r"\.\d+\.(?!.*att)")


def types() -> list[str]:
    """The types that can be trained here, as peft knows them."""
    return sorted(
        kind.value
        for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
        if kind.value not in UNFIT and not issubclass(config, PromptLearningConfig)
    )


def tuner(model: Any, tuning: Tuning) -> peft.PeftConfig:
    """The peft config of `peft.type` with `peft.options`.

    What the options leave open is peft's default, but that every linear layer is a target (of
    LN_TUNING every norm) without head and embeddings, and that the logits begin as the model's.
    Raises BadInput for a type or an option that is not to be had, or a layer that the model lacks.
    """
    assert tuning.peft is not None, "method peft reads the block"
    assert tuning.peft.type is not None, "one of the rules"
    kind, options = tuning.peft.type, dict(tuning.peft.options or {})
    config_class = _config_class(kind)
    known = {field.name for field in dataclasses.fields(config_class) if field.init} - OF_PEFT
    for name in options:
        if name not in known:
            raise BadInput(
                f"peft.options: {kind} has no option {name}{nearest(name, known)}; expected some "
                f"of {', '.join(sorted(known))}"
            )
    if str(options.get("init_lora_weights", "")).startswith("pissa_niter"):
        raise BadInput(
            f"peft.options.init_lora_weights: {options['init_lora_weights']} draws at random what "
            "it takes out of the base, so a saved adapter is another model when it is loaded; set "
            "it to pissa"
        )
    idle = [*unreached(model, tuning), *routers(model)]
    targets = default_targets(model, kind, idle)
    values = {
        **STARTS.get(kind, {}),
        "target_modules": targets,
        # GPT-2's layers keep their weights transposed; peft warns where this is not said.
        "fan_in_fan_out": transposed(model),
        **options,
    }
    if values["target_modules"] == "all-linear":
        values["target_modules"] = targets
    _check_names(model, options, targets)
    values.setdefault("feedforward_modules", _feedforward(model, values["target_modules"]))
    excluded = values.get("exclude_modules")
    if not isinstance(excluded, str):  # which is a pattern of the user's
        values["exclude_modules"] = [*(excluded or []), *idle] or None
    try:
        return config_class(
            task_type=task(model), **{n: v for n, v in values.items() if n in known}
        )
    except (ValueError, TypeError) as error:
        raise BadInput(f"peft.options: {kind} does not take them ({error}); change them") from None


def _config_class(kind: str) -> type[peft.PeftConfig]:
    """The config class of a type. Raises BadInput for one that cannot be trained here."""
    classes: dict[str, type[peft.PeftConfig]] = {
        member.value: c for member, c in PEFT_TYPE_TO_CONFIG_MAPPING.items()
    }
    if kind in types():
        return classes[kind]
    if kind not in classes:
        said = f"peft has no type {kind}{nearest(kind.upper(), types())}"
    else:
        said = f"{kind} {UNFIT.get(kind, PROMPTS)}"
    raise BadInput(f"peft.type: {said}; expected {one_of(types())}")


def default_targets(model: Any, kind: str, idle: list[str]) -> list[str]:
    """Names of every linear layer but head and embeddings; of LN_TUNING those of every norm.

    Layers are named in full where one name stands for those of an MLP and others, which IA3 tells
    apart, or for one that is `idle`, which not every tuner can be told to leave out.
    """
    if kind == "LN_TUNING":
        weights = ((n, getattr(m, "weight", None)) for n, m in bare_modules(model))
        return sorted({n.split(".")[-1] for n, w in weights if w is not None and w.ndim == 1})
    layers = linear_layers(model)
    targets: list[str] = []
    for name in {layer.split(".")[-1] for layer in layers}:
        alike = _matching(name, layers)
        one_kind = len({bool(IN_MLP.search(layer)) for layer in alike}) == 1
        reached = [layer for layer in alike if layer not in idle]
        targets += [name] if one_kind and reached == alike else reached
    return sorted(targets)


def _feedforward(model: Any, targets: str | list[str]) -> list[str]:
    """Those of the targets that are layers of an MLP: IA3 scales what goes into them."""
    layers = linear_layers(model)
    if isinstance(targets, str):  # a pattern
        return [layer for layer in layers if IN_MLP.search(layer)]
    matches = {target: _matching(target, layers) for target in targets}
    return [t for t, named in matches.items() if named and all(map(IN_MLP.search, named))]


def _matching(name: str, layers: Iterable[str]) -> list[str]:
    """The layers that a name stands for, as peft reads it: in full, or the end of one."""
    return [layer for layer in layers if layer == name or layer.endswith(f".{name}")]


def _check_names(model: Any, options: Mapping[str, Any], targets: list[str]) -> None:
    """Raises BadInput for a layer that is named and not there, which peft would leave out."""
    modules = [name for name, _ in bare_modules(model)]
    ends = {name.split(".")[-1] for name in modules}
    for option in NAMES:
        value = options.get(option)
        for name in value if isinstance(value, list) else []:
            if not _matching(str(name), modules):
                raise BadInput(
                    f"peft.options: {option} names {name}, which the model has not"
                    f"{nearest(str(name), ends)}; expected names such as "
                    f"{', '.join(targets)}"
                )
