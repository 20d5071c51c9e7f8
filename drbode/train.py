"""python -m drbode.train: takes a model through stages of training, measured before and after."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drbode import config
from drbode.config import Done, Outcome, PpoConfig, StageConfig, TrainConfig

if TYPE_CHECKING:
    from drbode.data.curation import Curation
    from drbode.models.base import Policy
    from drbode.models.heads import RewardModel
    from drbode.record import Run


def job(tree: Mapping[str, Any], overrides: list[str], multirun: bool) -> Done:
    """What Hydra calls, once a run or once a job of a multirun."""
    return train(config.load(tree, overrides, multirun), overrides)


def name(tree: Mapping[str, Any]) -> str:
    """The run that a job of a multirun would make."""
    return config.load(tree, (), multirun=True).run_name()


def failed(tree: Mapping[str, Any], overrides: list[str], error: Exception) -> Done:
    """A job of a multirun that came to nothing still leaves a record that says why."""
    from drbode import record

    try:
        run = name(tree)
    except config.BadInput:
        run = f"invalid-{config.digest(overrides)}"
    folder = Path(tree["output_dir"]) / run
    if not (folder / "record.json").exists():
        record.write_failed(folder, overrides, error)
    return Done(folder)


def train(asked: TrainConfig, overrides: list[str]) -> Done:
    """Runs what is asked for, goes on with it, or shows it where it has been done."""
    from drbode import record

    folder = Path(asked.output_dir) / asked.run_name()
    with record.open_run(folder, asked.effective(), overrides, asked.force) as run:
        if run.finished:
            print(f"{folder} is finished; force=true does it again")
        else:
            _train(asked.resolved(), run)
        _show(run)
    return Done(folder, _objective(asked, run), asked.wandb)


def finished(outcomes: list[Outcome]) -> None:
    """The table of a multirun's jobs, which ends it."""
    from drbode.reporting import outputs

    folders = list(dict.fromkeys(o.done.folder for o in outcomes if o.done is not None))
    records = [folder / "record.json" for folder in folders]
    if not records:
        return
    words = [word.partition("=") for outcome in outcomes for word in outcome.overrides]
    keys = dict.fromkeys(key for key, _, _ in words)
    swept = [key for key in keys if len({value for k, _, value in words if k == key}) > 1]
    name = "-".join([*swept, config.digest(sorted(folder.name for folder in folders))])
    wandb = next((o.done.wandb for o in outcomes if o.done and o.done.wandb), None)
    print()
    outputs.report(records, folders[0].parent / "tables" / name.replace("/", "."), wandb=wandb)


def _objective(asked: TrainConfig, run: "Run") -> float | None:
    """What a search maximises, after the last stage; a loss counts as its negative."""
    last = run.data["stages"][asked.stages[-1]]
    match asked.objective:
        case "accuracy":
            return float(last["summary"]["accuracy"])
        case "validation_loss":
            return -float(last["validation_loss"])
        case None:
            return None


def _train(asked: TrainConfig, run: "Run") -> None:
    # Heavy imports stand here, so that --help and a mistake are answered without them.
    from drbode import record
    from drbode.data.contamination import DROPPED, Check
    from drbode.data.curation import Curation
    from drbode.data.prompts import Renderer
    from drbode.data.steps import load_splits, note_dropped
    from drbode.evaluation import forgetting, multiple_choice, open_answers
    from drbode.evaluation.open_answers import Interview
    from drbode.evaluation.progression import BASE, Progression
    from drbode.models import machine as machines
    from drbode.models.base import describe, load_policy, quantization_of
    from drbode.models.methods import wrap
    from drbode.reporting import plots, terminal
    from drbode.training import cache as stage_cache
    from drbode.training.curation import difficulty
    from drbode.training.loggers import log_table, open_loggers
    from drbode.training.stages import Surroundings, check_score, restore_stage, run_stage

    machine = machines.resolve(asked.trainer, asked.model, asked.traits)
    stages = {
        stage: replace(block, optimizer=machine.optimizer(stage, block, asked.traits))
        for stage, block in ((stage, asked.stage(stage)) for stage in asked.stages)
    }
    if asked.method != "qlora" and quantization_of(asked.model) is not None:
        raise config.BadInput(
            f"method: model.path is an adapter trained on a quantized base, got {asked.method}; "
            "choose method=qlora, or model.quantization=none to train it on the plain base"
        )
    benchmark = multiple_choice.load_benchmark(asked.benchmark, asked.data.conditions)

    def load(quantized: bool) -> "Policy":
        held = machine.quantization(asked.qlora) if quantized else None
        policy = load_policy(
            asked.model, machine.torch_dtype, machine.attention, asked.seed, held, asked.model_kind
        )
        wrap(policy, asked.tuning())
        policy.network.to(machine.accelerator)
        return policy

    check = Check(benchmark.questions, asked.contamination.action)
    cache = run.folder.parent / ".cache"
    described = describe(asked.model, asked.model_kind)
    curation = Curation(asked.sft, asked.seed) if asked.curates() else None
    splits = {
        stage: load_splits(
            stage,
            block,
            Renderer(described.tokenizer, _longest(stage, block, described.context)),
            asked.seed,
            cache,
            asked.data.conditions,
            curation.screen if curation is not None and stage == "sft" else None,
            check,
        )
        for stage, block in stages.items()
    }
    cases = [case.as_row() for case in check.cases]
    if cases:
        terminal.show_contamination(cases)
        check.refuse()
        record.write_jsonl(run.folder / "contamination.jsonl", cases)
    policy = load(asked.method == "qlora")
    if curation is not None:
        chosen = curation.finish(
            lambda rows: difficulty(policy, rows, asked.sft.max_tokens, machine)
        )
        note_dropped(chosen.ledger, splits["sft"][0].ledger.dropped.get(DROPPED, 0))
        splits["sft"] = chosen, splits["sft"][1]
    if "ppo" in stages:
        check_score(policy, asked.ppo)
    renderer = Renderer(policy.tokenizer, policy.context)
    general = forgetting.load_general(
        asked.forgetting, asked.benchmark, renderer, machine, asked.data.conditions
    )
    trainable, total = policy.count()
    run.data["machine"] |= machine.as_dict()
    run.data["model"] = {"parameters": total, "trainable_parameters": trainable}
    data: dict[str, Any] = {
        stage: {"train": a.ledger.as_dict(), "validation": b.ledger.as_dict() if b else None}
        for stage, (a, b) in splits.items()
    }
    if curation is not None:
        data["sft"]["curation"] = curation.as_dict()
        _leave_curation(curation, run.folder / "curation")
    prompts = open_answers.held_out_prompts(asked, renderer)
    if prompts is not None:
        data["open"] = {
            "prompts": len(prompts.asked),
            "left_out": prompts.left_out,
            "digest": prompts.digest,
        }
    data["benchmark"] = benchmark.as_dict()
    data["contamination"] = check.as_dict()
    data["general"] = general.as_dict()
    run.data["data"] = data
    run.save()
    _plan(asked, run)

    progression = Progression(
        benchmark=benchmark,
        settings=asked.benchmark,
        general=general,
        interview=None
        if prompts is None
        else Interview(prompts, machine, asked.open.max_new_tokens, asked.benchmark.max_tokens),
        renderer=renderer,
        machine=machine,
        folder=run.folder,
        unclean=check.unclean(),
    )

    def enter(reward: "RewardModel | None") -> None:
        """Puts what all open answers so far come to into the record, scored alike."""
        for name, result in progression.opened(reward, policy).items():
            (run.data["base"] if name == BASE else run.data["stages"][name])["open"] = result

    progression.ask(BASE, policy)
    run.data["base"] = progression.result(BASE)
    steps, metrics = 0, run.folder / "metrics.csv"
    with open_loggers(run.folder, asked.wandb, run.data["config"]) as loggers:
        around = Surroundings(
            seed=asked.seed,
            machine=machine,
            trainer=asked.trainer,
            loggers=loggers,
            end=renderer.turn_end[1]
            if asked.model_kind == "decoder"
            else policy.tokenizer.sep_token_id,
            folder=run.folder,
            cache=cache,
            base=policy.state() if asked.refers_to_base() else {},
            probe=lambda: progression.accuracy(policy),
            reward=None,
        )
        for stage, block in stages.items():
            if asked.unquantizes(stage):  # the adapter goes on, on the base in full precision
                state = policy.state()
                policy = load(quantized=False)
                policy.load_state(state)
            checkpoints = run.folder / "checkpoints" / stage
            if stage in run.data["stages"]:
                reward = restore_stage(policy, checkpoints)
                around = replace(around, reward=reward or around.reward)
                steps += run.data["stages"][stage]["steps"]
                progression.ask(stage, policy)
                continue
            content = [asked.stage_identity(stage), run.data["machine"], run.data["versions"]]
            content += [check.dropped(s) for s in asked.stages[: asked.stages.index(stage) + 1]]
            with stage_cache.entry(
                around.cache, config.digest([*content, record.code_digest()], 24)
            ) as kept:
                done = kept.result if asked.reuses(stage) else None
                if done is not None:
                    print(f"{stage}: trained before ({kept.folder}), taken from there")
                    kept.bring(checkpoints, metrics)
                    result, reward = done, restore_stage(policy, checkpoints)
                else:
                    rows = splits[stage]
                    result, reward = run_stage(
                        policy, stage, block, *rows, around, folder=checkpoints, step_offset=steps
                    )
                    if asked.reuses(stage):
                        kept.keep(result, checkpoints, metrics, stage)
            steps += result.steps
            for warning in result.warnings:
                print(f"{stage}: WARNING: {warning}")
            with record.whole(run.folder / stage) as draft:
                if reward is None:
                    policy.save(draft)
                else:
                    reward.save(policy, draft)
                    around = replace(around, reward=reward)
            progression.ask(stage, policy)
            measured = progression.result(stage)
            accuracy = {f"{stage}/benchmark/accuracy": measured["summary"]["accuracy"]}
            if clean := measured["summary"]["clean"]:
                accuracy[f"{stage}/benchmark/clean_accuracy"] = clean["accuracy"]
            for logger in loggers:
                logger.log_metrics(accuracy, step=steps)
            run.data["stages"][stage] = result.as_dict() | {
                "artefact": stage,
                "artefact_bytes": record.weight_bytes(run.folder / stage),
                **measured,
            }
            enter(around.reward)
            run.save()
        if progression.interview is not None:
            answers = open_answers.side_by_side(progression.interview.answers)
            log_table(loggers, "open/side_by_side", answers)
    plots.learning_curves(metrics, run.folder / "curves.png")
    if "ppo" in asked.stages:
        plots.reward_hacking(metrics, run.folder / "reward_hacking.png")


def _plan(asked: TrainConfig, run: "Run") -> None:
    from drbode.reporting import terminal

    model, data, machine = run.data["model"], run.data["data"], run.data["machine"]
    share = 100 * model["trainable_parameters"] / model["parameters"]
    plan = {
        "model": f"{asked.model.path}, {model['parameters']:,} parameters",
        "method": f"{asked.method}, trains {model['trainable_parameters']:,} ({share:.2f} %)",
        "stages": " -> ".join(asked.stages),
        **{
            str(s): f"{terminal.ledger(data[s]['train'])}; {_length(asked.stage(s))}"
            for s in asked.stages
        },
        **({"curation": terminal.curation(data["sft"]["curation"])} if asked.curates() else {}),
        "benchmark": terminal.benchmark(asked.benchmark, data["benchmark"]),
        "contamination": terminal.contamination(data["contamination"]),
        **_open_plan(asked, data.get("open")),
        "computes": f"{machine['accelerator']}, {machine['precision']}, weights "
        f"{machine['dtype']}, {machine['threads']} threads",
        "writes": str(run.folder),
    }
    terminal.show_plan(plan)
    if asked.curates():
        terminal.show_funnel(data["sft"]["curation"]["funnel"])


def _leave_curation(curation: "Curation", folder: Path) -> None:
    """The rows chosen, those dropped and why, and the funnel as a table and a plot."""
    from drbode import record
    from drbode.reporting import plots

    funnel = curation.as_dict()["funnel"]
    record.write_jsonl(folder / "chosen.jsonl", curation.chosen())
    record.write_jsonl(folder / "dropped.jsonl", curation.dropped)
    record.write_csv(folder / "funnel.csv", funnel)
    plots.funnel(funnel, folder / "funnel.png")


def _open_plan(asked: TrainConfig, opened: Mapping[str, Any] | None) -> dict[str, str]:
    if asked.aligning is None or not asked.open.prompts:
        return {}
    if opened is None:
        return {"open": f"no open answers: {asked.aligning} holds out no prompt that fits"}
    left_out = f", {opened['left_out']} too long" if opened["left_out"] else ""
    return {"open": f"{opened['prompts']} held-out prompts of {asked.aligning}{left_out}"}


def _longest(stage: str, block: StageConfig, context: int) -> int:
    """Tokens that a row of a stage may have. Raises BadInput where the model lacks the context."""
    if block.max_length != "auto" and block.max_length > context:
        raise config.BadInput(
            f"{stage}.max_length: the model has positions for {context} tokens, got "
            f"{block.max_length}; set it to auto or lower"
        )
    room = context - (block.max_new_tokens if isinstance(block, PpoConfig) else 0)
    if room < 1:
        raise config.BadInput(
            f"{stage}.max_new_tokens: the model has positions for {context} tokens, prompt and "
            f"answer together, got {context - room}; lower it"
        )
    return room if block.max_length == "auto" else min(room, block.max_length)


def _length(stage: StageConfig) -> str:
    if stage.steps is not None:
        return f"{stage.steps} steps"
    if stage.tokens is not None:
        return f"{stage.tokens} tokens"
    return f"{stage.epochs:g} epochs"


def _show(run: "Run") -> None:
    from drbode.reporting import terminal

    results = {"base": run.data["base"], **run.data["stages"]}
    terminal.show_benchmark(results)
    terminal.show_forgetting({name: result["forgetting"] for name, result in results.items()})
    opened = {name: result["open"] for name, result in results.items() if "open" in result}
    if opened:
        terminal.show_open(opened)
        terminal.show_side_by_side(run.folder / "open" / "side_by_side.csv")
    for name, stage in run.data["stages"].items():
        loss = stage["validation_loss"]
        held_out = "" if loss is None else f", validation loss {loss:.3f}"
        print(
            f"{name}: {stage['steps']} steps, {stage['tokens']} tokens in "
            f"{stage['seconds']:.0f} s ({stage['tokens_per_second']:.0f} tokens/s), peak memory "
            f"{stage['peak_memory_gib']:.2f} GiB{held_out}"
        )
        if line := terminal.preferences(name, stage["measures"]):
            print(line)
    print(
        f"written to {run.folder}: record.json, metrics.csv, curves.png, benchmark/*.jsonl, "
        f"{'curation/, ' if (run.folder / 'curation').is_dir() else ''}"
        f"{'contamination.jsonl, ' if (run.folder / 'contamination.jsonl').exists() else ''}"
        f"{'open/, ' if opened else ''}{', '.join(f'{s}/' for s in run.data['stages'])}"
    )


if __name__ == "__main__":
    config.open_door("train", job, failed, name, finished)
