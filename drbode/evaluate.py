"""python -m drbode.evaluate: scores one model on one benchmark, or open answers of several."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drbode import config
from drbode.config import BadInput, Done, EvaluateConfig, ModelConfig, ModelKind

if TYPE_CHECKING:
    from drbode.models.base import Policy
    from drbode.models.machine import Machine
    from drbode.record import Run


def job(tree: Mapping[str, Any], overrides: list[str], multirun: bool) -> Done:
    """What Hydra calls, once an evaluation."""
    from drbode import record

    settings = config.build(EvaluateConfig, tree)
    if not multirun:
        config.refuse_unread(overrides, settings.unread())
    folder = Path(settings.output_dir) / settings.run_name()
    with record.open_run(folder, settings.effective(), overrides, settings.force) as run:
        if run.finished:
            print(f"{folder} is finished; force=true does it again")
        elif settings.benchmark.traits.of_runs:
            _benchmark(settings, run)
        else:
            _open(settings, run)
        _show(settings, run)
    return Done(folder)


def name(tree: Mapping[str, Any]) -> str:
    """The evaluation that a job of a multirun would make."""
    return config.build(EvaluateConfig, tree).run_name()


def _benchmark(settings: EvaluateConfig, run: "Run") -> None:
    import time

    from drbode import record
    from drbode.data.prompts import Renderer
    from drbode.evaluation import benchmarks
    from drbode.models import machine as machines
    from drbode.reporting import terminal

    machine = machines.resolve(settings.trainer, settings.model, None)
    benchmark = benchmarks.load_benchmark(settings.benchmark, settings.data.conditions)
    either = settings.benchmark.traits.encoders and not settings.benchmark.shots
    policy = _load(settings.model, machine, kind=None if either else "decoder")
    terminal.show_plan(
        {
            "model": f"{settings.model.path}, {policy.count()[1]:,} parameters",
            "benchmark": terminal.benchmark(settings.benchmark, benchmark.as_dict()),
            "writes": str(run.folder),
        }
    )
    began = time.perf_counter()
    answers = benchmarks.answer(
        policy,
        Renderer(policy.tokenizer, policy.context),
        benchmark.rows,
        settings.benchmark,
        machine,
    )
    seconds = time.perf_counter() - began
    record.write_jsonl(run.folder / "benchmark" / "model.jsonl", [a.as_row() for a in answers])
    run.record.machine |= machine.as_dict()
    run.record.data = record.Inputs(stages={}, benchmark=benchmark.as_dict())
    run.record.model = {"parameters": policy.count()[1]}
    run.record.result = {
        "summary": benchmarks.summarise(answers),
        "cost": benchmarks.cost(answers),
        "seconds": seconds,
    }


def _open(settings: EvaluateConfig, run: "Run") -> None:
    import time

    from drbode import record
    from drbode.evaluation import open_answers
    from drbode.models import machine as machines
    from drbode.models.base import speaking_as
    from drbode.models.heads import load_reward_model
    from drbode.reporting import terminal

    machine = machines.resolve(settings.trainer, settings.model, None)
    prompts = open_answers.load_prompts(settings.benchmark, settings.data.conditions)
    models = _models(settings)
    policy = _load(settings.model, machine)
    limit = settings.benchmark.max_new_tokens
    if limit >= policy.context:
        raise BadInput(
            f"benchmark.max_new_tokens: the model has positions for {policy.context} tokens, "
            f"prompt and answer together, got {limit}; set it lower"
        )
    reward = None
    if settings.benchmark.reward is not None:
        reward = load_reward_model(policy, Path(settings.benchmark.reward), "benchmark.reward")
    *others, _ = models.values()
    terminal.show_plan(
        {
            "model": f"{settings.model.path}, {policy.count()[1]:,} parameters",
            "against": ", ".join(model.path for model, _ in others) or "none",
            "prompts": f"{settings.benchmark.path}, {len(prompts.rows)} prompts",
            "writes": str(run.folder),
        }
    )
    began = time.perf_counter()
    interview = open_answers.Interview(
        prompts,
        machine,
        limit,
        settings.benchmark.max_tokens,
        settings.benchmark.scorer,
        "benchmark.scorer",
    )
    for name, (model, seed) in models.items():
        load = partial(_load, model, machine, seed)
        with speaking_as(policy, settings.model, model, load) as speaker:
            interview.ask(name, speaker)
    if reward is not None:
        interview.score(reward, policy)
    interview.write(run.folder / "open")
    run.record.machine |= machine.as_dict()
    run.record.data = record.Inputs(
        stages={},
        benchmark={},
        open={"prompts": len(prompts.rows), "digest": prompts.digest},
    )
    run.record.model = {"parameters": policy.count()[1]}
    run.record.result = {
        "open": open_answers.progression(interview.answers),
        "seconds": time.perf_counter() - began,
    }


def _models(settings: EvaluateConfig) -> dict[str, tuple[ModelConfig, int]]:
    """The models that answer and the seeds of random ones, by name; `settings.model` is last."""
    from drbode.models.base import adapter_base, base_of

    model, rivals = settings.model, settings.benchmark.rivals
    if rivals is None:
        before = base_of(model)
        others = [] if before is None else [before]
    else:
        bases = {path: adapter_base(path) or path for path in (model.path, *rivals)}
        others = [
            (
                replace(
                    model,
                    path=path,
                    init="pretrained",
                    revision=model.revision if bases[path] == bases[model.path] else None,
                ),
                0,
            )
            for path in rivals
        ]
    models = [*others, (model, 0)]
    paths = [Path(one.path).resolve() for one, _ in models]
    if double := next((path for path in paths if paths.count(path) > 1), None):
        raise BadInput(f"benchmark.against: {double.name} stands twice; name each model once")
    names = [path.name for path in paths]
    return {
        # The same stage of several runs goes by the run as well.
        "-".join(path.parts[-2:]) if names.count(path.name) > 1 else path.name: one
        for path, one in zip(paths, models, strict=True)
    }


def _load(
    model: ModelConfig, machine: "Machine", seed: int = 0, kind: ModelKind | None = "decoder"
) -> "Policy":
    from drbode.models.base import load_policy, quantization_of

    held = quantization_of(model)
    policy = load_policy(model, machine.torch_dtype, machine.attention, seed, held, kind)
    policy.network.to(machine.accelerator)
    return policy


def _show(settings: EvaluateConfig, run: "Run") -> None:
    from drbode.record import Measured
    from drbode.reporting import terminal

    result = run.record.result
    assert result is not None, "entered before"
    if not settings.benchmark.traits.of_runs:
        terminal.show_open(result["open"])
        terminal.show_side_by_side(run.folder / "open" / "side_by_side.csv")
        print(f"written to {run.folder}: record.json, open/*.jsonl, open/side_by_side.csv")
        return
    measured = Measured(summary=result["summary"], cost=result["cost"], forgetting={})
    terminal.show_benchmark({"model": measured})
    questions = result["summary"]["questions"]
    print(f"{questions / result['seconds']:.1f} questions/s")
    print(f"written to {run.folder}: record.json, benchmark/model.jsonl")


if __name__ == "__main__":
    config.open_door("evaluate", job, name=name)
