"""What a training run prints: its plan before it begins, its results at the end."""

from collections.abc import Mapping
from typing import Any

from drbode.config import StageConfig, TrainConfig
from drbode.record import Run
from drbode.reporting import terminal


def show_plan(config: TrainConfig, run: Run) -> None:
    """What the run is about to do; `config` is resolved."""
    inputs, machine, model = run.record.data, run.record.machine, run.record.model
    assert inputs is not None, "noted before"
    trainable, total = model["trainable_parameters"], model["parameters"]
    plan = {
        "model": f"{config.model.path}, {total:,} parameters",
        "method": f"{config.method}, trains {trainable:,} ({100 * trainable / total:.2f} %)",
        "stages": " -> ".join(config.stages),
        **{
            stage: f"{terminal.ledger(inputs.stages[stage]['train'])}; {_length(block)}"
            for stage, block in config.blocks().items()
        },
        **({} if inputs.curation is None else {"curation": terminal.curation(inputs.curation)}),
        "benchmark": terminal.benchmark(config.benchmark, inputs.benchmark),
        "contamination": terminal.contamination(inputs.contamination or {}),
        **_open_plan(config, inputs.open),
        "computes": f"{machine['accelerator']}, {machine['precision']}, weights "
        f"{machine['dtype']}, {machine['threads']} threads",
        "writes": str(run.folder),
    }
    terminal.show_plan(plan)
    if inputs.curation is not None:
        terminal.show_funnel(inputs.curation["funnel"])


def show_run(run: Run) -> None:
    """The results of a finished run, before its first stage and after each."""
    record, folder = run.record, run.folder
    assert record.base is not None, "a finished run has measured its base"
    results = {"base": record.base, **record.stages}
    terminal.show_benchmark(results)
    terminal.show_forgetting({name: measured.forgetting for name, measured in results.items()})
    opened = {name: measured.open for name, measured in results.items() if measured.open}
    if opened:
        terminal.show_open(opened)
        terminal.show_side_by_side(folder / "open" / "side_by_side.csv")
    for name, stage in record.stages.items():
        loss = stage.validation_loss
        held_out = "" if loss is None else f", validation loss {loss:.3f}"
        print(
            f"{name}: {stage.steps} steps, {stage.tokens} tokens in {stage.seconds:.0f} s "
            f"({stage.tokens_per_second:.0f} tokens/s), peak memory "
            f"{stage.peak_memory_gib:.2f} GiB{held_out}"
        )
        if line := terminal.held_out(name, stage.measures):
            print(line)
    print(
        f"written to {folder}: record.json, metrics.csv, curves.png, benchmark/*.jsonl, "
        f"{'curation/, ' if (folder / 'curation').is_dir() else ''}"
        f"{'contamination.jsonl, ' if (folder / 'contamination.jsonl').exists() else ''}"
        f"{'open/, ' if opened else ''}{', '.join(f'{name}/' for name in record.stages)}"
    )


def _open_plan(config: TrainConfig, opened: Mapping[str, Any] | None) -> dict[str, str]:
    stage = config.aligning
    if stage is None or not config.open.prompts:
        return {}
    if opened is None:
        return {"open": f"no open answers: {stage} holds out no prompt that fits"}
    left_out = f", {opened['left_out']} too long" if opened["left_out"] else ""
    return {"open": f"{opened['prompts']} held-out prompts of {stage}{left_out}"}


def _length(block: StageConfig) -> str:
    if block.steps is not None:
        return f"{block.steps} steps"
    if block.tokens is not None:
        return f"{block.tokens} tokens"
    return f"{block.epochs:g} epochs"
