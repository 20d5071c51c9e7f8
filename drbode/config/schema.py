"""The typed config tree of each door, and what follows from it as a whole."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from drbode.config import rules
from drbode.config.blocks import (
    AdapterConfig,
    BenchmarkConfig,
    BudgetConfig,
    ContaminationConfig,
    Count,
    CountOrZero,
    CptConfig,
    DpoConfig,
    ForgettingConfig,
    LaboratoryConfig,
    LoraConfig,
    MlmConfig,
    ModelConfig,
    NotNegative,
    OpenConfig,
    PeftConfig,
    PpoConfig,
    QloraConfig,
    RewardConfig,
    SftConfig,
    StageConfig,
    TrainerConfig,
    Unread,
    WandbConfig,
)
from drbode.config.catalogue import (
    METHODS,
    STAGES,
    Method,
    MethodTraits,
    ModelKind,
    Stage,
    names,
)
from drbode.config.convert import Range
from drbode.config.errors import refuse
from drbode.config.identity import BODINHO, digest, identity

Objective = Literal["accuracy", "validation_loss"]

OPTIONAL_BLOCKS: set[str] = {
    *STAGES,
    *(block for method in METHODS.values() for block in method.blocks),
    "open",
}


@dataclass(frozen=True)
class Tuning:
    """The part of the config that a method reads: all that decides which tensors train."""

    method: Method
    seed: int  # of what is random in an adapter
    next_sentences: bool  # whether a loss reaches an encoder's head for next sentences
    lora: LoraConfig
    adapter: AdapterConfig
    peft: PeftConfig | None  # of method peft alone

    @property
    def traits(self) -> MethodTraits:
        return METHODS[self.method]


@dataclass(frozen=True)
class TrainConfig:
    """`conf/train.yaml` as composed: what one run is to do."""

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
    peft: PeftConfig
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
        refuse(list(rules.problems(self)))

    @property
    def traits(self) -> MethodTraits:
        """What the method is."""
        return METHODS[self.method]

    def tuning(self) -> Tuning:
        """What the method is told."""
        return Tuning(
            method=self.method,
            seed=self.seed,
            next_sentences=self.mlm.nsp,
            lora=self.lora,
            adapter=self.adapter,
            peft=self.peft if "peft" in self.traits.blocks else None,
        )

    def stage(self, name: Stage) -> StageConfig:
        block: StageConfig = getattr(self, name)
        return block

    def blocks(self) -> dict[Stage, StageConfig]:
        """The blocks of the run's stages, in their order."""
        return {name: self.stage(name) for name in self.stages}

    def having(self, **traits: object) -> list[Stage]:
        """The run's stages that have all of these traits."""
        wanted = names(STAGES, **traits)
        return [name for name in self.stages if name in wanted]

    @property
    def model_kind(self) -> ModelKind:
        """What the stages train."""
        return "encoder" if self.having(trains="encoder") else "decoder"

    @property
    def aligning(self) -> Stage | None:
        """The first stage that changes how the policy answers; open answers are to its prompts."""
        return next(iter(self.having(aligns=True)), None)

    def reads_bodinho(self) -> bool:
        """Whether any rows are those of the shipped laboratory."""
        data = [block.data for block in self.blocks().values()]
        paths = [path for block in data for path in (block.path, block.validation_path)]
        return BODINHO in paths or self.benchmark.reads_bodinho()

    def refers_to_base(self) -> bool:
        """Whether a stage's reference is the base, not the policy that the stage began with."""
        return any(block.refers_to_base for block in self.blocks().values())

    def unquantizes(self, stage: Stage) -> bool:
        """Whether the base is held unquantized from this stage on."""
        return self.traits.quantizes and self.stage(stage).unquantizes

    def unread(self) -> Unread:
        """Dotted keys that have no effect beside the rest of the config, and why."""
        return rules.unread(self)

    def auto_rate(self, stage: Stage) -> float | None:
        """The learning rate that the model's table has for the method and a stage."""
        return self.model.learning_rates.get(self.method, {}).get(stage)

    def resolved(self) -> "TrainConfig":
        """The same config with every `auto` that depends on no machine replaced by its value.

        A budget is handed out to the stages.
        """
        changes: dict[str, Any] = {}
        for stage, block in self.blocks().items():
            if block.learning_rate == "auto":
                rate = self.auto_rate(stage)
                assert rate is not None, "one of the rules"
                block = dataclasses.replace(block, learning_rate=rate)
            changes[stage] = dataclasses.replace(block, **self._share(stage))
        changes["budget"] = BudgetConfig(None, None)
        if self.lora.alpha == "auto":
            changes["lora"] = dataclasses.replace(self.lora, alpha=2.0 * self.lora.r)
        if self.model_kind == "encoder":  # which gives a text no probability
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
        opened = () if self.aligning is None else ("open",)
        return {*self.stages, *self.traits.blocks, *opened}

    def effective(self) -> dict[str, Any]:
        """What shapes the result, as plain data: nothing unread, nothing of where it is written."""
        tree = dataclasses.asdict(self.resolved())
        read = self.blocks_read()
        for name in OPTIONAL_BLOCKS - read:
            del tree[name]
        left_out = OPTIONAL_BLOCKS - read
        return identity(tree, (k for k in self.unread() if k.split(".")[0] not in left_out))

    def stage_identity(self, stage: Stage) -> dict[str, Any]:
        """What shapes the policy after a stage: all but what is measured, and later stages."""
        tree = self.effective()
        # The rows that contamination drops are named beside this.
        for name in ("benchmark", "forgetting", "contamination", "open"):
            tree.pop(name, None)
        tree["stages"] = self.stages[: self.stages.index(stage) + 1]
        return {k: v for k, v in tree.items() if k not in STAGES or k in tree["stages"]}

    def reuses(self, stage: Stage) -> bool:
        """Whether a stage may be taken from an earlier run: not where it leaves rollouts."""
        return self.reuse_stages and not STAGES[stage].samples

    def run_name(self) -> str:
        """Method, stages and the digest of `effective`, e.g. `lora-r32-sft-3f9c21ab`."""
        blocks = self.traits.blocks
        kind = f"-r{self.lora.r}" if "lora" in blocks else ""
        kind += f"-m{self.adapter.bottleneck}" if "adapter" in blocks else ""
        kind += f"-{str(self.peft.type).lower()}" if "peft" in blocks else ""
        return f"{self.method}{kind}-{'-'.join(self.stages)}-{digest(self.effective())}"


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
        refuse(list(rules.evaluation_problems(self)))

    def unread(self) -> Unread:
        """Dotted keys that have no effect beside the rest of the config, and why."""
        return rules.dotted("benchmark", self.benchmark.unread())

    def effective(self) -> dict[str, Any]:
        """What shapes the result, as plain data."""
        return identity(dataclasses.asdict(self), self.unread())

    def run_name(self) -> str:
        """The model, the benchmark and the digest of `effective`: `eval-bodinho-test-0c4be1d2`."""
        model = "-".join(Path(self.model.path).parts[-2:])
        benchmark = Path(self.benchmark.path).stem.replace(":", ".")
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

    def unread(self) -> Unread:
        """Keys that have no effect on this conversation, and why."""
        why = dict.fromkeys(UNREAD_BY_CHAT, "a conversation does not read it; leave it out")
        if self.temperature == 0:
            why["top_p"] = "nothing is drawn at temperature=0; set a temperature above 0"
            if self.model.init == "pretrained":
                why["seed"] = why["top_p"]
        return why


UNREAD_BY_CHAT = (
    "model.attention",  # answers are generated under sdpa
    "model.learning_rates",
    "trainer.gradient_checkpointing",
    "trainer.progress",
)


@dataclass(frozen=True)
class ReportConfig:
    """`conf/report.yaml` as composed: the table of a folder of runs."""

    folder: str
    baseline: str | None
    measure: str
    wandb: WandbConfig
