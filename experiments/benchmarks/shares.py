"""Where the time of drbode's optimizer steps goes, by the kind of operation.

    python experiments/benchmarks/shares.py
    python experiments/benchmarks/shares.py --shape 0.6b-4

The third step of each stage's benchmark, forward and backward, clipping and optimizer, under
PyTorch's profiler, which adds to the time of small operations. An operation counts as what it is
part of: with the log-probabilities go their matrix products, and the rest is norms, activations,
rotations, sums and the optimizer.
"""

import argparse
import importlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import costs
import harness
import workload

WORKS = ("sft", "dpo", "reward")
STEP = 2  # is profiled, from 0 on
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm")
KINDS = ("layers' products", "LoRA's products", "log-probabilities", "attention", "the rest")


def kind(event: Any, rank: int) -> str:
    """What an operation belongs to."""
    around, above = [event.name], event.cpu_parent
    while above is not None:
        around.append(above.name)
        above = above.cpu_parent
    if any("_TokenLogps" in name for name in around):
        return "log-probabilities"
    if any("_scaled_dot_product" in name for name in around):
        return "attention"
    if event.name not in PRODUCTS:
        return "the rest"
    small = any(rank in shape for shape in event.input_shapes)
    return "LoRA's products" if small else "layers' products"


def profiled(name: str, setting: workload.Setting, folder: Path, began: float) -> dict[str, Any]:
    """Seconds of each kind of operation in one step, and its floor."""
    from torch.profiler import ProfilerActivity, profile

    from drbode.training.module import TrainingModule

    work = importlib.import_module(name).WORK
    step, seconds = TrainingModule.training_step, dict.fromkeys(KINDS, 0.0)

    def training_step(self: Any, *batch: Any) -> None:
        if self.optimizer_steps != STEP:
            step(self, *batch)
            return
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as trace:
            step(self, *batch)
        for event in trace.events():
            seconds[kind(event, setting.rank)] += event.self_cpu_time_total / 1e6

    TrainingModule.training_step = training_step  # type: ignore[method-assign]
    harness.run_drbode(work, setting, folder, costs.Clock(setting, began))
    at = STEP * setting.rows_a_step
    trees = workload.in_order(work, setting)[at : at + setting.rows_a_step]
    learning = replace(work, forward=0)  # a pass ahead of the steps is not in it
    operations = costs.operations(learning, "drbode", setting, trees)
    return {
        "tokens": sum(tree.tokens for tree in trees),
        "predicted": sum(tree.supervised for tree in trees) if work.head else 0,
        "seconds": seconds,
        "floor": operations / costs.matrix_rate(setting),
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    heads = [f"{name} ({result['tokens']} tokens)" for name, result in results.items()]
    lines = [f"| | {' | '.join(heads)} |", "|---|" + "--:|" * len(heads)]
    totals = {name: sum(result["seconds"].values()) for name, result in results.items()}
    for one in KINDS:
        cells = [
            f"{100 * result['seconds'][one] / totals[name]:.0f} %"
            for name, result in results.items()
        ]
        lines.append(f"| {one} | {' | '.join(cells)} |")
    cells = [f"{total:.2f}" for total in totals.values()]
    lines.append(f"| seconds of the step | {' | '.join(cells)} |")
    cells = [f"{result['floor']:.2f}" for result in results.values()]
    lines.append(
        f"| of layers, head and attention at the rate of large ones | {' | '.join(cells)} |"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shape", choices=tuple(workload.SHAPES), default="small")
    parser.add_argument("--rows-a-step", type=int, default=8, help="of them in an optimizer step")
    parser.add_argument("--output", type=Path, help="file of the record")
    for hidden, type_ in (("--work", str), ("--folder", Path), ("--began", float)):
        parser.add_argument(hidden, type=type_, help=argparse.SUPPRESS)
    words = parser.parse_args()
    rows = (STEP + 1) * words.rows_a_step
    setting = workload.Setting(words.shape, "cpu", "lora", 16, rows, words.rows_a_step, None, None)
    if words.work is not None:  # the process of one profile
        result = profiled(words.work, setting, words.folder, words.began)
        (words.folder / harness.RESULT).write_text(json.dumps(result))
        return
    steps = {name: harness.fresh(name, "--work", name) for name in WORKS}
    output = words.output or harness.RECORDS / f"shares-{setting.name}.json"
    record = {
        "benchmark": "shares",
        **harness.machine(harness.LIBRARIES),
        "setting": asdict(setting),
        "steps": steps,
    }
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps(record, indent=1) + "\n")
    print(table(steps))


if __name__ == "__main__":
    main()
