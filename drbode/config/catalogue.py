"""What there is to choose from: one description of each stage, loss, method and protocol.

Everything that other packages need to know of them stands here, without torch: config rules, data,
reporting and plots read a description and never compare names. Adding one takes an entry here and
the code that the entry names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from drbode.config.convert import OneOf

ModelKind = Literal["decoder", "encoder"]  # predicts the next token, or masked ones
# What a row holds: raw text, raw text for an encoder, a conversation, a prompt with a chosen and a
# rejected answer, a prompt, a multiple-choice question, a prompt with its reference answer.
RowKind = Literal["text", "masked", "chat", "pair", "prompt", "question", "reference"]


@dataclass(frozen=True)
class StageTraits:
    """A stage of training. Its code is `drbode/training/<stage>.py`, its block of the config
    `conf/stage/<stage>.yaml`.
    """

    reads: RowKind  # of training rows
    trains: ModelKind = "decoder"
    dropout: bool = True  # False: switched off; policy and reference differ by their weights alone
    aligns: bool = False  # changes how the policy answers: open answers come before and after
    samples: bool = False  # trains on answers that it samples: leaves rollouts beside its weights
    leaves: Literal["policy", "reward model"] = "policy"  # beside a reward model the policy stays
    loss_unit: str = "nats a token"  # of what it minimises


STAGES: dict[str, StageTraits] = {
    "cpt": StageTraits(reads="text"),
    "mlm": StageTraits(reads="masked", trains="encoder"),
    "sft": StageTraits(reads="chat"),
    "dpo": StageTraits(reads="pair", dropout=False, aligns=True, loss_unit="a pair"),
    "reward": StageTraits(
        reads="pair", dropout=False, leaves="reward model", loss_unit="nats a pair"
    ),
    "ppo": StageTraits(
        reads="prompt",
        dropout=False,
        aligns=True,
        samples=True,
        loss_unit="a token",
    ),
}
Stage = Annotated[str, OneOf(STAGES)]


@dataclass(frozen=True)
class LossTraits:
    """A loss of preference pairs, by name.

    `function` is `module:function` of (pairs, beta, **options), which gives the loss of each pair.
    """

    function: str
    needs_reference: bool = True  # False: no reference pass is run
    options: tuple[str, ...] = ()  # names of those that it reads; their defaults are the function's


LOSSES: dict[str, LossTraits] = {
    "sigmoid": LossTraits("drbode.objectives.dpo:sigmoid_loss"),
    "ipo": LossTraits("drbode.objectives.dpo:ipo_loss"),
    "hinge": LossTraits("drbode.objectives.dpo:hinge_loss"),
    "reference_free": LossTraits(
        "drbode.objectives.dpo:reference_free_loss", needs_reference=False
    ),
    "simpo": LossTraits(
        "drbode.objectives.dpo:simpo_loss", needs_reference=False, options=("gamma",)
    ),
}
Loss = Annotated[str, OneOf(LOSSES, or_function=True)]


def loss_traits(loss: str) -> LossTraits:
    """The entry of a name; a function of the user's is taken to need a reference."""
    return LOSSES.get(loss) or LossTraits(loss)


@dataclass(frozen=True)
class MethodTraits:
    """A fine-tuning method; `conf/method/<method>.yaml` sets the defaults of its blocks.

    `function` is `module:function` of (model, tuning). It gives the adapter's peft config, or
    unfreezes tensors of the network and gives None.
    """

    function: str
    blocks: tuple[str, ...] = ()  # of the config that it reads
    adapter: bool = True  # wraps the network in an adapter; False: trains the network's tensors
    quantizes: bool = False  # holds the base in 4 bits
    encoders: bool = True  # trains encoders as well


METHODS: dict[str, MethodTraits] = {
    "full": MethodTraits("drbode.models.methods:full", adapter=False),
    "lora": MethodTraits("drbode.models.methods:lora", ("lora",)),
    "qlora": MethodTraits(
        "drbode.models.methods:lora", ("lora", "qlora"), quantizes=True, encoders=False
    ),
    "adapter": MethodTraits("drbode.models.methods:bottleneck", ("adapter",)),
    "bitfit": MethodTraits("drbode.models.methods:bitfit"),
    "peft": MethodTraits("drbode.models.tuners:tuner", ("peft",)),
}
Method = Annotated[str, OneOf(METHODS)]


@dataclass(frozen=True)
class ProtocolTraits:
    """How a benchmark's rows are put to a model, and how its answer is read.

    `load` is `module:function` of (config, conditions, key), which gives the benchmark with its
    rows. `function` is one of (policy, renderer, rows, config, machine), which gives the model's
    answer to each row: it renders the rows and reads what comes of them. The summary and the
    comparison of answers are the same for every protocol (drbode/evaluation/benchmarks.py).
    """

    function: str
    encoder_function: str | None = None  # likewise of an encoder; None: not for encoders
    load: str = "drbode.evaluation.multiple_choice:load_questions"
    reads: RowKind = "question"
    writes: bool = False  # the model writes an answer, in at most `benchmark.max_new_tokens`
    limit: int | None = None  # tokens that the protocol itself lets it write
    examples: bool = True  # answered examples may stand before a row
    scored: bool = False  # by `benchmark.scorer`, a function of the user's
    of_runs: bool = True  # False: used by drbode.evaluate alone, beside other models

    @property
    def encoders(self) -> bool:
        """Whether it is for encoders as well."""
        return self.encoder_function is not None


PROTOCOLS: dict[str, ProtocolTraits] = {
    "alternatives": ProtocolTraits(
        "drbode.evaluation.multiple_choice:by_alternatives",
        encoder_function="drbode.evaluation.multiple_choice:by_pseudo_likelihood",
    ),
    "letter": ProtocolTraits("drbode.evaluation.multiple_choice:by_letter"),
    "generate": ProtocolTraits("drbode.evaluation.multiple_choice:by_stated_letter", writes=True),
    "chapter": ProtocolTraits("drbode.evaluation.multiple_choice:by_first_letter", limit=10),
    "written": ProtocolTraits(
        "drbode.evaluation.free_text:by_scorer",
        load="drbode.evaluation.free_text:load_prompts",
        reads="reference",
        writes=True,
        examples=False,
        scored=True,
    ),
    "open": ProtocolTraits(
        "drbode.evaluation.open_answers:by_rules",
        load="drbode.evaluation.open_answers:load_prompts",
        reads="pair",
        writes=True,
        examples=False,
        scored=True,
        of_runs=False,
    ),
}
Protocol = Annotated[str, OneOf(PROTOCOLS)]
Scorer = Annotated[str, OneOf((), or_function=True)]


def names(traits: Mapping[str, object], **wanted: object) -> list[str]:
    """The names of the entries that have all of these traits."""
    return [
        name
        for name, entry in traits.items()
        if all(getattr(entry, trait) == value for trait, value in wanted.items())
    ]
