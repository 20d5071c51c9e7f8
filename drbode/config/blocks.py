"""The blocks of the config tree, typed; each names those of its keys that have no effect."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from drbode.config.catalogue import (
    PROTOCOLS,
    Loss,
    Protocol,
    ProtocolTraits,
    Scorer,
    loss_traits,
    names,
)
from drbode.config.convert import Range
from drbode.config.errors import one_of
from drbode.config.identity import BODINHO

Auto = Literal["auto"]
Count = Annotated[int, Range(1)]
CountOrZero = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, open_low=True)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]

TEXT_FILE = ".txt"  # of documents with a blank line between them
ROWS_FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", TEXT_FILE)
NO_SPLITS = "a file, which has no splits"
NO_COLUMNS = "a .txt file, which has no columns"

Unread = dict[str, str]  # keys that have no effect, and the choice that leaves them without
RAW_TEXT: Unread = {"data.layout": "rows of raw text, which have a single layout"}


def is_rows_file(path: str) -> bool:
    return Path(path).suffix in ROWS_FILES


def is_text_file(path: str) -> bool:
    return Path(path).suffix == TEXT_FILE


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


# Layouts that rows for training come in; `auto` recognises each row's.
RowLayout = Literal[
    "auto",
    "messages",
    "sharegpt",
    "alpaca",
    "prompt_completion",
    "pairs",
    "implicit_prompt",
    "hh",
    "unpaired",
]


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
    layout: RowLayout = "auto"
    bad_rows: Literal["stop", "drop"] = "stop"

    def unread(self) -> Unread:
        """Its keys that the source of the rows leaves without effect."""
        keys: Unread = {}
        if is_rows_file(self.path) and is_rows_file(self.validation_path or self.path):
            keys["split"] = NO_SPLITS
        if is_text_file(self.path) and is_text_file(self.validation_path or self.path):
            keys["column"] = NO_COLUMNS
        if self.validation_path is not None or (self.path == BODINHO and self.split == "train"):
            keys["validation_share"] = "validation rows of their own"
        elif self.validation_share == 0:
            keys["validation_rows"] = "validation_share=0"
        return keys

    @property
    def unvalidated(self) -> bool:
        """Whether there are no rows to validate on."""
        return self.validation_share == 0 and self.validation_path is None and self.path != BODINHO


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

    @property
    def answer_tokens(self) -> int:
        """Tokens of the context that are kept free for an answer that the stage samples."""
        return 0

    @property
    def needs_reference(self) -> bool:
        """Whether the logps of a reference policy are computed before the stage."""
        return False

    @property
    def refers_to_base(self) -> bool:
        """Whether that reference is the base, not the policy that the stage began with."""
        return False

    @property
    def unquantizes(self) -> bool:
        """Whether a quantized base is held in full precision from this stage on."""
        return False

    @property
    def curates(self) -> bool:
        """Whether the stage's rows are chosen from more."""
        return False

    def unread(self) -> Unread:
        """Its keys that another choice in the block leaves without effect."""
        return {f"data.{name}": why for name, why in self.data.unread().items()}


@dataclass(frozen=True)
class ReplayConfig:
    """General text that is mixed into a stage's rows, so that less is forgotten."""

    share: Annotated[float, Range(0, 0.9)]
    path: str
    revision: str | None
    split: str
    column: str

    def unread(self) -> Unread:
        """Its keys that are without effect."""
        if self.share == 0:
            return dict.fromkeys(("path", "revision", "split", "column"), "cpt.replay.share=0")
        keys = {"split": NO_SPLITS} if is_rows_file(self.path) else {}
        return keys | ({"column": NO_COLUMNS} if is_text_file(self.path) else {})


@dataclass(frozen=True)
class CptConfig(StageConfig):
    stride: CountOrZero
    near_duplicates: Annotated[float, Range(0, 1, open_low=True)] | None
    replay: ReplayConfig

    def unread(self) -> Unread:
        replay = {f"replay.{name}": why for name, why in self.replay.unread().items()}
        return super().unread() | RAW_TEXT | replay


@dataclass(frozen=True)
class MlmConfig(StageConfig):
    mask_probability: Annotated[float, Range(0, 1, open_low=True)]
    whole_words: bool
    nsp: bool
    pseudo_perplexity_rows: CountOrZero

    def unread(self) -> Unread:
        return super().unread() | RAW_TEXT


@dataclass(frozen=True)
class SftConfig(StageConfig):
    format: Literal["chat", "chapter"]
    curation: Literal["limo", "random", "diverse"] | None
    curation_n: Count

    @property
    def curates(self) -> bool:
        return self.curation is not None

    def unread(self) -> Unread:
        curation = {} if self.curates else {"curation_n": "sft.curation=null"}
        return super().unread() | curation


@dataclass(frozen=True)
class DpoConfig(StageConfig):
    loss: Loss
    options: dict[str, float] | None
    beta: Positive
    label_smoothing: Annotated[float, Range(0, 0.49)]
    nll_weight: NotNegative
    reference: Literal["stage_start", "base"]
    quantize_base: bool
    kl_prompts: CountOrZero

    @property
    def needs_reference(self) -> bool:
        return loss_traits(self.loss).needs_reference

    @property
    def refers_to_base(self) -> bool:
        return self.needs_reference and self.reference == "base"

    @property
    def unquantizes(self) -> bool:
        return not self.quantize_base

    def unread(self) -> Unread:
        unread = super().unread()
        return unread if self.needs_reference else unread | {"reference": f"dpo.loss={self.loss}"}


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

    @property
    def answer_tokens(self) -> int:
        return self.max_new_tokens

    def unread(self) -> Unread:
        adaptive = {"horizon": "ppo.target_kl=null"} if self.target_kl is None else {}
        return super().unread() | adaptive


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

    @property
    def keeps_base(self) -> bool:
        """Whether the network with its adapter switched off is the base it was wrapped around."""
        return self.init_lora_weights not in ("olora", "pissa") and self.bias == "none"


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


@dataclass(frozen=True)
class PeftConfig:
    """A tuner of peft's: what it knows of types and options is checked where it is put on."""

    type: str | None
    options: dict[str, Any] | None

    @property
    def keeps_base(self) -> bool:
        """Whether the network with its adapter switched off is the base it was wrapped around."""
        options = self.options or {}
        starts = [value for name, value in options.items() if name.startswith("init_")]
        untouched = not any(isinstance(start, str) and start != "gaussian" for start in starts)
        return untouched and options.get("bias", "none") == "none"

    @property
    def dropout(self) -> list[str]:
        """Names of its options that drop something in training."""
        return [n for n, value in (self.options or {}).items() if n.endswith("dropout") and value]


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
    scorer: Scorer | None
    num_fewshot: CountOrZero
    fewshot_path: str
    fewshot_choice: Literal["fixed", "random", "similar"]
    fewshot_seed: CountOrZero
    fewshot_overflow: Literal["refuse", "drop"]

    @property
    def traits(self) -> ProtocolTraits:
        return PROTOCOLS[self.protocol]

    @property
    def question_protocol(self) -> Protocol:
        """The protocol for multiple-choice questions: this one, if it reads them."""
        return self.protocol if self.traits.reads == "question" else "alternatives"

    @property
    def rivals(self) -> list[str] | None:
        """Models to compare the model's open answers with; None: the one it was tuned from."""
        if self.against == "auto":
            return None
        return [self.against] if isinstance(self.against, str) else self.against

    @property
    def shots(self) -> int:
        """Examples before each row."""
        return self.num_fewshot if self.traits.examples else 0

    @property
    def answer_tokens(self) -> int:
        """Tokens that a written answer may have."""
        return self.traits.limit or self.max_new_tokens

    def unread(self) -> Unread:
        """Its keys that the protocol and the source do not read."""
        traits, others = self.traits, "a protocol other than "
        keys = {"split": NO_SPLITS} if is_rows_file(self.path) else {}
        if not traits.writes:
            keys["max_new_tokens"] = others + one_of(names(PROTOCOLS, writes=True))
        if traits.of_runs:
            beside = others + one_of(names(PROTOCOLS, of_runs=False))
            keys |= dict.fromkeys(("against", "reward"), beside)
        if not traits.scored:
            keys["scorer"] = others + one_of(names(PROTOCOLS, scored=True))
        if not traits.examples:
            keys["num_fewshot"] = f"the protocol {self.protocol}"
        if self.shots == 0:
            few = ("fewshot_path", "fewshot_choice", "fewshot_seed", "fewshot_overflow")
            without = one_of(names(PROTOCOLS, examples=False))
            keys |= dict.fromkeys(few, f"benchmark.num_fewshot=0 or the protocol {without}")
        elif self.fewshot_choice == "similar":
            keys["fewshot_seed"] = "benchmark.num_fewshot=0 or fewshot_choice=similar"
        return keys

    def reads_bodinho(self) -> bool:
        """Whether any of its rows are those of the shipped laboratory."""
        return self.path == BODINHO or (self.shots > 0 and self.fewshot_path == BODINHO)

    def problems(self, conditions: str) -> list[str]:
        """What is incompatible with `data.conditions`."""
        if self.shots and self.fewshot_path == BODINHO and conditions == "all":
            return [
                "benchmark.fewshot_path: bodinho's examples are on the conditions that "
                "data.conditions leaves out, got all; give a file, or leave data.conditions out"
            ]
        return []


@dataclass(frozen=True)
class OpenConfig:
    """Open answers that a run with a preference stage samples before and after its stages."""

    prompts: CountOrZero
    max_new_tokens: Count
    scorer: Scorer | None


@dataclass(frozen=True)
class ForgettingConfig:
    """General questions and text, on which a run measures what its base knew and forgets."""

    questions_path: str | None
    text_path: str | None
    split: str


@dataclass(frozen=True)
class ContaminationConfig:
    """What is done with training rows that contain a question of the benchmark."""

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
