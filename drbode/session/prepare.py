"""What a run needs before it measures or trains anything; most bad input is refused here."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from drbode import record
from drbode.config import BadInput, SftConfig, Stage, StageConfig, TrainConfig
from drbode.data.contamination import DROPPED, Check
from drbode.data.curation import Curation
from drbode.data.prompts import Renderer
from drbode.data.splits import Split, StageRows, longest_row, note_dropped
from drbode.evaluation import forgetting, open_answers
from drbode.evaluation.benchmarks import load_benchmark
from drbode.evaluation.open_answers import Interview, OpenPrompts
from drbode.evaluation.progression import Progression
from drbode.models import machine as machines
from drbode.models.base import Policy, describe, load_policy, quantization_of
from drbode.models.machine import Machine
from drbode.models.methods import wrap
from drbode.record import Inputs, Run
from drbode.reporting import plots, terminal
from drbode.training.curation import difficulty
from drbode.training.stages import check_stage


@dataclass(frozen=True)
class Prepared:
    """A run's model, rows and measurements, ready to begin."""

    machine: Machine
    blocks: Mapping[Stage, StageConfig]  # of its stages, every `auto` resolved
    policy: Policy
    splits: Mapping[Stage, tuple[Split, Split | None]]
    check: Check
    progression: Progression
    end: int  # id of the token that ends an answer
    inputs: Inputs


def prepare(config: TrainConfig, run: Run) -> Prepared:
    """Loads the model, the rows of every stage and the benchmark.

    `config` is resolved. Raises BadInput for what is not to be had, malformed, or does not fit.
    """
    machine = machines.resolve(config.trainer, config.model, config.traits)
    blocks = {
        stage: replace(block, optimizer=machine.optimizer(stage, block, config.traits))
        for stage, block in config.blocks().items()
    }
    _refuse_other_method(config)
    benchmark = load_benchmark(config.benchmark, config.data.conditions)
    check = Check(benchmark.rows, config.contamination.action)
    curation = {stage: Curation(block, config.seed) for stage, block in _curated(blocks).items()}
    splits = _rows(config, blocks, check, curation, cache_of(run))
    _refuse_contaminated(check, run.folder)
    policy = load(config, machine, quantized=config.traits.quantizes)
    for stage, choice in curation.items():
        splits[stage] = _curate(choice, policy, blocks[stage], machine, splits[stage])
        _write_curation(choice, run.folder / "curation")
    for stage, block in blocks.items():
        check_stage(stage, block, policy)
    renderer = Renderer(policy.tokenizer, policy.context)
    general = forgetting.load_general(
        config.forgetting, config.benchmark, renderer, machine, config.data.conditions
    )
    prompts = open_prompts(config, renderer)
    progression = Progression(
        benchmark=benchmark,
        settings=config.benchmark,
        general=general,
        interview=None if prompts is None else _interview(config, prompts, machine),
        renderer=renderer,
        machine=machine,
        folder=run.folder,
        unclean=check.unclean(),
    )
    inputs = Inputs(
        stages={stage: _ledgers(*both) for stage, both in splits.items()},
        benchmark=benchmark.as_dict(),
        contamination=check.as_dict(),
        general=general.as_dict(),
        open=None if prompts is None else _described(prompts),
        curation=next((choice.as_dict() for choice in curation.values()), None),
    )
    encoder = config.model_kind == "encoder"
    end = policy.tokenizer.sep_token_id if encoder else renderer.turn_end[1]
    return Prepared(machine, blocks, policy, splits, check, progression, end, inputs)


def _interview(config: TrainConfig, prompts: OpenPrompts, machine: Machine) -> Interview:
    """The open prompts, ready to be put to the model after each stage."""
    limit, batch = config.open.max_new_tokens, config.benchmark.max_tokens
    return Interview(prompts, machine, limit, batch, config.open.scorer)


def _ledgers(train: Split, validation: Split | None) -> dict[str, Any]:
    """What became of a stage's rows, as plain data."""
    held_out = None if validation is None else asdict(validation.ledger)
    return {"train": asdict(train.ledger), "validation": held_out}


def load(config: TrainConfig, machine: Machine, quantized: bool) -> Policy:
    """The base, made trainable by the run's method; in 4 bits if `quantized`."""
    policy = load_policy(
        config.model,
        machine.torch_dtype,
        machine.attention,
        config.seed,
        machine.quantization(config.qlora) if quantized else None,
        config.model_kind,
    )
    wrap(policy, config.tuning())
    policy.network.to(machine.accelerator)
    return policy


def cache_of(run: Run) -> Path:
    """The folder of what the runs beside each other share."""
    return run.folder.parent / ".cache"


def _refuse_other_method(config: TrainConfig) -> None:
    """Raises BadInput where an adapter of a quantized base would be trained on another base."""
    if not config.traits.quantizes and quantization_of(config.model) is not None:
        raise BadInput(
            f"method: model.path is an adapter trained on a quantized base, got {config.method}; "
            "choose method=qlora, or model.quantization=none to train it on the plain base"
        )


def _curated(blocks: Mapping[Stage, StageConfig]) -> dict[Stage, SftConfig]:
    """The stages whose rows are chosen from more."""
    return {
        s: block for s, block in blocks.items() if isinstance(block, SftConfig) and block.curates
    }


def _rows(
    config: TrainConfig,
    blocks: Mapping[Stage, StageConfig],
    check: Check,
    curation: Mapping[Stage, Curation],
    cache: Path,
) -> dict[Stage, tuple[Split, Split | None]]:
    """Each stage's rows; those of a curated stage as far as they are screened without a model."""
    described = describe(config.model, config.model_kind)
    return {
        stage: StageRows(
            stage,
            block,
            Renderer(described.tokenizer, longest_row(stage, block, described.context)),
            config.seed,
            cache,
            config.data.conditions,
            curation[stage].screen if stage in curation else None,
            check,
        ).splits()
        for stage, block in blocks.items()
    }


def _refuse_contaminated(check: Check, folder: Path) -> None:
    """Shows and writes the questions that stand in training rows, and stops where that is asked."""
    rows = [case.as_row() for case in check.cases]
    if rows:
        terminal.show_contamination(rows)
        check.refuse()
        record.write_jsonl(folder / "contamination.jsonl", rows)


def _curate(
    curation: Curation,
    policy: Policy,
    block: StageConfig,
    machine: Machine,
    screened: tuple[Split, Split | None],
) -> tuple[Split, Split | None]:
    """The rows chosen of those that were screened."""
    chosen = curation.finish(lambda rows: difficulty(policy, rows, block.max_tokens, machine))
    note_dropped(chosen.ledger, screened[0].ledger.dropped.get(DROPPED, 0))
    return chosen, screened[1]


def _write_curation(curation: Curation, folder: Path) -> None:
    """The rows chosen, those dropped and why, and the funnel as a table and a plot."""
    funnel = curation.as_dict()["funnel"]
    record.write_jsonl(folder / "chosen.jsonl", curation.chosen())
    record.write_jsonl(folder / "dropped.jsonl", curation.dropped)
    record.write_csv(folder / "funnel.csv", funnel)
    plots.funnel(funnel, folder / "funnel.png")


def open_prompts(config: TrainConfig, renderer: Renderer) -> OpenPrompts | None:
    """What a run that aligns its policy asks it: prompts that no stage is trained on."""
    stage = config.aligning
    if stage is None or not config.open.prompts:
        return None
    return open_answers.held_out_prompts(
        stage, config.stage(stage), config.open, config.seed, config.data.conditions, renderer
    )


def _described(prompts: OpenPrompts) -> dict[str, Any]:
    return {
        "prompts": len(prompts.rows),
        "left_out": prompts.left_out,
        "digest": prompts.digest,
    }
