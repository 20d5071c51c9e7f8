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

    asked = config.build(EvaluateConfig, tree)
    if not multirun:
        config.refuse_unread(overrides, asked.unread())
    folder = Path(asked.output_dir) / asked.run_name()
    with record.open_run(folder, asked.effective(), overrides, asked.force) as run:
        if run.finished:
            print(f"{folder} is finished; force=true does it again")
        elif asked.benchmark.traits.of_runs:
            _benchmark(asked, run)
        else:
            _open(asked, run)
        _show(asked, run)
    return Done(folder)


def name(tree: Mapping[str, Any]) -> str:
    """The evaluation that a job of a multirun would make."""
    return config.build(EvaluateConfig, tree).run_name()


def _benchmark(asked: EvaluateConfig, run: "Run") -> None:
    import time

    from drbode import record
    from drbode.data.prompts import Renderer
    from drbode.evaluation import benchmarks
    from drbode.models import machine as machines
    from drbode.reporting import terminal

    machine = machines.resolve(asked.trainer, asked.model, None)
    benchmark = benchmarks.load_benchmark(asked.benchmark, asked.data.conditions)
    either = asked.benchmark.traits.encoders and not asked.benchmark.shots
    policy = _load(asked.model, machine, kind=None if either else "decoder")
    terminal.show_plan(
        {
            "model": f"{asked.model.path}, {policy.count()[1]:,} parameters",
            "benchmark": terminal.benchmark(asked.benchmark, benchmark.as_dict()),
            "writes": str(run.folder),
        }
    )
    began = time.perf_counter()
    answers = benchmarks.answer(
        policy,
        Renderer(policy.tokenizer, policy.context),
        benchmark.rows,
        asked.benchmark,
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


def _open(asked: EvaluateConfig, run: "Run") -> None:
    import time

    from drbode import record
    from drbode.evaluation import open_answers
    from drbode.models import machine as machines
    from drbode.models.base import speaking_as
    from drbode.models.heads import load_reward_model
    from drbode.reporting import terminal

    machine = machines.resolve(asked.trainer, asked.model, None)
    prompts = open_answers.load_prompts(asked.benchmark, asked.data.conditions)
    models = _models(asked)
    policy = _load(asked.model, machine)
    limit = asked.benchmark.max_new_tokens
    if limit >= policy.context:
        raise BadInput(
            f"benchmark.max_new_tokens: the model has positions for {policy.context} tokens, "
            f"prompt and answer together, got {limit}; set it lower"
        )
    reward = None
    if asked.benchmark.reward is not None:
        reward = load_reward_model(policy, Path(asked.benchmark.reward), "benchmark.reward")
    *others, _ = models.values()
    terminal.show_plan(
        {
            "model": f"{asked.model.path}, {policy.count()[1]:,} parameters",
            "against": ", ".join(model.path for model, _ in others) or "none",
            "prompts": f"{asked.benchmark.path}, {len(prompts.asked)} prompts",
            "writes": str(run.folder),
        }
    )
    began = time.perf_counter()
    interview = open_answers.Interview(
        prompts,
        machine,
        limit,
        asked.benchmark.max_tokens,
        asked.benchmark.scorer,
        "benchmark.scorer",
    )
    for name, (model, seed) in models.items():
        load = partial(_load, model, machine, seed)
        with speaking_as(policy, asked.model, model, load) as speaker:
            interview.ask(name, speaker)
    if reward is not None:
        interview.score(reward, policy)
    interview.write(run.folder / "open")
    run.record.machine |= machine.as_dict()
    run.record.data = record.Inputs(
        stages={},
        benchmark={},
        open={"prompts": len(prompts.asked), "digest": prompts.digest},
    )
    run.record.model = {"parameters": policy.count()[1]}
    run.record.result = {
        "open": open_answers.progression(interview.answers),
        "seconds": time.perf_counter() - began,
    }


def _models(asked: EvaluateConfig) -> dict[str, tuple[ModelConfig, int]]:
    """The models that answer and the seeds of random ones, by name; the asked one comes last."""
    from drbode.models.base import adapter_base, base_of

    model, rivals = asked.model, asked.benchmark.rivals
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


def _show(asked: EvaluateConfig, run: "Run") -> None:
    from drbode.record import Measured
    from drbode.reporting import terminal

    result = run.record.result
    assert result is not None, "entered before"
    if not asked.benchmark.traits.of_runs:
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
