"""What all arms of a benchmark share: shapes, settings, networks, rows and the peer's settings."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from costs import Clock

SPECIAL = 3  # ids below are not drawn; the peer's tokenizer uses them to pad and to end
PAD, END = 0, 1
LEARNING_RATE = 1e-4
SEED = 0


@dataclass(frozen=True)
class Shape:
    """The architecture of a Qwen3 with tied embeddings and random weights."""

    width: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    @property
    def layer_parameters(self) -> int:
        """Of all layers' matrices: those a token is multiplied with before the head."""
        attention = 2 * self.width * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.width * self.mlp)


SHAPES = {
    "small": Shape(384, 1024, 6, 6, 2, 64, 32_768),  # 25 M parameters
    "0.6b-4": Shape(1024, 3072, 4, 16, 8, 128, 151_936),  # Qwen3-0.6B's, cut to 4 layers
    "1.7b": Shape(2048, 6144, 28, 16, 8, 128, 151_936),  # Qwen3-1.7B's
}

Lengths = tuple[float, float, int, int]  # mean and deviation of the logarithm, least, most


@dataclass(frozen=True)
class Setting:
    """What all arms of a benchmark are given."""

    shape: str
    device: str
    method: str
    rank: int
    rows: int
    rows_a_step: int
    row_tokens: int | None  # of every row alike; None: lengths are drawn
    max_tokens: int | None  # of drbode's micro-batches; None: as shipped
    huge_pages: bool = False  # for the peers' tensors too

    @property
    def name(self) -> str:
        parts = [self.shape, self.device]
        if self.device == "cuda":
            parts += [self.method, f"r{self.rank}"]
        if self.row_tokens is not None:
            parts.append(f"{self.row_tokens}tokens")
        if self.max_tokens is not None:
            parts.append(f"batches{self.max_tokens}")
        if self.huge_pages:
            parts.append("hugepages")
        return "-".join(parts)

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"


@dataclass(frozen=True)
class Target:
    """At least so many times as fast as a peer, and at most 1 / `memory` of what it adds."""

    peer: str
    speed: float
    memory: float | None = None


@dataclass(frozen=True)
class Work:
    """A stage of drbode beside the same in trl.

    `peer` trains as the arm's settings in `peers` say, on trees in the order in which drbode does,
    and returns each step's loss.
    """

    stage: Any
    unit: str  # what a row is
    peers: Mapping[str, Mapping[str, Any]]
    targets: Sequence[Target]
    trees: Callable[[Setting], list[Any]]
    peer: Callable[[Mapping[str, Any], Setting, list[Any], Path, "Clock"], list[float]]
    head: bool  # whether its loss is made of log-probabilities
    forward: int = 0  # passes over every row without a gradient
    epochs: int = 1  # passes with one
    words: Sequence[str] = ()  # its further settings

    @property
    def arms(self) -> tuple[str, ...]:
        return ("drbode", *self.peers)


@dataclass(frozen=True)
class Run:
    """What one process measured."""

    arm: str
    rows: int
    tokens: int  # real ones; a prompt counts once, however often it is computed
    seconds: float
    first_step: float  # seconds from the start of the process to the end of the first step
    loaded_gib: float  # held once network and adapter are built
    peak_gib: float
    losses: list[float]  # a step
    threads: int  # PyTorch's choice
    matrix_gflops: (
        float  # a second, in products of 1 024 (CUDA: 8 192) rows and columns, afterwards
    )
    operations: float  # of the arm's matrix products and attention, padding and all, at least
    floor: float  # seconds that drbode's operations would take at that rate

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def increase_gib(self) -> float:
        return self.peak_gib - self.loaded_gib


# --- what all arms share -----------------------------------------------------------------------


def draw_ids(draw: random.Random, lengths: Lengths, vocabulary: int) -> list[int]:
    """Random ids, their number log-normal within limits."""
    mean, deviation, least, most = lengths
    length = min(max(round(draw.lognormvariate(mean, deviation)), least), most)
    return [draw.randrange(SPECIAL, vocabulary) for _ in range(length)]


def completion(ids: list[int]) -> Any:
    from drbode.trees import Completion

    return Completion(ids, [True] * len(ids))


def make_network(setting: Setting, folder: Path) -> Any:
    """The network of random weights; in 4 bits for qlora, through a copy in `folder`."""
    import torch
    from transformers import BitsAndBytesConfig, Qwen3Config, Qwen3ForCausalLM

    shape = SHAPES[setting.shape]
    dtype = torch.bfloat16 if setting.on_gpu else torch.float32
    torch.manual_seed(SEED)
    with torch.device(setting.device):
        network = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=shape.vocabulary,
                hidden_size=shape.width,
                intermediate_size=shape.mlp,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                num_key_value_heads=shape.kv_heads,
                head_dim=shape.head_dim,
                tie_word_embeddings=True,
                max_position_embeddings=16_384,
                bos_token_id=None,
                eos_token_id=END,
                pad_token_id=PAD,
            )
        ).to(dtype)
    if setting.method == "lora":
        return network
    network.save_pretrained(folder / "base")
    del network
    return Qwen3ForCausalLM.from_pretrained(
        folder / "base",
        dtype=dtype,
        device_map=setting.device,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
    )


def start(network: Any) -> Any:
    """Gives the trainable tensors their start, the same in every arm: A drawn, all else zero."""
    import torch

    torch.manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                drawn = torch.zeros(parameter.shape)
                if "lora_A" in name:
                    torch.nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))
                parameter.copy_(drawn)
    return network


def adapted(network: Any, setting: Setting, task: str) -> Any:
    """trl's network with its adapter, as drbode's `wrap` makes it."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type=task,
        r=setting.rank,
        lora_alpha=2 * setting.rank,
        target_modules="all-linear",
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
    )
    return start(get_peft_model(network, config))


def stage_settings(work: Work, setting: Setting) -> Any:
    """The shipped settings of the stage, but for what the peer is to share."""
    from drbode import config

    words = [
        f"stages=[{work.stage}]",
        f"method={setting.method}",
        f"lora.r={setting.rank}",
        f"seed={SEED}",
        *(
            f"{work.stage}.{word}"
            for word in (
                f"learning_rate={LEARNING_RATE}",
                "optimizer=adamw",
                "schedule=linear",
                "warmup_ratio=0",
                "betas=[0.9,0.999]",
                "weight_decay=0",
                "max_grad_norm=1",
                "epochs=1",
                f"global_batch_size={setting.rows_a_step}",
                *work.words,
                *([f"max_tokens={setting.max_tokens}"] if setting.max_tokens else []),
            )
        ),
    ]
    return config.load(config.compose("train", words), words).resolved()


def in_order(work: Work, setting: Setting) -> list[Any]:
    """The rows in the order in which drbode trains on them."""
    from drbode.data.steps import StepLoader
    from drbode.training.ppo import Prompts

    trees = work.trees(setting)
    kind = Prompts if work.stage == "ppo" else StepLoader
    plan = kind(trees, stage_settings(work, setting).stage(work.stage), SEED).plan
    return [trees[i] for step in plan for i in step]


def trl_settings(setting: Setting, folder: Path) -> dict[str, Any]:
    """What makes a trainer of trl comparable."""
    return {
        "output_dir": str(folder),
        "use_cpu": not setting.on_gpu,
        "bf16": setting.on_gpu,
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }


def batches(setting: Setting) -> dict[str, dict[str, int]]:
    """How trl makes a step: of one padded batch, or of rows that are added up one by one."""
    return {
        "whole": {"per_device_train_batch_size": setting.rows_a_step},
        "single": {
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": setting.rows_a_step,
        },
    }


def tokenizer(setting: Setting) -> Any:
    """A tokenizer of the network's ids, of which trl asks how to pad and to end."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {"[pad]": PAD, "[end]": END, "[unknown]": 2}
    words |= {f"w{i}": i for i in range(SPECIAL, SHAPES[setting.shape].vocabulary)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="[unknown]")),
        pad_token="[pad]",
        eos_token="[end]",
    )
