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
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from costs import Clock, matrix_rate, operations
from workload import (
    END,
    LEARNING_RATE,
    SEED,
    SHAPES,
    Run,
    Setting,
    Work,
    in_order,
    make_network,
    stage_settings,
    start,
    tokenizer,
)

RECORDS = Path(__file__).parent / "records"
RESULT = "result.json"  # what a process of one run leaves
LIBRARIES = ("drbode", "torch", "transformers", "peft", "lightning", "trl", "accelerate")

AGREE = 1e-3  # the largest difference of a step's loss


# --- the arms, each in a separate process --------------------------------------------------------


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


def run_drbode(work: Work, setting: Setting, folder: Path, clock: Clock) -> list[float]:
    """drbode's stage, with a clock around its steps and the loss of every step kept."""
    import torch

    from drbode.config import TrainerConfig
    from drbode.data.splits import Ledger, Split
    from drbode.models.base import Policy
    from drbode.models.machine import Machine, keep_memory
    from drbode.models.methods import wrap
    from drbode.training import dpo, module
    from drbode.training.context import RunContext, StageContext
    from drbode.training.stages import run_stage

    losses: list[float] = []
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
                loggers=[_loss_logger(work.stage, losses)],
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


def _loss_logger(stage: str, losses: list[float]) -> Any:
    """A logger that appends the stage's training loss of every step to `losses`."""
    from lightning.pytorch.loggers.logger import Logger

    class Kept(Logger):
        name = "kept"
        version = ""

        def log_hyperparams(self, *_: Any, **__: Any) -> None:
            """There are none."""

        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            if (name := f"{stage}/train/loss") in metrics:
                losses.append(metrics[name])

    return Kept()


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
