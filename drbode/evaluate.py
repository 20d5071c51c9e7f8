"""python -m drbode.evaluate: scores one model on one benchmark."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drbode import config
from drbode.config import EvaluateConfig

if TYPE_CHECKING:
    from drbode.record import Run


def job(tree: Mapping[str, Any], overrides: list[str], multirun: bool) -> None:
    """What Hydra calls, once an evaluation."""
    from drbode import record

    asked = config.build(EvaluateConfig, tree)
    if not multirun:
        config.refuse_unread(overrides, asked.benchmark.unread())
    folder = Path(asked.output_dir) / asked.run_name()
    with record.open_run(folder, asked.effective(), overrides, asked.force) as run:
        if run.finished:
            print(f"{folder} is finished; force=true does it again")
        else:
            _evaluate(asked, run)
        _show(run)


def _evaluate(asked: EvaluateConfig, run: "Run") -> None:
    import time

    from drbode import record
    from drbode.data.prompts import Renderer
    from drbode.evaluation import multiple_choice
    from drbode.models import machine as machines
    from drbode.models.base import load_policy, quantization_of
    from drbode.reporting import terminal

    machine = machines.resolve(asked.trainer, asked.model, None)
    benchmark = multiple_choice.load_benchmark(asked.benchmark, asked.data.conditions)
    policy = load_policy(
        asked.model,
        machine.torch_dtype,
        machine.attention,
        quantization=quantization_of(asked.model),
    )
    policy.network.to(machine.accelerator)
    terminal.show_plan(
        {
            "model": f"{asked.model.path}, {policy.count()[1]:,} parameters",
            "benchmark": f"{asked.benchmark.path}, {len(benchmark.questions)} questions, "
            f"{asked.benchmark.protocol}",
            "writes": str(run.folder),
        }
    )
    began = time.perf_counter()
    answers = multiple_choice.answer(
        policy,
        Renderer(policy.tokenizer, policy.context),
        benchmark.questions,
        asked.benchmark,
        machine,
    )
    seconds = time.perf_counter() - began
    record.write_jsonl(run.folder / "benchmark" / "model.jsonl", [a.as_row() for a in answers])
    run.data["machine"] |= machine.as_dict()
    run.data["data"] = {
        "benchmark": {"questions": len(benchmark.questions), "digest": benchmark.digest}
    }
    run.data["model"] = {"parameters": policy.count()[1]}
    run.data["result"] = {"summary": multiple_choice.summarise(answers), "seconds": seconds}


def _show(run: "Run") -> None:
    from drbode.reporting import terminal

    terminal.show_benchmark({"model": run.data["result"]})
    questions = run.data["result"]["summary"]["questions"]
    print(f"{questions / run.data['result']['seconds']:.1f} questions/s")
    print(f"written to {run.folder}: record.json, benchmark/model.jsonl")


if __name__ == "__main__":
    config.open_door("evaluate", job)
