"""Rules across the fields of a config: what does not go together, and what has no effect."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from drbode.config.blocks import Unread, is_rows_file
from drbode.config.catalogue import METHODS, PROTOCOLS, STAGES, Stage, loss_traits, names
from drbode.config.errors import nearest, one_of, shown
from drbode.config.functions import is_function
from drbode.config.identity import BERTINHO, BODINHO, OWN_REWARD

if TYPE_CHECKING:
    from drbode.config.schema import EvaluateConfig, TrainConfig


# Above these a plan of the steps would take for ever, or no number could hold what comes of it.
LARGEST: dict[str, float] = {
    "steps": 10**7,
    "tokens": 10**11,
    "epochs": 10**4,
    "inner_epochs": 10**4,
    "learning_rate": 10**3,
}


def problems(config: "TrainConfig") -> Iterator[str]:
    """Combinations that are impossible, one sentence each."""
    yield from _stage_list(config)
    yield from _method(config)
    yield from _score(config)
    yield from _loss(config)
    yield from _model_kind(config)
    yield from _benchmark(config)
    yield from _budget(config)
    if "cpt" in config.stages:
        yield from _replay(config)
    for stage in config.stages:
        yield from _block(config, stage)
    yield from pinned_in_vain("model", config.model.path, config.model.revision)
    last = config.stages[-1] if config.stages else None
    if config.objective == "validation_loss" and last and config.stage(last).data.unvalidated:
        yield (
            f"objective: {last}, the last stage, has no validation rows to take a loss of; set "
            f"{last}.data.validation_share above 0"
        )


def unread(config: "TrainConfig") -> Unread:
    """Dotted keys that have no effect beside the rest of the config, each with the reason."""
    keys: Unread = dotted("benchmark", config.benchmark.unread())
    for stage in STAGES:
        keys |= dotted(stage, config.stage(stage).unread())
    if not config.traits.quantizes:
        keys["dpo.quantize_base"] = f"a method other than {one_of(names(METHODS, quantizes=True))}"
    if config.open.prompts == 0:
        keys |= dict.fromkeys(("open.max_new_tokens", "open.scorer"), "open.prompts=0")
    encoder = config.model_kind == "encoder"
    if encoder:
        stage = one_of(config.having(trains="encoder"))
        keys["model.chat_template"] = f"stage {stage}, whose rows are plain text"
        keys["forgetting.text_path"] = f"stage {stage}, for an encoder gives a text no probability"
    if config.forgetting.questions_path is None and (encoder or not config.forgetting.text_path):
        keys["forgetting.split"] = "forgetting.questions_path=null and forgetting.text_path=null"
    return keys


def dotted(block: str, keys: Mapping[str, str]) -> Unread:
    """The keys of a block as they stand in the tree."""
    return {f"{block}.{name}": why for name, why in keys.items()}


def evaluation_problems(config: "EvaluateConfig") -> Iterator[str]:
    """Combinations that are impossible in an evaluation."""
    benchmark, conditions = config.benchmark, config.data.conditions
    yield from benchmark.problems(conditions)
    if conditions != "default" and not benchmark.reads_bodinho():
        yield f"data.conditions: benchmark.path is not bodinho, got {conditions}; leave it out"
    yield from pinned_in_vain("benchmark", benchmark.path, benchmark.revision)
    yield from pinned_in_vain("model", config.model.path, config.model.revision)


def pinned_in_vain(block: str, path: str, revision: str | None) -> Iterator[str]:
    """A complaint where a revision is given of what lies here; an adapter's is that of its base."""
    here = path == BODINHO or is_function(path) or Path(path).exists()
    if revision is not None and here and not (Path(path) / "adapter_config.json").exists():
        yield f"{block}.revision: {path} is no hub id, got {revision}; leave it out"


def _stage_list(config: "TrainConfig") -> Iterator[str]:
    if not config.stages:
        yield f"stages: expected a stage or more of {one_of(STAGES)}, got none"
    for stage in dict.fromkeys(config.stages):
        if config.stages.count(stage) > 1:
            yield f"stages: {stage} stands twice; each stage can run once"


def _method(config: "TrainConfig") -> Iterator[str]:
    if config.traits.quantizes and config.model.quantization == "none":
        yield (
            f"model.quantization: method {config.method} trains on a quantized base, got none; "
            "leave it on auto, or choose method=lora"
        )
    if config.traits.quantizes and config.model.init == "random":
        yield (
            f"model.init: method {config.method} quantizes weights that are there, got random; "
            "leave it on pretrained"
        )
    if "peft" in config.traits.blocks:
        yield from _tuner(config)
    lora = config.lora if "lora" in config.traits.blocks else None
    if lora is None:
        return
    still = config.having(dropout=False)
    if lora.dropout and still == config.stages:
        yield (
            f"lora.dropout: dropout is off in {one_of(still)}, got {lora.dropout}; leave it at 0"
        )
    if not lora.keeps_base and config.refers_to_base():
        yield (
            "dpo.reference: the base is not kept where lora.init_lora_weights is olora or "
            "pissa or lora.bias trains it; set dpo.reference=stage_start"
        )


def _tuner(config: "TrainConfig") -> Iterator[str]:
    """Of peft's tuners; which of them there are, peft itself says once a model is loaded."""
    block, still = config.peft, config.having(dropout=False)
    if block.type is None or not block.type.isidentifier():
        yield (
            "peft.type: expected the name of a type of peft's, such as IA3, VERA or LOHA, got "
            f"{shown(block.type)}; set peft.type=IA3"
        )
    if block.dropout and still == config.stages:
        yield (
            f"peft.options: dropout is off in {one_of(still)}, got {', '.join(block.dropout)}; "
            "leave it out"
        )
    if not block.keeps_base and config.refers_to_base():
        yield (
            "dpo.reference: the base is not kept where an option of peft's takes a start out of "
            "it or trains its biases; set dpo.reference=stage_start"
        )


def _score(config: "TrainConfig") -> Iterator[str]:
    """What stage ppo has its answers scored by."""
    if "ppo" not in config.stages:
        return
    reward = config.ppo.reward
    if reward == OWN_REWARD:
        before = config.stages[: config.stages.index("ppo")]
        if not set(before) & set(config.having(leaves="reward model")):
            yield (
                "ppo.reward: reward is the model of this run's stage reward, which is not among "
                "the stages before ppo; add it, or give a folder that it left or module:function"
            )
    elif not is_function(reward) and not Path(reward).is_dir():
        yield (
            f"ppo.reward: there is no folder {reward}; expected reward, a folder that a stage "
            "reward left, or module:function"
        )


def _loss(config: "TrainConfig") -> Iterator[str]:
    """The options of a loss; a function of the user's says itself which it takes."""
    if "dpo" not in config.stages or is_function(config.dpo.loss):
        return
    known = loss_traits(config.dpo.loss).options
    for name in config.dpo.options or ():
        if name not in known:
            expected = f"expected some of {one_of(known)}" if known else "it has none; leave it out"
            yield (
                f"dpo.options: loss {config.dpo.loss} reads no option {name}"
                f"{nearest(name, known)}; {expected}"
            )


def _model_kind(config: "TrainConfig") -> Iterator[str]:
    """What encoders, and decoders, do not go with."""
    of_encoders = config.having(trains="encoder")
    if not of_encoders:
        if config.model.path == BERTINHO:
            yield (
                f"model.path: {BERTINHO} is an encoder, which {one_of(config.stages)} cannot "
                "train; choose stages=mlm, or a decoder such as model=bodinho"
            )
        return
    stage = one_of(of_encoders)
    if others := config.having(trains="decoder"):
        yield (
            f"stages: {stage} trains an encoder and {one_of(others)} a decoder, which no model is "
            "both; run them apart"
        )
    if config.model.path == BODINHO:
        yield (
            f"model.path: {BODINHO} is a decoder, which has no masked tokens to predict; stage "
            f"{stage} expects an encoder, as model={BERTINHO}"
        )
    if not config.traits.encoders:
        yield (
            f"method: stage {stage} trains by {one_of(names(METHODS, encoders=True))}, got "
            f"{config.method}; choose one of them"
        )
    if not config.benchmark.traits.encoders:
        protocols = one_of(names(PROTOCOLS, encoders=True))
        yield (
            f"benchmark.protocol: an encoder writes no answer, expected {protocols}, got "
            f"{config.benchmark.protocol}; set benchmark={protocols}"
        )
    if config.benchmark.shots:
        yield (
            "benchmark.num_fewshot: an encoder is asked without examples, got "
            f"{config.benchmark.shots}; leave it out"
        )


def _benchmark(config: "TrainConfig") -> Iterator[str]:
    benchmark, conditions = config.benchmark, config.data.conditions
    if not benchmark.traits.of_runs:
        yield (
            "benchmark.protocol: a run scores open answers beside its benchmark (open."
            f"prompts), got {benchmark.protocol}; expected {one_of(names(PROTOCOLS, of_runs=True))}"
        )
    if conditions != "default" and not config.reads_bodinho():
        yield (
            "data.conditions: neither the stages' data nor the benchmark is bodinho, got "
            f"{conditions}; leave it out"
        )
    yield from benchmark.problems(conditions)
    yield from pinned_in_vain("benchmark", benchmark.path, benchmark.revision)


def _budget(config: "TrainConfig") -> Iterator[str]:
    yield from _too_large("budget", config.budget)
    budget = {n: v for n, v in dataclasses.asdict(config.budget).items() if v is not None}
    if len(budget) > 1:
        yield "budget.tokens: budget.steps is set too; a run is held to one of them"
    for name, total in budget.items():
        if total < len(config.stages):
            yield (
                f"budget.{name}: expected one or more for each of {len(config.stages)} stages, "
                f"got {total}"
            )
        if name == "tokens" and (sampling := config.having(samples=True)):
            yield (
                f"budget.tokens: {one_of(sampling)} writes its own tokens, which cannot be counted "
                "beforehand; use budget.steps"
            )
        for stage, block in config.blocks().items():
            for key in ("steps", "tokens"):
                if getattr(block, key) is not None:
                    yield f"{stage}.{key}: budget.{name} says how long stages are; leave it out"


def _too_large(name: str, block: object) -> Iterator[str]:
    """Numbers of a block that no stage can be trained with, infinity and NaN among them."""
    for key, largest in LARGEST.items():
        value = getattr(block, key, None)
        if isinstance(value, int | float) and not value <= largest:
            yield f"{name}.{key}: expected at most {largest:,.0f}, got {shown(value)}; lower it"


def _replay(config: "TrainConfig") -> Iterator[str]:
    replay, general = config.cpt.replay, config.forgetting
    if replay.share == 0:
        return
    yield from pinned_in_vain("cpt.replay", replay.path, replay.revision)
    if general.text_path == replay.path and (
        is_rows_file(replay.path) or general.split == replay.split
    ):
        yield (
            f"cpt.replay.path: {replay.path} is the text that forgetting is measured on "
            "(forgetting.text_path), which must not be trained on; replay another"
        )


def _block(config: "TrainConfig", stage: Stage) -> Iterator[str]:
    """Mistakes in the block of one stage."""
    block = config.stage(stage)
    yield from _too_large(stage, block)
    if block.steps is not None and block.tokens is not None:
        yield f"{stage}.tokens: {stage}.steps is set too; a stage ends by one of them"
    if len(block.betas) != 2:
        yield f"{stage}.betas: expected two numbers, got {block.betas}"
    if block.learning_rate == "auto" and config.auto_rate(stage) is None:
        yield (
            f"{stage}.learning_rate: auto finds no value in model.learning_rates for method "
            f"{config.method}; set {stage}.learning_rate to a number, or choose a stage and method "
            "that the model has one for"
        )
    if block.data.unvalidated and (block.patience or block.keep_best):
        yield (
            f"{stage}.data.validation_share: patience and keep_best need validation rows; set a "
            "share above 0 or validation_path"
        )
    yield from pinned_in_vain(f"{stage}.data", block.data.path, block.data.revision)
