"""What the benchmarks of training against trl have in common: arms, clock, memory, table, record.

A benchmark is a `Work`: a stage of drbode, rows for it, and how trl does the same. Every run of an
arm is a separate process, which has its peak memory to itself; the arms take turns, the first
one moving on from round to round, so that a machine that slows down slows all of them. All arms get
the same network, the same start of the adapter, the same rows in the same order, AdamW with the
same learning rate, linear schedule and clipping, and no gradient checkpointing. drbode runs by its
shipped settings otherwise, trl by its default ones but for the precision and the arm's name.
PyTorch's tensors lie in huge pages under drbode, which asks for them; under trl with --huge-pages.

The clock runs from the start of the training loop, before the first batch is put together, to the
end of the last optimizer step, and through a pass over the reference where one is made before;
imports, building the model and preparing the rows lie outside. Peak memory is the most that was
held once network and adapter are built (resident memory; on CUDA what PyTorch allocated), as it is
and less what was held at that point. The losses of every step must agree.
"""

import argparse
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parent / "records"
RESULT = "result.json"  # what a process of one run leaves
LIBRARIES = ("drbode", "torch", "transformers", "peft", "lightning", "trl", "accelerate")

SPECIAL = 3  # ids below are not drawn; the peer's tokenizer uses them to pad and to end
PAD, END = 0, 1
LEARNING_RATE = 1e-4
SEED = 0
AGREE = 1e-3  # the largest difference of a step's loss


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


def train(trainer: Any, clock: "Clock") -> list[float]:
    """Runs a trainer of trl under the clock; every step's loss."""
    from transformers import TrainerCallback

    class Timed(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step_done()

    trainer.add_callback(Timed())
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "grad_norm" in entry]


class Clock:
    """Seconds of the training loop, and memory from the point where everything is loaded."""

    def __init__(self, setting: Setting, began: float) -> None:
        self.setting = setting
        self.process_began = began
        self.before = 0.0  # seconds of passes ahead of the loop
        self.began = self.ended = self.loaded_gib = self.first_step = 0.0

    def loaded(self) -> None:
        """Network and adapter are built: from here on memory counts."""
        if self.setting.on_gpu:
            import torch

            torch.cuda.reset_peak_memory_stats()
            self.loaded_gib = torch.cuda.memory_allocated() / (1 << 30)
            return
        # The kernel forgets the peak so far; where it refuses, a peak would be that of the imports.
        Path("/proc/self/clear_refs").write_text("5")
        self.loaded_gib = _resident_gib("VmRSS")

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """Counts a pass that is made ahead of the loop."""
        began = self._now()
        yield
        self.before += self._now() - began

    def start(self) -> None:
        self.began = self._now()

    def step_done(self) -> None:
        self.ended = self._now()
        if not self.first_step:
            self.first_step = time.time() - self.process_began

    def _now(self) -> float:
        if self.setting.on_gpu:
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.before + self.ended - self.began

    @property
    def peak_gib(self) -> float:
        if self.setting.on_gpu:
            import torch

            return torch.cuda.max_memory_allocated() / (1 << 30)
        return _resident_gib("VmHWM")


def _resident_gib(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / (1 << 20)
    raise RuntimeError(f"/proc/self/status has no {name}; the memory is measured on Linux only")


def matrix_rate(setting: Setting) -> float:
    """Operations a second of large matrix products in the precision of the training."""
    import torch

    size = 8192 if setting.on_gpu else 1024
    dtype = torch.bfloat16 if setting.on_gpu else torch.float32
    a, b = (torch.randn(size, size, device=setting.device).to(dtype) for _ in range(2))
    clock, taken = Clock(setting, 0), []
    for _ in range(12):
        clock.before = 0.0
        with clock.ahead():
            torch.mm(a, b)
        taken.append(clock.before)
    return 2 * size**3 / statistics.median(taken[2:])


def operations(work: Work, arm: str, setting: Setting, trees: Sequence[Any]) -> float:
    """Multiplications and additions of an arm's frozen matrices and attention, at least.

    2 a parameter and token forward, 2 backward, for no frozen matrix has a gradient. drbode reads a
    prompt once and applies the head where something is predicted; a peer reads every row whole and
    padded, with its prompt, and applies the head everywhere. Attention is causal. What is written
    counts as a forward pass.
    """
    shape = SHAPES[setting.shape]
    if arm == "drbode":
        matrices, attention = forward(shape, trees, work.head)
    else:
        lengths = _peer_lengths(work.peers[arm], setting, trees)
        tokens = sum(lengths)
        matrices, attention = _products(
            shape, tokens, tokens if work.head else 0, sum(map(_causal, lengths))
        )
    return (2 * work.epochs + work.forward) * matrices + (
        3 * work.epochs + work.forward
    ) * attention


def forward(shape: Shape, trees: Sequence[Any], head: bool = True) -> tuple[float, float]:
    """Operations of drbode's one pass: of the matrices, and of the attention."""
    seen = 0
    for tree in trees:
        prompt = len(tree.prompt)
        seen += _causal(prompt)
        seen += sum(
            len(completion.ids) * prompt + _causal(len(completion.ids))
            for completion in tree.completions
        )
    tokens = sum(tree.tokens for tree in trees)
    predicted = sum(tree.supervised for tree in trees) if head else 0
    return _products(shape, tokens, predicted, seen)


def _products(shape: Shape, tokens: int, predicted: int, seen: int) -> tuple[float, float]:
    """Operations of a pass; `seen` counts pairs of a token and one that it sees."""
    matrices = 2 * (shape.layer_parameters * tokens + shape.width * shape.vocabulary * predicted)
    return matrices, 4 * shape.layers * shape.heads * shape.head_dim * seen


def _causal(length: int) -> int:
    """How many pairs of a token and one that it sees there are in a sequence."""
    return length * (length + 1) // 2


def _peer_lengths(arm: Mapping[str, Any], setting: Setting, trees: Sequence[Any]) -> list[int]:
    """Of the sequences that trl runs, as long as it makes them: those of a batch are padded."""
    size = batches(setting)[arm["batch"]]["per_device_train_batch_size"]
    lengths: list[int] = []
    for at in range(0, len(trees), size):
        batch = [len(t.prompt) + len(c.ids) for t in trees[at : at + size] for c in t.completions]
        lengths += batch if arm.get("padding_free") else [max(batch)] * len(batch)
    return lengths


# --- the arms, each in a separate process --------------------------------------------------------


def run_drbode(work: Work, setting: Setting, folder: Path, clock: Clock) -> list[float]:
    """drbode's stage, with a clock around its steps and the loss of every step kept."""
    import torch
    from lightning.pytorch.loggers.logger import Logger

    from drbode.config import TrainerConfig
    from drbode.data.splits import Ledger, Split
    from drbode.models.base import Policy
    from drbode.models.machine import Machine, keep_memory
    from drbode.models.methods import wrap
    from drbode.training import dpo, module
    from drbode.training.context import RunContext, StageContext
    from drbode.training.stages import run_stage

    losses: list[float] = []

    class Kept(Logger):
        name = "kept"
        version = ""

        def log_hyperparams(self, *_: Any, **__: Any) -> None:
            """There are none."""

        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            if (name := f"{work.stage}/train/loss") in metrics:
                losses.append(metrics[name])

    keep_memory()
    settings = stage_settings(work, setting)
    machine = (
        Machine("cuda", "bf16-mixed", "bf16", "flex", torch.get_num_threads())
        if setting.on_gpu
        else Machine("cpu", "32-true", "fp32", "sdpa", torch.get_num_threads())
    )
    held = machine.quantization(settings.qlora) if setting.method == "qlora" else None
    policy = Policy(make_network(setting, folder), tokenizer(setting), machine.attention, held)
    wrap(policy, settings.tuning())
    start(policy.network.to(setting.device))
    trees = work.trees(setting)
    _time(module.TrainingModule, dpo, clock)
    module.LOG_EVERY = 1
    clock.loaded()
    run_stage(
        StageContext(
            policy,
            work.stage,
            settings.stage(work.stage),
            Split(trees, Ledger()),
            None,
            RunContext(
                seed=SEED,
                machine=machine,
                trainer=TrainerConfig(setting.device, machine.precision, "auto", False, False),
                loggers=[Kept()],
                end=END,
                folder=folder,
                cache=folder / "cache",
                base={},
                probe=lambda: 0.0,
                reward=None,
            ),
            folder=folder / "checkpoints",
            step_offset=0,
        )
    )
    return losses


def _time(module: Any, dpo: Any, clock: Clock) -> None:
    """Puts the clock around drbode's steps, and around its pass over the reference."""
    begin, step, referred = module.on_train_start, module.training_step, dpo.with_reference

    def on_train_start(self: Any) -> None:
        begin(self)
        clock.start()

    def training_step(self: Any, *batch: Any) -> None:
        step(self, *batch)
        clock.step_done()

    def with_reference(*arguments: Any) -> Any:
        with clock.ahead():
            return referred(*arguments)

    module.on_train_start, module.training_step = on_train_start, training_step
    dpo.with_reference = with_reference


def run_arm(work: Work, arm: str, setting: Setting, folder: Path, began: float) -> Run:
    if arm != "drbode":  # whose import, which a peer's rows need as well, asks for them
        os.environ["THP_MEM_ALLOC_ENABLE"] = str(int(setting.huge_pages))
    import torch

    clock = Clock(setting, began)
    rows = in_order(work, setting)
    if arm == "drbode":
        losses = run_drbode(work, setting, folder, clock)
    else:
        losses = work.peer(work.peers[arm], setting, rows, folder, clock)
    peak = clock.peak_gib
    steps = work.epochs * -(-setting.rows // setting.rows_a_step)
    if len(losses) != steps:
        raise RuntimeError(f"{arm}: expected {steps} steps, it made {len(losses)}")
    rate = matrix_rate(setting)
    return Run(
        arm=arm,
        rows=len(rows),
        tokens=sum(tree.tokens for tree in rows),
        seconds=clock.seconds,
        first_step=clock.first_step,
        loaded_gib=clock.loaded_gib,
        peak_gib=peak,
        losses=losses,
        threads=torch.get_num_threads(),
        matrix_gflops=rate / 1e9,
        operations=operations(work, arm, setting, rows),
        floor=operations(work, "drbode", setting, rows) / rate,
    )


# --- what came out -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """Every arm's run in each round."""

    work: Work
    setting: Setting
    arms: Sequence[str]
    rounds: list[dict[str, Run]] = field(default_factory=list)

    def median(self, arm: str, value: Callable[[Run], float]) -> float:
        return statistics.median(value(runs[arm]) for runs in self.rounds)

    def ratios(self, peer: str, value: Callable[[Run], float]) -> list[float]:
        """drbode's value over the peer's, each within a round."""
        return [value(runs["drbode"]) / value(runs[peer]) for runs in self.rounds]

    @property
    def peers(self) -> list[str]:
        return [arm for arm in self.arms if arm != "drbode"]

    def loss_difference(self, peer: str) -> float:
        """The largest difference of a step's loss between drbode and a peer, over all rounds."""
        pairs = [
            pair
            for runs in self.rounds
            for pair in zip(runs["drbode"].losses, runs[peer].losses, strict=True)
        ]
        apart = [abs(ours - theirs) for ours, theirs in pairs]
        return max(apart, key=lambda gap: (math.isnan(gap), gap))  # nan is the largest

    def table(self) -> str:
        """Medians over the rounds; ratios are those within a round, their range in brackets."""
        unit = self.work.unit
        lines = [
            f"| | {unit}/s | tokens/s | share of the matrix rate, % | to the first step, s "
            "| peak, GiB | of it in training, GiB | operations, times drbode's "
            "| drbode is faster, times "
            "| drbode's peak is smaller, times | of it in training, times "
            "| largest difference of a step's loss |",
            "|---|" + "--:|" * 11,
        ]
        for arm in self.arms:
            cells = [
                arm,
                f"{self.median(arm, lambda run: run.rows_per_second):.2f}",
                f"{self.median(arm, lambda run: run.tokens_per_second):.0f}",
                f"{self.median(arm, lambda run: 100 * run.floor / run.seconds):.0f}",
                f"{self.median(arm, lambda run: run.first_step):.1f}",
                f"{self.median(arm, lambda run: run.peak_gib):.2f}",
                f"{self.median(arm, lambda run: run.increase_gib):.2f}",
            ]
            if arm == "drbode":
                cells += [""] * 5
            else:
                runs = self.rounds[0]  # the count is the same in all of them
                cells += [
                    f"{runs[arm].operations / runs['drbode'].operations:.2f}",
                    spread(self.ratios(arm, lambda run: run.rows_per_second)),
                    spread(self.ratios(arm, lambda run: 1 / run.peak_gib)),
                    spread(self.ratios(arm, lambda run: 1 / run.increase_gib)),
                    f"{self.loss_difference(arm):.1e}",
                ]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """Everything that was measured, and on what."""
        return {
            "benchmark": self.work.stage,
            **machine(LIBRARIES),
            "setting": asdict(self.setting),
            "shape": asdict(SHAPES[self.setting.shape]),
            "learning_rate": LEARNING_RATE,
            "seed": SEED,
            "precision": "bf16" if self.setting.on_gpu else "fp32",
            "peers": {peer: dict(self.work.peers[peer]) for peer in self.peers},
            "loss_difference": {peer: self.loss_difference(peer) for peer in self.peers},
            "rounds": [{arm: asdict(run) for arm, run in runs.items()} for runs in self.rounds],
        }

    def verdicts(self) -> list[str]:
        """A sentence for each target that the arms speak to."""
        sentences = []
        for target in self.work.targets:
            if target.peer not in self.arms:
                continue
            speed = statistics.median(self.ratios(target.peer, lambda run: run.rows_per_second))
            memory = statistics.median(self.ratios(target.peer, lambda run: 1 / run.increase_gib))
            sentences.append(
                f"{target.peer}: {speed:.2f} times as fast (target {target.speed:g}"
                + (
                    f"), 1/{memory:.2f} of the memory (target 1/{target.memory:g})"
                    if target.memory
                    else ")"
                )
            )
        return sentences


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def machine(libraries: Sequence[str]) -> dict[str, Any]:
    """What it ran on, and when."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in libraries},
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def turns(names: Sequence[str], number: int) -> Sequence[str]:
    """The arms in the order of a round: who begins moves on by one."""
    shift = number % len(names)
    return (*names[shift:], *names[:shift])


def measure(arm: str) -> Run:
    """An arm in a new process, started with the arguments of this one."""
    return Run(**fresh(arm, "--arm", arm))


def fresh(name: str, *words: str) -> dict[str, Any]:
    """What this script writes in a new process with these arguments beside its present ones."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*words, "--folder", folder, "--began", str(time.time())]
        done = subprocess.run(
            [sys.executable, *sys.argv, *arguments], env=environment, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stderr}")
        result: dict[str, Any] = json.loads((Path(folder) / RESULT).read_text())
        return result


def main(work: Work, description: str | None) -> None:
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="times every arm is run")
    parser.add_argument("--rows", type=int, default=32, help=f"{work.unit} of the one epoch")
    parser.add_argument("--rows-a-step", type=int, default=8, help="of them in an optimizer step")
    parser.add_argument("--row-tokens", type=int, help="of every row; default: lengths are drawn")
    parser.add_argument("--max-tokens", type=int, help="of drbode's micro-batches")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="small", help="of the network")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: in bf16")
    parser.add_argument("--method", choices=("lora", "qlora"), default="lora", help="qlora: NF4")
    parser.add_argument("--rank", type=int, default=16, help="of the adapter; alpha is twice it")
    parser.add_argument("--peers", default=",".join(work.peers), help="those to run beside drbode")
    parser.add_argument("--huge-pages", action="store_true", help="for the peers as well")
    parser.add_argument("--output", type=Path, help="file of the record")
    for hidden, kind in (("--arm", str), ("--folder", Path), ("--began", float)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    words = parser.parse_args()
    setting = Setting(
        shape=words.shape,
        device=words.device,
        method=words.method,
        rank=words.rank,
        rows=words.rows,
        rows_a_step=words.rows_a_step,
        row_tokens=words.row_tokens,
        max_tokens=words.max_tokens,
        huge_pages=words.huge_pages,
    )
    if words.arm is not None:  # the process of one run
        run = run_arm(work, words.arm, setting, words.folder, words.began)
        (words.folder / RESULT).write_text(json.dumps(asdict(run)))
        return
    peers = [peer for peer in words.peers.split(",") if peer]
    if unknown := set(peers) - set(work.peers):
        parser.error(f"--peers: expected some of {', '.join(work.peers)}, got {unknown.pop()}")
    result = Result(work, setting, ("drbode", *peers))
    for number in range(words.rounds):
        runs = {}
        for arm in turns(result.arms, number):
            runs[arm] = run = measure(arm)
            print(
                f"round {number + 1}, {arm}: {run.seconds:.1f} s, {run.rows_per_second:.2f} "
                f"{work.unit}/s, peak {run.peak_gib:.2f} GiB",
                file=sys.stderr,
            )
        result.rounds.append(runs)
    output = words.output or RECORDS / f"{work.stage}-{setting.name}.json"
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps(result.record(), indent=1) + "\n")
    print(result.table(), *result.verdicts(), sep="\n")
    apart = {peer: result.loss_difference(peer) for peer in peers}
    limit = AGREE if not setting.on_gpu else 0.05  # bf16 keeps 8 bits
    if unlike := [f"{peer} ({value:.1e})" for peer, value in apart.items() if not value < limit]:
        sys.exit(f"not trained alike, so the times compare nothing: {', '.join(unlike)}")
