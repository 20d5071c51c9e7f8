"""Supervised fine-tuning against trl 1.16's SFTTrainer: speed, memory, and that both learn alike.

    python experiments/benchmarks/sft.py --rounds 3

The small shape on the CPU in fp32: a Qwen3 of 6 layers and 25 M random parameters, LoRA of rank 16
on every linear layer but the head, and rows of random token ids with log-normal lengths, trained
on for one epoch in optimizer steps of 8 rows. All arms get the same network, the same LoRA start,
the same rows in the same order, AdamW with the same learning rate, linear schedule and clipping,
and no gradient checkpointing; the prompts' tokens are not learnt from. Nothing else is set: drbode
runs by its shipped settings, and the peer by its own, but for fp32 and what the arm's name says:

    drbode       this program
    trl          as it comes: a step is one batch of 8 rows, padded to the longest
    trl packed   padding_free: a step's rows in one sequence, kept apart by SDPA's mask (trl
                 recommends FlashAttention for it, which needs a GPU)
    trl single   no padding at all: 8 micro-batches of one row, accumulated

Every run is a process of its own, so that its peak memory is its own, and the arms take turns, so
that a machine that slows down or warms up slows or warms all of them. The clock runs from the start
of the training loop, before the first batch is put together, to the end of the last optimizer
step; imports, building the model and preparing the rows lie outside. Peak memory is the most
resident memory once network and adapter are built: as it is (with all that was imported), and less
what was resident at that point. The losses of every step must agree between drbode and trl.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_suffix(".json")
LIBRARIES = ("drbode", "torch", "transformers", "peft", "lightning", "trl", "accelerate")

VOCABULARY = 32_768
SPECIAL = 3  # ids below are not drawn; the peer's tokenizer uses them to pad and to end
ROWS_A_STEP = 8
LEARNING_RATE = 1e-4
SEED = 0
AGREE = 1e-3  # nats a token; the largest difference of a step's loss

# What an arm of the peer sets, apart from what makes it comparable.
PEERS: dict[str, dict[str, Any]] = {
    "trl": {"per_device_train_batch_size": ROWS_A_STEP},
    "trl packed": {
        "per_device_train_batch_size": ROWS_A_STEP,
        "padding_free": True,
        "max_length": None,  # trl refuses to cut rows here; none is longer than its limit
    },
    "trl single": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": ROWS_A_STEP},
}
ARMS = ("drbode", *PEERS)

Row = tuple[list[int], list[int]]  # ids of the prompt, ids of the completion


@dataclass(frozen=True)
class Run:
    """What one process measured."""

    arm: str
    rows: int
    tokens: int  # real ones
    seconds: float
    loaded_gib: float  # resident once network and adapter are built
    peak_gib: float
    losses: list[float]  # a step, nats a supervised token
    threads: int  # PyTorch's choice

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


def make_rows(count: int) -> list[Row]:
    """Prompts and completions of random ids, their lengths log-normal within limits."""
    draw = random.Random(SEED)

    def ids(mean: float, deviation: float, low: int, high: int) -> list[int]:
        length = min(max(round(draw.lognormvariate(mean, deviation)), low), high)
        return [draw.randrange(SPECIAL, VOCABULARY) for _ in range(length)]

    return [(ids(3.6, 0.6, 8, 200), ids(4.2, 0.7, 8, 400)) for _ in range(count)]


def make_network() -> Any:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(SEED)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=384,
            intermediate_size=1024,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=64,
            tie_word_embeddings=True,
            max_position_embeddings=2048,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
    )


def make_policy() -> Any:
    """The network with its adapter, as drbode holds it; `run_trl` draws the same one."""
    from drbode import config
    from drbode.models.base import Policy
    from drbode.models.methods import wrap

    policy = Policy(make_network(), tokenizer=None)
    words = ["lora.r=16", f"seed={SEED}"]
    wrap(policy, config.load(config.compose("train", words), words).resolved())
    return policy


def stage_config() -> Any:
    """The shipped settings of `sft`, but for what the peer is to share."""
    from drbode.config import TrainConfig, build, compose

    asked = [
        f"sft.learning_rate={LEARNING_RATE}",
        "sft.schedule=linear",
        "sft.warmup_ratio=0",
        "sft.betas=[0.9,0.999]",
        "sft.weight_decay=0",
        "sft.max_grad_norm=1",
        "sft.epochs=1",
        f"sft.global_batch_size={ROWS_A_STEP}",
    ]
    return build(TrainConfig, compose("train", asked)).resolved().sft


def make_split(rows: Sequence[Row]) -> Any:
    from drbode.data.steps import Ledger, Split
    from drbode.data.trees import Completion, Tree

    trees = [Tree(p, [Completion(c, [True] * len(c))]) for p, c in rows]
    return Split(trees, Ledger())


class Clock:
    """Seconds of the training loop, and memory from the point where everything is loaded."""

    def __init__(self) -> None:
        self.began = self.ended = 0.0
        # The kernel forgets the peak so far; where it refuses, a peak would be that of the imports.
        Path("/proc/self/clear_refs").write_text("5")
        self.loaded_gib = _resident_gib("VmRSS")

    def start(self) -> None:
        self.began = time.perf_counter()

    def step_done(self) -> None:
        self.ended = time.perf_counter()

    def run(self, arm: str, rows: Sequence[Row], losses: list[float]) -> Run:
        import torch

        steps = -(-len(rows) // ROWS_A_STEP)
        if len(losses) != steps:
            raise RuntimeError(f"{arm}: expected {steps} steps, it made {len(losses)}")
        return Run(
            arm=arm,
            rows=len(rows),
            tokens=sum(len(p) + len(c) for p, c in rows),
            seconds=self.ended - self.began,
            loaded_gib=self.loaded_gib,
            peak_gib=_resident_gib("VmHWM"),
            losses=losses,
            threads=torch.get_num_threads(),
        )


def _resident_gib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / (1 << 20)
    raise RuntimeError(f"/proc/self/status has no {field}; the memory is measured on Linux only")


# --- the arms, each in a process of its own ----------------------------------------------------


def run_drbode(rows: Sequence[Row], folder: Path) -> Run:
    """drbode's own stage, with a clock around its steps and the loss of every step kept."""
    import torch
    from lightning.pytorch.loggers.logger import Logger

    from drbode.config import TrainerConfig
    from drbode.data.steps import Step
    from drbode.models.machine import Machine
    from drbode.training import module, stages
    from drbode.training.clm import CLMModule

    losses: list[float] = []

    class Kept(Logger):
        name = "kept"
        version = ""

        def log_hyperparams(self, *_: Any, **__: Any) -> None:
            """There are none."""

        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            losses.append(metrics["sft/train/loss"])

    class Timed(CLMModule):
        def on_train_start(self) -> None:
            super().on_train_start()
            clock.start()

        def training_step(self, step: Step, _index: int) -> None:
            super().training_step(step, _index)
            clock.step_done()

    stages.CLMModule = Timed  # type: ignore[attr-defined, misc]
    module.LOG_EVERY = 1
    policy = make_policy()
    split, config = make_split(rows), stage_config()
    clock = Clock()
    stages.run_stage(
        policy,
        "sft",
        config,
        split,
        None,
        seed=SEED,
        machine=Machine("cpu", "32-true", "fp32", "sdpa", torch.get_num_threads()),
        trainer_config=TrainerConfig("cpu", "32-true", "auto", False, False),
        loggers=[Kept()],
        folder=folder,
        step_offset=0,
    )
    return clock.run("drbode", rows, losses)


def run_trl(arm: str, rows: Sequence[Row], folder: Path) -> Run:
    """trl on the rows in the order in which drbode trains on them."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from drbode.data.steps import StepLoader

    class Timed(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step_done()

    plan = StepLoader(make_split(rows).trees, stage_config(), SEED).plan
    data = Dataset.from_list(
        [
            {"input_ids": p + c, "completion_mask": [0] * len(p) + [1] * len(c)}
            for p, c in (rows[i] for step in plan for i in step)
        ]
    )
    words = {"[pad]": 0, "[end]": 1, "[unknown]": 2}
    words |= {f"w{i}": i for i in range(SPECIAL, VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="[unknown]")),
        pad_token="[pad]",
        eos_token="[end]",
    )
    network = make_network()
    torch.manual_seed(SEED)  # as in drbode's `wrap`: the same draw of the adapter
    network = get_peft_model(
        network,
        LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"),
    )
    clock = Clock()
    trainer = SFTTrainer(
        network,
        SFTConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            completion_only_loss=True,
            train_sampling_strategy="sequential",
            num_train_epochs=1,
            learning_rate=LEARNING_RATE,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            **PEERS[arm],
        ),
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[Timed()],
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "grad_norm" in entry]
    return clock.run(arm, rows, losses)


def measure(arm: str, rows: int) -> Run:
    """An arm in a fresh process."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as folder:
        found = subprocess.run(
            [sys.executable, __file__, "--arm", arm, "--rows", str(rows), "--folder", folder],
            env=environment,
            capture_output=True,
            text=True,
        )
        if found.returncode:
            sys.exit(f"{arm} failed:\n{found.stderr}")
        return Run(**json.loads((Path(folder) / "run.json").read_text()))


# --- what came out -----------------------------------------------------------------------------


def rounds_of(count: int, rows: int) -> list[dict[str, Run]]:
    """Every arm once a round; who begins moves on by one, so that none always runs first."""
    rounds = []
    for number in range(count):
        shift = number % len(ARMS)
        runs = {}
        for arm in (*ARMS[shift:], *ARMS[:shift]):
            runs[arm] = run = measure(arm, rows)
            print(
                f"round {number + 1}, {arm}: {run.seconds:.1f} s, {run.rows_per_second:.2f} rows/s,"
                f" peak {run.peak_gib:.2f} GiB",
                file=sys.stderr,
            )
        rounds.append(runs)
    return rounds


def loss_difference(rounds: Sequence[Mapping[str, Run]], peer: str) -> float:
    """The largest difference of a step's loss between drbode and a peer, over all rounds."""
    pairs = [
        pair
        for runs in rounds
        for pair in zip(runs["drbode"].losses, runs[peer].losses, strict=True)
    ]
    return max(abs(ours - theirs) for ours, theirs in pairs)


def table(rounds: Sequence[Mapping[str, Run]]) -> str:
    """Medians over the rounds; ratios are taken within a round, with their range in brackets."""

    def median(arm: str, value: Callable[[Run], float]) -> float:
        return statistics.median(value(runs[arm]) for runs in rounds)

    def ratio(value: Callable[[Run, Run], float], peer: str) -> str:
        found = [value(runs["drbode"], runs[peer]) for runs in rounds]
        return f"{statistics.median(found):.2f} ({min(found):.2f}-{max(found):.2f})"

    lines = [
        "| | rows/s | tokens/s | peak, GiB | of it in training, GiB | drbode is faster, times "
        "| drbode's peak is smaller, times | largest difference of a step's loss |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for arm in ARMS:
        cells = [
            arm,
            f"{median(arm, lambda run: run.rows_per_second):.2f}",
            f"{median(arm, lambda run: run.tokens_per_second):.0f}",
            f"{median(arm, lambda run: run.peak_gib):.2f}",
            f"{median(arm, lambda run: run.increase_gib):.2f}",
        ]
        if arm == "drbode":
            cells += ["", "", ""]
        else:
            cells += [
                ratio(lambda ours, theirs: ours.rows_per_second / theirs.rows_per_second, arm),
                ratio(lambda ours, theirs: theirs.peak_gib / ours.peak_gib, arm),
                f"{loss_difference(rounds, arm):.1e}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def describe(rounds: Sequence[Mapping[str, Run]], rows: int) -> dict[str, Any]:
    """Everything that was measured, and on what."""
    return {
        "benchmark": "sft",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "shape": {
            "rows": rows,
            "rows_a_step": ROWS_A_STEP,
            "learning_rate": LEARNING_RATE,
            "seed": SEED,
            "precision": "fp32",
        },
        "peers": PEERS,
        "loss_difference": {peer: loss_difference(rounds, peer) for peer in PEERS},
        "rounds": [{arm: asdict(run) for arm, run in runs.items()} for runs in rounds],
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="times every arm is run")
    parser.add_argument("--rows", type=int, default=64, help="rows of the data set, one epoch")
    parser.add_argument("--output", type=Path, default=RECORD, help="file of the record")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.arm is not None:  # the process of one run
        rows = make_rows(asked.rows)
        run = (
            run_drbode(rows, asked.folder)
            if asked.arm == "drbode"
            else run_trl(asked.arm, rows, asked.folder)
        )
        (asked.folder / "run.json").write_text(json.dumps(asdict(run)))
        return
    rounds = rounds_of(asked.rounds, asked.rows)
    asked.output.write_text(json.dumps(describe(rounds, asked.rows), indent=1) + "\n")
    print(table(rounds))
    apart = loss_difference(rounds, "trl")
    print(f"\nlargest difference of a step's loss from trl: {apart:.1e} (limit {AGREE:g})")
    if not apart < AGREE:
        sys.exit("drbode and trl did not train alike: the times above compare nothing")


if __name__ == "__main__":
    main()
