"""The typed config tree, and the door through which it comes in.

Hydra composes plain YAML from `conf/`; `build` turns the result into the dataclasses below, once,
and reports every mistake in it by its dotted key. Past the door there is no `DictConfig`. This
module imports no torch, so a mistake is answered before anything heavy is loaded.
"""

import contextlib
import dataclasses
import difflib
import errno
import hashlib
import json
import os
import re
import signal
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar

if TYPE_CHECKING:
    from omegaconf import DictConfig

Auto = Literal["auto"]
Kind = Literal["decoder", "encoder"]  # of a model: predicts the next token, or masked ones


class BadInput(Exception):  # noqa: N818 -- it is what the user gave, and is caught as such
    """A mistake in what the user gave, as one sentence that says what to do about it."""


# Of the system: no space (also of a quota, or past a limit on a file's size), and no permission.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def unwritable(error: BaseException, path: Path | None = None) -> BadInput | None:
    """What to tell of an error, if it means that a file cannot be written; else None.

    `path` is what was being written, where the error does not say so itself. Some libraries hand
    the system's error on as the context of their own, or as text alone with its number in it.
    """
    if isinstance(error, BadInput):  # told already
        return None
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(found.group(1))
    if number not in FULL | FORBIDDEN:
        return unwritable(error.__context__, path) if error.__context__ else None
    name = path or getattr(error, "filename", None) or "a file of this run"
    remedy = "free some space" if number in FULL else "give permission to write there"
    return BadInput(
        f"{name}: cannot be written ({os.strerror(number)}); {remedy} or choose another folder, "
        "and the same command goes on from what is whole"
    )


@dataclass(frozen=True)
class Range:
    """Limits of a number: `low` and `high` are themselves allowed unless `open_low` is set."""

    low: float | None = None
    high: float | None = None
    open_low: bool = False

    def holds(self, value: float) -> bool:
        if self.low is not None and (value <= self.low if self.open_low else value < self.low):
            return False
        return self.high is None or value <= self.high

    def __str__(self) -> str:
        parts = []
        if self.low is not None:
            parts.append(f"above {self.low:g}" if self.open_low else f"at least {self.low:g}")
        if self.high is not None:
            parts.append(f"at most {self.high:g}")
        return " and ".join(parts)


Count = Annotated[int, Range(1)]
CountOrZero = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, open_low=True)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]


@dataclass(frozen=True)
class ModelConfig:
    path: str
    revision: str | None
    init: Literal["pretrained", "random"]
    dtype: Auto | Literal["fp32", "bf16"]
    attention: Auto | Literal["sdpa", "flex"]
    quantization: Auto | Literal["none"]
    chat_template: str | None
    trust_remote_code: bool
    learning_rates: dict[str, dict[str, Positive]]


@dataclass(frozen=True)
class DataConfig:
    path: str
    revision: str | None
    split: str
    rows: Count | None
    validation_path: str | None
    validation_share: Annotated[float, Range(0, 0.5)]
    validation_rows: Count | None
    column: str

    def unread(self) -> set[str]:
        """Names of its keys that the source of the rows leaves without effect."""
        keys = set()
        if _is_rows_file(self.path) and _is_rows_file(self.validation_path or self.path):
            keys.add("split")
        if _is_text_file(self.path) and _is_text_file(self.validation_path or self.path):
            keys.add("column")
        if self.validation_path is not None or (self.path == BODINHO and self.split == "train"):
            keys.add("validation_share")
        elif self.validation_share == 0:
            keys.add("validation_rows")
        return keys


Optimizer = Literal["adamw", "paged_adamw_32bit", "paged_adamw_8bit"]


@dataclass(frozen=True)
class StageConfig:
    """What every stage that trains on rows has in common."""

    learning_rate: Auto | Positive
    optimizer: Auto | Optimizer
    schedule: Literal["constant", "linear", "cosine"]
    warmup_ratio: Share
    weight_decay: NotNegative
    betas: list[Annotated[float, Range(0, 0.9999999)]]
    max_grad_norm: Positive | None
    epochs: Positive
    steps: Count | None
    tokens: Count | None
    global_batch_size: Count
    max_tokens: Count
    max_length: Auto | Annotated[int, Range(2)]
    validate_every: Count | None
    patience: Count | None
    keep_best: bool
    checkpoint_every: Count
    checkpoints: CountOrZero
    data: DataConfig


@dataclass(frozen=True)
class ReplayConfig:
    """General text that is mixed into a stage's own, so that less is forgotten."""

    share: Annotated[float, Range(0, 0.9)]
    path: str
    revision: str | None
    split: str
    column: str

    def unread(self) -> set[str]:
        """Names of its keys that are without effect."""
        if self.share == 0:
            return {"path", "revision", "split", "column"}
        keys = {"split"} if _is_rows_file(self.path) else set()
        return keys | ({"column"} if _is_text_file(self.path) else set())


@dataclass(frozen=True)
class CptConfig(StageConfig):
    stride: CountOrZero
    near_duplicates: Annotated[float, Range(0, 1, open_low=True)] | None
    replay: ReplayConfig


@dataclass(frozen=True)
class MlmConfig(StageConfig):
    mask_probability: Annotated[float, Range(0, 1, open_low=True)]
    whole_words: bool
    nsp: bool
    pseudo_perplexity_rows: CountOrZero


@dataclass(frozen=True)
class SftConfig(StageConfig):
    format: Literal["chat", "chapter"]
    curation: Literal["limo", "random", "diverse"] | None
    curation_n: Count


@dataclass(frozen=True)
class DpoConfig(StageConfig):
    loss: Literal["sigmoid", "ipo", "hinge", "reference_free"]
    beta: Positive
    label_smoothing: Annotated[float, Range(0, 0.49)]
    nll_weight: NotNegative
    reference: Literal["stage_start", "base"]
    quantize_base: bool
    kl_prompts: CountOrZero


@dataclass(frozen=True)
class RewardConfig(StageConfig):
    centering: NotNegative


@dataclass(frozen=True)
class PpoConfig(StageConfig):
    reward: str
    beta: NotNegative
    target_kl: Positive | None
    horizon: Count
    gamma: Share
    lam: Share
    clip_range: Positive
    value_clip_range: Positive
    value_weight: NotNegative
    rollouts: Count
    inner_epochs: Count
    max_new_tokens: Count
    temperature: Positive
    missing_end_penalty: NotNegative
    gold_patience: Count | None


@dataclass(frozen=True)
class LoraConfig:
    r: Count
    alpha: Auto | Positive
    dropout: Annotated[float, Range(0, 0.9999999)]
    target_modules: str | list[str]
    exclude_modules: list[str] | None
    layers_to_transform: list[CountOrZero] | None
    rank_pattern: dict[str, Count] | None
    alpha_pattern: dict[str, Positive] | None
    bias: Literal["none", "all", "lora_only"]
    lora_bias: bool
    use_rslora: bool
    use_dora: bool
    init_lora_weights: Literal["default", "gaussian", "orthogonal", "olora", "pissa"]


@dataclass(frozen=True)
class QloraConfig:
    quant_type: Literal["nf4", "fp4"]
    double_quantization: bool
    compute_dtype: Auto | Literal["fp32", "bf16"]


@dataclass(frozen=True)
class AdapterConfig:
    bottleneck: Count
    placement: Literal["houlsby", "pfeiffer"]
    activation: Literal["gelu", "relu", "silu", "tanh"]


MultipleChoice = Literal["alternatives", "letter", "generate", "chapter"]
Protocol = Literal[MultipleChoice, "open"]


@dataclass(frozen=True)
class LaboratoryConfig:
    conditions: Literal["default", "all"]


@dataclass(frozen=True)
class BenchmarkConfig:
    protocol: Protocol
    path: str
    revision: str | None
    split: str
    questions: Count | None
    max_tokens: Count
    max_new_tokens: Count
    against: str | list[str]
    reward: str | None
    num_fewshot: CountOrZero
    fewshot_path: str
    fewshot_choice: Literal["fixed", "random", "similar"]
    fewshot_seed: CountOrZero
    fewshot_overflow: Literal["refuse", "drop"]

    @property
    def rivals(self) -> list[str] | None:
        """Models to hold the model's open answers against; None: the one it was tuned from."""
        if self.against == "auto":
            return None
        return [self.against] if isinstance(self.against, str) else self.against

    @property
    def shots(self) -> int:
        """Examples before each question; open prompts are asked without any."""
        return 0 if self.protocol == "open" else self.num_fewshot

    def unread(self) -> set[str]:
        """Dotted keys that the protocol and the source do not read."""
        keys = {"benchmark.split"} if _is_rows_file(self.path) else set()
        if self.protocol not in ("generate", "open"):
            keys.add("benchmark.max_new_tokens")
        if self.protocol != "open":
            keys |= {"benchmark.against", "benchmark.reward"}
        else:
            keys.add("benchmark.num_fewshot")
        if self.shots == 0:
            keys |= FEWSHOT
        elif self.fewshot_choice == "similar":
            keys.add("benchmark.fewshot_seed")
        return keys

    def reads_bodinho(self) -> bool:
        """Whether any of its rows are those of the shipped laboratory."""
        return self.path == BODINHO or (self.shots > 0 and self.fewshot_path == BODINHO)

    def problems(self, conditions: str) -> list[str]:
        """What cannot be had beside `data.conditions`."""
        if self.shots and self.fewshot_path == BODINHO and conditions == "all":
            return [
                "benchmark.fewshot_path: bodinho's examples are on the conditions that "
                "data.conditions leaves out, got all; give a file, or leave data.conditions out"
            ]
        return []


@dataclass(frozen=True)
class OpenConfig:
    """Open answers that a run with a preference stage asks for before and after its stages."""

    prompts: CountOrZero
    max_new_tokens: Count


@dataclass(frozen=True)
class ForgettingConfig:
    """General questions and text, on which a run measures what its base knew and forgets."""

    questions_path: str | None
    text_path: str | None
    split: str


@dataclass(frozen=True)
class ContaminationConfig:
    """What becomes of training rows in which a question of the benchmark stands."""

    action: Literal["stop", "drop", "keep"]


@dataclass(frozen=True)
class BudgetConfig:
    """What the stages of a run may take together, so that variants compare at equal cost."""

    tokens: Count | None
    steps: Count | None


@dataclass(frozen=True)
class TrainerConfig:
    accelerator: Auto | Literal["cpu", "cuda"]
    precision: Auto | Literal["32-true", "bf16-mixed"]
    threads: Auto | Count
    gradient_checkpointing: bool
    progress: bool


@dataclass(frozen=True)
class WandbConfig:
    mode: Literal["offline", "online", "disabled"]
    project: str
    group: str | None


Objective = Literal["accuracy", "validation_loss"]
Stage = Literal["cpt", "mlm", "sft", "dpo", "reward", "ppo"]
Method = Literal["full", "lora", "qlora", "adapter", "bitfit"]

STAGES: tuple[Stage, ...] = typing.get_args(Stage)
# The blocks of the tree that a method reads; a stage reads the block of its own name.
METHOD_BLOCKS: dict[Method, tuple[str, ...]] = {
    "full": (),
    "lora": ("lora",),
    "qlora": ("lora", "qlora"),
    "adapter": ("adapter",),
    "bitfit": (),
}


@dataclass(frozen=True)
class TrainConfig:
    """`conf/train.yaml` as composed: what one run is asked for."""

    stages: list[Stage]
    seed: CountOrZero
    budget: BudgetConfig
    output_dir: str
    force: bool
    reuse_stages: bool
    objective: Objective | None
    method: Method
    model: ModelConfig
    lora: LoraConfig
    qlora: QloraConfig
    adapter: AdapterConfig
    cpt: CptConfig
    sft: SftConfig
    dpo: DpoConfig
    reward: RewardConfig
    ppo: PpoConfig
    mlm: MlmConfig
    data: LaboratoryConfig
    benchmark: BenchmarkConfig
    open: OpenConfig
    forgetting: ForgettingConfig
    contamination: ContaminationConfig
    trainer: TrainerConfig
    wandb: WandbConfig

    def __post_init__(self) -> None:
        problems = []
        if not self.stages:
            problems.append(f"stages: expected a stage or more of {_one_of(STAGES)}, got none")
        problems += [
            f"stages: {stage} stands twice; each stage can run once"
            for stage in dict.fromkeys(self.stages)
            if self.stages.count(stage) > 1
        ]
        if self.method == "qlora" and self.model.quantization == "none":
            problems.append(
                "model.quantization: method qlora trains on a quantized base, got none; leave it "
                "on auto, or choose method=lora"
            )
        if self.method == "qlora" and self.model.init == "random":
            problems.append(
                "model.init: method qlora quantizes weights that are there, got random; leave it "
                "on pretrained"
            )
        preferences = [s for s in self.stages if s in ("dpo", "reward", "ppo")]
        lora = self.lora if "lora" in METHOD_BLOCKS[self.method] else None
        if lora and lora.dropout and preferences == self.stages:
            problems.append(
                f"lora.dropout: dropout is off in {_one_of(preferences)}, got {lora.dropout}; "
                "leave it at 0"
            )
        changed = lora and (lora.init_lora_weights in ("olora", "pissa") or lora.bias != "none")
        if changed and self.refers_to_base():
            problems.append(
                "dpo.reference: the base is not kept where lora.init_lora_weights is olora or "
                "pissa or lora.bias trains it; set dpo.reference=stage_start"
            )
        named = self.ppo.reward != "reward" and ":" not in self.ppo.reward
        if "ppo" in self.stages and named and not Path(self.ppo.reward).is_dir():
            problems.append(
                f"ppo.reward: there is no folder {self.ppo.reward}; expected reward, a folder that "
                "a stage reward left, or module:function"
            )
        if "ppo" in self.stages and self.ppo.reward == "reward":
            before = self.stages[: self.stages.index("ppo")]
            if "reward" not in before:
                problems.append(
                    "ppo.reward: reward is the model of this run's stage reward, which is not "
                    "among the stages before ppo; add it, or give a folder that it left or "
                    "module:function"
                )
        if self.benchmark.protocol == "open":
            problems.append(
                "benchmark.protocol: a run scores open answers beside its multiple choice (open."
                f"prompts), got open; expected {_one_of(typing.get_args(MultipleChoice))}"
            )
        if "mlm" in self.stages:
            problems += self._encoder_problems()
        elif self.model.path == BERTINHO:
            problems.append(
                f"model.path: {BERTINHO} is an encoder, which {_one_of(self.stages)} cannot train; "
                "choose stages=mlm, or a decoder such as model=bodinho"
            )
        if self.data.conditions != "default" and not self.reads_bodinho():
            problems.append(
                "data.conditions: neither the stages' data nor the benchmark is bodinho, got "
                f"{self.data.conditions}; leave it out"
            )
        problems += self._budget_problems()
        if "cpt" in self.stages:
            problems += self._replay_problems()
        problems += self.benchmark.problems(self.data.conditions)
        for stage in self.stages:
            block = self.stage(stage)
            if block.steps is not None and block.tokens is not None:
                problems.append(
                    f"{stage}.tokens: {stage}.steps is set too; a stage ends by one of them"
                )
            if len(block.betas) != 2:
                problems.append(f"{stage}.betas: expected two numbers, got {block.betas}")
            if block.learning_rate == "auto" and self._auto_rate(stage) is None:
                problems.append(
                    f"{stage}.learning_rate: auto finds no value in model.learning_rates for "
                    f"method {self.method}; set {stage}.learning_rate to a number, or choose a "
                    "stage and method that the model has one for"
                )
            if self._unvalidated(stage) and (block.patience or block.keep_best):
                problems.append(
                    f"{stage}.data.validation_share: patience and keep_best need validation "
                    "rows; set a share above 0 or validation_path"
                )
            problems += _pinned_in_vain(f"{stage}.data", block.data.path, block.data.revision)
        problems += _pinned_in_vain("benchmark", self.benchmark.path, self.benchmark.revision)
        problems += _pinned_in_vain("model", self.model.path, self.model.revision)
        last = self.stages[-1] if self.stages else None
        if self.objective == "validation_loss" and last and self._unvalidated(last):
            problems.append(
                f"objective: {last}, the last stage, has no validation rows to take a loss of; set "
                f"{last}.data.validation_share above 0"
            )
        if problems:
            raise BadInput(_sentence(problems))

    def _budget_problems(self) -> Iterator[str]:
        budget = {n: v for n, v in dataclasses.asdict(self.budget).items() if v is not None}
        if len(budget) > 1:
            yield "budget.tokens: budget.steps is set too; a run is held to one of them"
        for name, total in budget.items():
            if total < len(self.stages):
                yield (
                    f"budget.{name}: expected one or more for each of {len(self.stages)} stages, "
                    f"got {total}"
                )
            if name == "tokens" and "ppo" in self.stages:
                yield (
                    "budget.tokens: ppo writes its own tokens, which cannot be counted beforehand; "
                    "use budget.steps"
                )
            for stage in self.stages:
                for own in ("steps", "tokens"):
                    if getattr(self.stage(stage), own) is not None:
                        yield f"{stage}.{own}: budget.{name} says how long stages are; leave it out"

    def _replay_problems(self) -> list[str]:
        replay, general = self.cpt.replay, self.forgetting
        measured = general.text_path == replay.path and (
            _is_rows_file(replay.path) or general.split == replay.split
        )
        if replay.share == 0:
            return []
        problems = _pinned_in_vain("cpt.replay", replay.path, replay.revision)
        if measured:
            problems.append(
                f"cpt.replay.path: {replay.path} is the text that forgetting is measured on "
                "(forgetting.text_path), which must not be trained on; replay another"
            )
        return problems

    def _unvalidated(self, stage: Stage) -> bool:
        data = self.stage(stage).data
        return data.validation_share == 0 and data.validation_path is None and data.path != BODINHO

    def _encoder_problems(self) -> list[str]:
        """What stage mlm, which trains encoders, does not go with."""
        problems = []
        if others := [stage for stage in self.stages if stage != "mlm"]:
            problems.append(
                f"stages: mlm trains an encoder and {_one_of(others)} a decoder, which no model is "
                "both; run them apart"
            )
        if self.model.path == BODINHO:
            problems.append(
                f"model.path: {BODINHO} is a decoder, which has no masked tokens to predict; stage "
                f"mlm expects an encoder, as model={BERTINHO}"
            )
        if self.method == "qlora":
            problems.append(
                "method: stage mlm trains by full, lora, adapter or bitfit, got qlora; choose one "
                "of them"
            )
        if self.benchmark.protocol != "alternatives":
            problems.append(
                "benchmark.protocol: an encoder writes no answer, expected alternatives, got "
                f"{self.benchmark.protocol}; set benchmark=alternatives"
            )
        if self.benchmark.shots:
            problems.append(
                "benchmark.num_fewshot: an encoder is asked without examples, got "
                f"{self.benchmark.shots}; leave it out"
            )
        return problems

    def stage(self, name: Stage) -> StageConfig:
        block: StageConfig = getattr(self, name)
        return block

    def reads_bodinho(self) -> bool:
        """Whether any rows are those of the shipped laboratory."""
        paths = []
        for stage in self.stages:
            data = self.stage(stage).data
            paths += [data.path, data.validation_path or ""]
        return BODINHO in paths or self.benchmark.reads_bodinho()

    @property
    def preferring(self) -> Stage | None:
        """The first stage that changes the policy by preferences; its prompts are answered."""
        return next((stage for stage in self.stages if stage in ("dpo", "ppo")), None)

    @property
    def kind(self) -> Kind:
        """What the stages train."""
        return "encoder" if "mlm" in self.stages else "decoder"

    def refers_to_base(self) -> bool:
        """Whether a stage's reference is the base, not the policy that the stage began with."""
        read = "dpo" in self.stages and self.dpo.loss != "reference_free"
        return read and self.dpo.reference == "base"

    def curates(self) -> bool:
        """Whether the rows of stage sft are chosen from more."""
        return "sft" in self.stages and self.sft.curation is not None

    def unquantizes(self, stage: Stage) -> bool:
        """Whether the base is held unquantized from this stage on."""
        return stage == "dpo" and self.method == "qlora" and not self.dpo.quantize_base

    def unread(self) -> set[str]:
        """Dotted keys that have no effect beside what else is asked for."""
        keys = set()
        if self.dpo.loss == "reference_free":
            keys.add("dpo.reference")
        if self.method != "qlora":
            keys.add("dpo.quantize_base")
        if self.ppo.target_kl is None:
            keys.add("ppo.horizon")
        if self.sft.curation is None:
            keys.add("sft.curation_n")
        no_text = self.forgetting.text_path is None or self.kind == "encoder"
        if self.forgetting.questions_path is None and no_text:
            keys.add("forgetting.split")
        if self.open.prompts == 0:
            keys.add("open.max_new_tokens")
        for stage in self.stages:
            keys |= {f"{stage}.data.{name}" for name in self.stage(stage).data.unread()}
        keys |= {f"cpt.replay.{name}" for name in self.cpt.replay.unread()}
        if self.kind == "encoder":
            keys |= {"model.chat_template", "forgetting.text_path"}
        return keys | self.benchmark.unread()

    def _auto_rate(self, stage: Stage) -> float | None:
        return self.model.learning_rates.get(self.method, {}).get(stage)

    def resolved(self) -> "TrainConfig":
        """The same config with every `auto` that depends on no machine replaced by its value.

        A budget is handed out to the stages.
        """
        changes: dict[str, Any] = {}
        for stage in self.stages:
            block = self.stage(stage)
            if block.learning_rate == "auto":
                rate = self._auto_rate(stage)
                assert rate is not None, "checked in __post_init__"
                block = dataclasses.replace(block, learning_rate=rate)
            changes[stage] = dataclasses.replace(block, **self._share(stage))
        changes["budget"] = BudgetConfig(None, None)
        if self.lora.alpha == "auto":
            changes["lora"] = dataclasses.replace(self.lora, alpha=2.0 * self.lora.r)
        if self.kind == "encoder":  # which gives a text no probability
            changes["forgetting"] = dataclasses.replace(self.forgetting, text_path=None)
        return dataclasses.replace(self, **changes)

    def _share(self, stage: Stage) -> dict[str, Any]:
        """A stage's part of the budget: all get as much, the first ones what does not divide."""
        shares: dict[str, Any] = {}
        for name, total in dataclasses.asdict(self.budget).items():
            if total is not None:
                even, left = divmod(total, len(self.stages))
                shares[name] = even + (self.stages.index(stage) < left)
        return shares

    def blocks_read(self) -> set[str]:
        """Names of the optional blocks that this method and these stages read."""
        opened = () if self.preferring is None else ("open",)
        return {*self.stages, *METHOD_BLOCKS[self.method], *opened}

    def effective(self) -> dict[str, Any]:
        """What shapes the result, as plain data: nothing unread, nothing of where it is written."""
        tree = _without(dataclasses.asdict(self.resolved()), self.unread())
        for name in OPTIONAL_BLOCKS - self.blocks_read():
            del tree[name]
        return _identity(tree)

    def stage_identity(self, stage: Stage) -> dict[str, Any]:
        """What shapes the policy after a stage: all but what is measured, and later stages."""
        tree = self.effective()
        del tree["benchmark"]
        del tree["forgetting"]
        del tree["contamination"]  # the rows that it drops are named beside this
        tree.pop("open", None)
        tree["stages"] = self.stages[: self.stages.index(stage) + 1]
        return {k: v for k, v in tree.items() if k not in STAGES or k in tree["stages"]}

    def reuses(self, stage: Stage) -> bool:
        """Whether a stage may be taken from an earlier run; ppo leaves more than its weights."""
        return self.reuse_stages and stage != "ppo"

    def run_name(self) -> str:
        """What was asked for and the digest of `effective`, e.g. `lora-r32-sft-3f9c21ab`."""
        blocks = METHOD_BLOCKS[self.method]
        rank = f"-r{self.lora.r}" if "lora" in blocks else ""
        rank += f"-m{self.adapter.bottleneck}" if "adapter" in blocks else ""
        return f"{self.method}{rank}-{'-'.join(self.stages)}-{digest(self.effective())}"


@dataclass(frozen=True)
class EvaluateConfig:
    """`conf/evaluate.yaml` as composed: one model on one benchmark."""

    output_dir: str
    force: bool
    model: ModelConfig
    data: LaboratoryConfig
    benchmark: BenchmarkConfig
    trainer: TrainerConfig

    def __post_init__(self) -> None:
        problems = self.benchmark.problems(self.data.conditions)
        if self.data.conditions != "default" and not self.benchmark.reads_bodinho():
            problems.append(
                f"data.conditions: benchmark.path is not bodinho, got {self.data.conditions}; "
                "leave it out"
            )
        problems += _pinned_in_vain("benchmark", self.benchmark.path, self.benchmark.revision)
        problems += _pinned_in_vain("model", self.model.path, self.model.revision)
        if problems:
            raise BadInput(_sentence(problems))

    def effective(self) -> dict[str, Any]:
        """What shapes the result, as plain data."""
        return _identity(_without(dataclasses.asdict(self), self.benchmark.unread()))

    def run_name(self) -> str:
        """The model, the benchmark and the digest of `effective`: `eval-bodinho-test-0c4be1d2`."""
        model = "-".join(Path(self.model.path).parts[-2:])
        benchmark = Path(self.benchmark.path).stem
        return f"eval-{model}-{benchmark}-{digest(self.effective())}"


@dataclass(frozen=True)
class ChatConfig:
    """`conf/chat.yaml` as composed: one model in conversation."""

    model: ModelConfig
    trainer: TrainerConfig
    compare: bool
    max_new_tokens: Count
    temperature: NotNegative
    top_p: Annotated[float, Range(0, 1, open_low=True)]
    seed: CountOrZero
    system: str | None

    def unread(self) -> dict[str, str]:
        """Keys that have no effect on this conversation, and why."""
        needless = "a conversation does not read it; leave it out"
        why = dict.fromkeys(UNREAD_BY_CHAT, needless)
        if self.temperature == 0:
            why["top_p"] = "nothing is drawn at temperature=0; set a temperature above 0"
            if self.model.init == "pretrained":
                why["seed"] = why["top_p"]
        return why


@dataclass(frozen=True)
class ReportConfig:
    """`conf/report.yaml` as composed: the table of a folder of runs."""

    folder: str
    baseline: str | None
    measure: str
    wandb: WandbConfig


UNREAD_BY_CHAT = (
    "model.attention",  # answers are generated under sdpa
    "model.learning_rates",
    "trainer.gradient_checkpointing",
    "trainer.progress",
)
TEXT_FILE = ".txt"  # of documents with a blank line between them
ROWS_FILES = (".jsonl", ".json", ".parquet", TEXT_FILE)
SWEEP_PLUGINS = ("joblib", "submitit_local", "submitit_slurm")  # Hydra's, of the extra `sweep`
BODINHO = "bodinho"  # the path that stands for what the package ships, as model and as data
BERTINHO = "bertinho"  # the encoder beside it: a config and a tokenizer, its weights are drawn
SHIPPED = {BODINHO: "data/bodinho/base", BERTINHO: "data/bertinho"}  # folders of the package
FILES = (  # keys of a block that name a file or folder
    *("path", "validation_path", "questions_path", "text_path"),
    *("chat_template", "reward", "fewshot_path"),
)
BODINHO_FILES = (".csv", ".yaml", ".json", ".jinja", ".safetensors")
UNREAD = {  # keys that another choice leaves without effect, and that choice
    "dpo.reference": "dpo.loss=reference_free",
    "dpo.quantize_base": "a method other than qlora",
    "ppo.horizon": "ppo.target_kl=null",
    "sft.curation_n": "sft.curation=null",
    "model.chat_template": "stage mlm, whose rows are plain text",
    "forgetting.text_path": "stage mlm, for an encoder gives a text no probability",
    "open.max_new_tokens": "open.prompts=0",
    "forgetting.split": "forgetting.questions_path=null and forgetting.text_path=null",
    "benchmark.max_new_tokens": "a protocol other than generate or open",
    "benchmark.against": "a protocol other than open",
    "benchmark.reward": "a protocol other than open",
    "benchmark.split": "a file, which has no splits",
    "data.split": "a file, which has no splits",
    "data.column": "a .txt file, which has no columns",
    "data.validation_share": "validation rows of their own",
    "data.validation_rows": "validation_share=0",
    "cpt.replay.path": "cpt.replay.share=0",
    "cpt.replay.revision": "cpt.replay.share=0",
    "cpt.replay.split": "cpt.replay.share=0, or a file, which has no splits",
    "cpt.replay.column": "cpt.replay.share=0, or a .txt file, which has no columns",
    "benchmark.num_fewshot": "the protocol open",
    "benchmark.fewshot_path": "benchmark.num_fewshot=0 or the protocol open",
    "benchmark.fewshot_choice": "benchmark.num_fewshot=0 or the protocol open",
    "benchmark.fewshot_seed": "benchmark.num_fewshot=0 or fewshot_choice=similar",
    "benchmark.fewshot_overflow": "benchmark.num_fewshot=0 or the protocol open",
}
FEWSHOT = {key for key in UNREAD if key.startswith("benchmark.fewshot_")}
OPTIONAL_BLOCKS: set[str] = {
    *STAGES,
    *(b for blocks in METHOD_BLOCKS.values() for b in blocks),
    "open",
}


def _without(tree: dict[str, Any], unread: set[str]) -> dict[str, Any]:
    for key in unread:
        *blocks, name = key.split(".")
        block = tree
        for part in blocks:
            block = block[part]
        del block[name]
    return tree


def _is_rows_file(path: str) -> bool:
    return Path(path).suffix in ROWS_FILES


def _is_text_file(path: str) -> bool:
    return Path(path).suffix == TEXT_FILE


def _pinned_in_vain(block: str, path: str, revision: str | None) -> list[str]:
    """A complaint where a revision is given of what lies here; an adapter's is that of its base."""
    here = path == BODINHO or Path(path).exists()
    if revision is None or not here or (Path(path) / "adapter_config.json").exists():
        return []
    return [f"{block}.revision: {path} is no hub id, got {revision}; leave it out"]


def _identity(tree: dict[str, Any]) -> dict[str, Any]:
    """Leaves out where results are written and shown, and a budget that stands in the stages.

    Adds what the local files named hold.
    """
    for name in ("output_dir", "force", "reuse_stages", "objective", "budget", "wandb"):
        tree.pop(name, None)
    del tree["model"]["learning_rates"]
    del tree["trainer"]["progress"]
    blocks = [tree[name] for name in ("model", "benchmark", "forgetting") if name in tree]
    blocks += [tree[stage]["data"] for stage in STAGES if stage in tree]
    blocks += [tree["cpt"]["replay"]] if "cpt" in tree else []
    for block in blocks:
        named = [block.get(key) for key in FILES]
        against = block.get("against", [])
        named += [against] if isinstance(against, str) else against
        block["content"] = [content(path) for path in named if path is not None]
    return tree


def content(path: str) -> str | None:
    """A digest of what a path holds now, so that a run is another one when its input changes.

    A file goes by its bytes, a folder by its files' names, sizes and times; None for what is not
    here, such as a hub id, which its revision names.
    """
    if path in SHIPPED:
        shipped = Path(__file__).resolve().parent / "data" / path
        files = sorted(f for f in shipped.rglob("*") if f.suffix in BODINHO_FILES)
        parts = [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]
    elif Path(path).is_file():
        with Path(path).open("rb") as file:
            parts = [hashlib.file_digest(file, "sha256").hexdigest()]
    elif Path(path).is_dir():
        below = [f for f in sorted(Path(path).rglob("*")) if f.is_file()]
        stats = {str(f.relative_to(path)): f.stat() for f in below}
        parts = [f"{name} {s.st_size} {s.st_mtime_ns}" for name, s in stats.items()]
    else:
        return None
    return digest(parts)


def digest(tree: Any, length: int = 8) -> str:
    """The first `length` hex digits of the SHA-256 of plain data; equal data, equal digest."""
    text = json.dumps(tree, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


# --- from plain data to the typed tree ---------------------------------------------------------

T = TypeVar("T")


def build(schema: type[T], tree: Mapping[str, Any]) -> T:
    """Plain nested data as an instance of the dataclass `schema`.

    Raises BadInput that names every unknown key, missing value, wrong type and value out of range.
    """
    problems: list[str] = []
    result = _convert(schema, tree, "", problems)
    if problems:
        raise BadInput(_sentence(problems))
    return typing.cast(T, result)


def _convert(kind: Any, value: Any, key: str, problems: list[str]) -> Any:
    if dataclasses.is_dataclass(kind):
        return _convert_block(typing.cast(type, kind), value, key, problems)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict and isinstance(value, Mapping):
        return {str(k): _convert(args[1], v, f"{key}.{k}", problems) for k, v in value.items()}
    if origin is list and isinstance(value, Sequence) and not isinstance(value, str):
        return [_convert(args[0], v, key, problems) for v in value]
    if origin is list and args[0] is not str and not isinstance(value, Mapping):
        return [_convert(args[0], value, key, problems)]  # stages=sft is stages=[sft]
    ok, result = _convert_scalar(kind, value)
    if not ok:
        near = _nearest(str(value), _choices(kind))
        problems.append(f"{key}: expected {_describe(kind)}, got {_show(value)}{near}")
    return result


def _convert_block(kind: type, value: Any, key: str, problems: list[str]) -> Any:
    if not isinstance(value, Mapping):
        problems.append(f"{key}: expected a block of keys, got {_show(value)}")
        return None
    hints = typing.get_type_hints(kind, include_extras=True)
    names = [f.name for f in dataclasses.fields(kind)]
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in names:
            problems.append(f"{prefix}{name}: there is no such key{_nearest(str(name), names)}")
    before = len(problems)
    parts = {}
    for name in names:
        if name not in value or value[name] == "???":
            problems.append(f"{prefix}{name}: no value is set; set {prefix}{name}=...")
        else:
            parts[name] = _convert(hints[name], value[name], prefix + name, problems)
    if len(problems) > before:
        return None
    try:
        return kind(**parts)
    except BadInput as error:
        problems.append(str(error))
        return None


def _convert_scalar(kind: Any, value: Any) -> tuple[bool, Any]:
    """Whether `value` is of the type `kind`, and the value as that type."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        ok, result = _convert_scalar(args[0], value)
        return ok and args[1].holds(result), result
    if origin in (typing.Union, types.UnionType):
        for option in args:
            ok, result = _convert_scalar(option, value)
            if ok:
                return True, result
        return False, value
    if origin is Literal:
        return value in args, value
    if origin is list:
        ok = isinstance(value, list) and all(_convert_scalar(args[0], v)[0] for v in value)
        return ok, value
    if origin is dict:
        ok = isinstance(value, Mapping) and all(
            _convert_scalar(args[1], v)[0] for v in value.values()
        )
        return ok, value
    if kind is type(None):
        return value is None, None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return True, float(value)
    if kind is int and isinstance(value, bool):
        return False, value
    if kind is float:
        return isinstance(value, float) and value == value, value
    return isinstance(value, kind), value


def _describe(kind: Any) -> str:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return f"{_describe(args[0])} {args[1]}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(a) for a in args)
    if origin is Literal:
        return _one_of(args)
    if origin is list:
        return f"a list of {_describe(args[0])}"
    if origin is dict:
        return f"{{name: {_describe(args[1])}}}"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return "null" if kind is type(None) else names.get(kind, str(kind))


def _choices(kind: Any) -> list[str]:
    if typing.get_origin(kind) is Literal:
        return [str(a) for a in typing.get_args(kind)]
    return [c for a in typing.get_args(kind) for c in _choices(a)]


def _show(value: Any) -> str:
    return "null" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def _one_of(options: Sequence[object]) -> str:
    names = [str(o) for o in options]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _nearest(name: str, valid: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, sorted(set(valid)), n=3, cutoff=0.6)
    return f"; did you mean {_one_of(near)}?" if near else ""


def _sentence(problems: Sequence[str]) -> str:
    return "\n       ".join(problems)


# --- from the command line to the tree ---------------------------------------------------------


def conf_dir() -> Path:
    """The folder of YAML: in the package where it was installed as a wheel, else beside it."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every dotted key of nested data, blocks and leaves."""
    for name, value in tree.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from keys(value, f"{prefix}{name}.")


def groups() -> dict[str, list[str]]:
    """The groups of `conf/` and their options."""
    return {
        folder.name: sorted(f.stem for f in folder.glob("*.yaml"))
        for folder in sorted(conf_dir().iterdir())
        if folder.is_dir() and folder.name not in ("stage", "hydra")
    }


def compose(door: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The tree that a door, such as `train`, is given with these overrides, as plain data."""
    import hydra
    from omegaconf import OmegaConf

    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        tree = hydra.compose(door, list(overrides))
    plain = OmegaConf.to_container(tree, resolve=True)
    assert isinstance(plain, dict)
    return typing.cast(dict[str, Any], plain)


def load(tree: Mapping[str, Any], overrides: Sequence[str], multirun: bool = False) -> TrainConfig:
    """The train tree, typed and checked, against the overrides that the user typed.

    An override in a block that the chosen method or stages do not read is refused in a single run.
    In a multirun it is without effect, since `effective` leaves unread blocks out.
    """
    config = build(TrainConfig, tree)
    if not multirun:
        blocks = OPTIONAL_BLOCKS - config.blocks_read()
        for override in overrides:
            key = override.split("=")[0].lstrip("+~")
            if key.split(".")[0] in blocks:
                raise BadInput(
                    f"{key}: method {config.method} with stages [{','.join(config.stages)}] does "
                    f"not read {key.split('.')[0]}; leave it out, or choose a method or stage that "
                    "reads it"
                )
        refuse_unread(overrides, config.unread())
        if config.objective is not None:
            raise BadInput("objective: only a search reads it; leave it out, or add sweep=search")
    return config


def refuse_search(tree: Mapping[str, Any]) -> None:
    """Raises BadInput where a search would have nothing to maximise, or test questions."""
    if "objective" not in tree:
        raise BadInput("hydra/sweeper: optuna searches for the best training, with drbode.train")
    config = build(TrainConfig, tree)
    if config.objective is None:
        options = _one_of(typing.get_args(Objective))
        raise BadInput(f"objective: a search maximises one, got null; set it to {options}")
    asked = config.benchmark
    if config.objective == "accuracy" and (asked.path, asked.split) == (BODINHO, "test"):
        raise BadInput(
            "benchmark.split: a search on the test questions would choose what fits them by chance "
            "and then report it on the same, got test; set benchmark.split=validation"
        )


def refuse_unread(overrides: Sequence[str], unread: set[str]) -> None:
    """Raises BadInput for an override of a key that has no effect."""
    for override in overrides:
        key = override.split("=")[0].lstrip("+~")
        if key in unread:
            why = UNREAD[key if key in UNREAD else key.split(".", 1)[1]]
            raise BadInput(f"{key}: has no effect with {why}; leave it out")


def load_chat(tree: Mapping[str, Any], overrides: Sequence[str]) -> ChatConfig:
    """The chat tree, typed and checked; an override that would have no effect is refused."""
    config = build(ChatConfig, tree)
    for override in overrides:
        key = override.split("=")[0].lstrip("+~")
        for unread, why in config.unread().items():
            if key == unread or key.startswith(f"{unread}."):
                raise BadInput(f"{key}: {why}")
    return config


@dataclass(frozen=True)
class Done:
    """What a job leaves: the folder of its run, and what a search maximises."""

    folder: Path
    objective: float | None = None
    wandb: WandbConfig | None = None  # where the job logged, for the table of all of them


@dataclass(frozen=True)
class Outcome:
    """What a job of a multirun came to, in whichever process it ran."""

    overrides: list[str]
    code: int  # 0: done; 2: the user's mistake; 1: anything else
    done: Done | None
    error: str | None


Job = Callable[[Mapping[str, Any], list[str], bool], Done | None]


@dataclass
class Task:
    """What Hydra calls, once a run or once a job of a multirun; it goes to other processes whole.

    Equal names (`name`) are one run, which a multirun starts once. A job of a multirun that fails
    is handed to `failed`, and the others go on.
    """

    job: Job
    failed: Callable[[Mapping[str, Any], list[str], Exception], Done] | None
    name: Callable[[Mapping[str, Any]], str] | None
    outcomes: list[Outcome] = dataclasses.field(default_factory=list)  # of a multirun's jobs
    group: str | None = None  # of a multirun, in W&B, where no other is asked for

    def __call__(self, config: "DictConfig") -> Outcome:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        tree, state = plain(config), HydraConfig.get()
        overrides = list(state.overrides.task)
        multirun = state.mode == RunMode.MULTIRUN
        if "wandb" in tree and tree["wandb"]["group"] is None:
            tree["wandb"]["group"] = self.group
        if multirun and self.name is not None:
            print(f"\n=== {' '.join(overrides)}", flush=True)
        try:
            return Outcome(overrides, 0, self.job(tree, overrides, multirun), None)
        except Exception as raised:
            error = unwritable(raised) or raised
            if multirun:
                # Nothing is raised: Hydra would then skip the jobs that are left.
                print(f"failed: {' '.join(overrides)}: {error}", file=sys.stderr)
                done = None
                if self.failed is not None:
                    with contextlib.suppress(BadInput):  # there may be no space for a record
                        done = self.failed(tree, overrides, error)
                code = 2 if isinstance(error, BadInput) else 1
                return Outcome(overrides, code, done, str(error))
            if isinstance(error, BadInput):
                print(f"error: {error}", file=sys.stderr)
                raise SystemExit(2) from None  # which Hydra lets pass, without words of its own
            raise


def plain(config: "DictConfig") -> dict[str, Any]:
    """A composed config as plain data, interpolations resolved, without Hydra's own part."""
    from omegaconf import OmegaConf

    tree = OmegaConf.to_container(config, resolve=True)
    return {k: v for k, v in typing.cast(dict[str, Any], tree).items() if k != "hydra"}


def open_door(
    door: str,
    job: Job,
    failed: Callable[[Mapping[str, Any], list[str], Exception], Done] | None = None,
    name: Callable[[Mapping[str, Any]], str] | None = None,
    finished: Callable[[list[Outcome]], None] | None = None,
) -> NoReturn:
    """Runs `job(tree, overrides, multirun)` on what the command line asks for, and exits.

    `finished` is handed what the jobs of a multirun came to. The exit code is 0: done; 2: the
    user's mistake, told in one sentence; 1: anything else, with its traceback.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises to here in place of exiting by itself
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    # A scheduler ends a job by SIGTERM: the run then stops as by Ctrl-C, and can be continued.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    task = Task(job, failed, name)
    main = hydra.main(config_path=str(conf_dir()), config_name=door, version_base="1.3")(task)
    try:
        main()
        if finished is not None and task.outcomes:
            finished(task.outcomes)
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {_explain(door, error)}", file=sys.stderr)
        sys.exit(2)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    sys.exit(max((outcome.code for outcome in task.outcomes), default=0))


def _explain(door: str, error: Exception) -> str:
    """Hydra's complaint about the command line, in one sentence that names the nearest key."""
    text = str(error)
    if found := re.search(r"Could not find '([\w/]+)/([^'/]+)'", text):
        group, option = found.groups()
        if option in SWEEP_PLUGINS:
            return f"{group}: {option} is not installed; pip install 'drbode[sweep]'"
        options = groups().get(group) or re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        return (
            f"{group}: there is no option {option}; expected {_one_of(options)}"
            f"{_nearest(option, options)}"
        )
    if found := re.search(r"Could not (?:override|delete|append to config)[^']*'([^']+)'", text):
        key = found.group(1).split("=")[0]
        valid = [*keys(compose(door)), *groups()]
        return f"{key}: there is no such key{_nearest(key, valid)} (--help lists all)"
    if found := re.search(r"^(.*?)(?:\n|$)", text):
        text = found.group(1)
    return (
        f"the command line: {text}; expected key=value, or 'key=\"value\"' for text with accents "
        "(--help shows examples)"
    )
