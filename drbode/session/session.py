"""The steps of a run: measure the base, then restore, reuse or train stage after stage."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lightning.pytorch.loggers import Logger

from drbode import record
from drbode.config import STAGES, BadInput, Stage, StageConfig, TrainConfig, digest
from drbode.evaluation import open_answers
from drbode.models.heads import RewardModel
from drbode.record import BASE, Measured, Run, StageRecord, StageResult
from drbode.reporting import plots, summary
from drbode.session.prepare import Prepared, cache_of, load, prepare
from drbode.training import cache as stage_cache
from drbode.training.context import RunContext, StageContext
from drbode.training.finite import computes_finite
from drbode.training.loggers import log_table, open_loggers
from drbode.training.stages import restore_stage, run_stage


def run_session(config: TrainConfig, run: Run) -> None:
    """Takes the model through all stages of a run, which may have been begun before.

    Everything that comes of it stands in the run's folder and record.
    """
    prepared = prepare(config, run)
    with open_loggers(run.folder, config.wandb, run.record.config) as loggers:
        session = Session(config, run, prepared, loggers)
        session.note_inputs()
        session.measure_base()
        for stage in config.stages:
            session.unquantize_for(stage)
            if stage in run.record.stages:
                session.restore(stage)
            else:
                session.train(stage)
        session.log_open_answers()
    session.draw()


class Session:
    """A run under way: its policy, and what its earlier stages have left."""

    def __init__(
        self, config: TrainConfig, run: Run, prepared: Prepared, loggers: Sequence[Logger]
    ) -> None:
        self.config = config
        self.run = run
        self.prepared = prepared
        self.loggers = loggers
        self.policy = prepared.policy
        self.progression = prepared.progression
        self.base_state = self.policy.state() if config.refers_to_base() else {}
        self.reward: RewardModel | None = None  # that a stage of this run left
        self.steps = 0  # optimizer steps of the stages that are done

    def note_inputs(self) -> None:
        """Enters what the run reads into the record, and shows what it is about to do."""
        trainable, total = self.policy.count()
        self.run.record.machine |= self.prepared.machine.as_dict()
        self.run.record.model = {"parameters": total, "trainable_parameters": trainable}
        self.run.record.data = self.prepared.inputs
        self.run.save()
        summary.show_plan(self.config, self.run)

    def measure_base(self) -> None:
        """Asks everything before the first stage."""
        with self.prepared.machine.autocast():
            if not computes_finite(self.policy, [self.prepared.end] * 2):
                raise BadInput(
                    "model.path: the weights, or what the model computes, are NaN or infinite; "
                    "choose another model, or smaller values in the settings of the method (such "
                    "as lora.alpha)"
                )
        before = self.run.record.base  # of a run that goes on
        self.progression.ask(BASE, self.policy)
        self.run.record.base = self.progression.result(BASE)
        if before is not None:
            self.run.record.base.open = before.open

    def unquantize_for(self, stage: Stage) -> None:
        """From a stage on that wants it, the adapter goes on with the base in full precision."""
        if self.config.unquantizes(stage):
            state = self.policy.state()
            self.policy = load(self.config, self.prepared.machine, quantized=False)
            self.policy.load_state(state)

    def restore(self, stage: Stage) -> None:
        """Puts the policy where this run's own stage, which is done, left it."""
        self.reward = restore_stage(self.policy, self.checkpoints(stage)) or self.reward
        self.steps += self.run.record.stages[stage].steps
        self._ask(stage)
        if stage == self.config.stages[-1]:  # there is no later stage to enter them with
            self._enter_open_answers()

    def train(self, stage: Stage) -> None:
        """Trains a stage, or takes it from a run that trained it alike; saves and measures it."""
        result, reward = self._reuse_or_train(stage)
        self.steps += result.steps
        for warning in result.warnings:
            print(f"{stage}: WARNING: {warning}")
        self._save(stage, reward)
        self.reward = reward or self.reward
        self._ask(stage)
        self._enter(stage, result, self.progression.result(stage))

    def log_open_answers(self) -> None:
        """Shows the open answers of all stages beside each other in W&B."""
        if (interview := self.progression.interview) is not None:
            answers = open_answers.side_by_side(interview.answers)
            log_table(self.loggers, "open/side_by_side", answers)

    def draw(self) -> None:
        """The run's plots."""
        plots.learning_curves(self.metrics, self.run.folder / "curves.png")
        if sampling := self.config.having(samples=True):
            plots.reward_hacking(self.metrics, sampling, self.run.folder / "reward_hacking.png")

    def accuracy(self) -> float:
        """The policy's accuracy on the benchmark, now."""
        return self.progression.accuracy(self.policy)

    @property
    def metrics(self) -> Path:
        return self.run.folder / "metrics.csv"

    def checkpoints(self, stage: Stage) -> Path:
        """The folder of a stage's checkpoints."""
        return self.run.folder / "checkpoints" / stage

    def _reuse_or_train(self, stage: Stage) -> tuple[StageResult, RewardModel | None]:
        checkpoints, reuses = self.checkpoints(stage), self.config.reuses(stage)
        with stage_cache.entry(cache_of(self.run), self._digest(stage)) as entry:
            known = entry.result if reuses else None
            if known is not None:
                print(f"{stage}: trained before ({entry.folder}), taken from there")
                entry.bring(checkpoints, self.metrics, stage)
                return known, restore_stage(self.policy, checkpoints)
            result, reward = run_stage(self._context(stage))
            if reuses:
                entry.keep(result, checkpoints, self.metrics, stage)
            return result, reward

    def _context(self, stage: Stage) -> StageContext[StageConfig]:
        train, validation = self.prepared.splits[stage]
        run = RunContext(
            seed=self.config.seed,
            machine=self.prepared.machine,
            trainer=self.config.trainer,
            loggers=self.loggers,
            end=self.prepared.end,
            folder=self.run.folder,
            cache=cache_of(self.run),
            base=self.base_state,
            probe=self.accuracy,
            reward=self.reward,
        )
        return StageContext(
            policy=self.policy,
            stage=stage,
            config=self.prepared.blocks[stage],
            train=train,
            validation=validation,
            run=run,
            folder=self.checkpoints(stage),
            step_offset=self.steps,
        )

    def _digest(self, stage: Stage) -> str:
        """What the weights after a stage depend on: equal digests, equal stages."""
        done = self.config.stages[: self.config.stages.index(stage) + 1]
        content = [
            self.config.stage_identity(stage),
            self.run.record.machine,
            self.run.record.versions,
            *(self.prepared.check.dropped(one) for one in done),
            record.code_digest(),
        ]
        return digest(content, 24)

    def _save(self, stage: Stage, reward: RewardModel | None) -> None:
        with record.whole(self.run.folder / stage) as draft:
            if reward is None:
                self.policy.save(draft)
            else:
                reward.save(self.policy, draft)

    def _ask(self, stage: Stage) -> None:
        unchanged = STAGES[stage].leaves != "policy"
        self.progression.ask(stage, self.policy, unchanged)

    def _enter(self, stage: Stage, result: StageResult, measured: Measured) -> None:
        """Enters a finished stage into the log and the record."""
        accuracy = {f"{stage}/benchmark/accuracy": measured.summary["accuracy"]}
        if clean := measured.summary["clean"]:
            accuracy[f"{stage}/benchmark/clean_accuracy"] = clean["accuracy"]
        for logger in self.loggers:
            logger.log_metrics(accuracy, step=self.steps)
        self.run.record.stages[stage] = StageRecord(
            **asdict(result),
            **asdict(measured),
            artefact=stage,
            artefact_bytes=record.weight_bytes(self.run.folder / stage),
        )
        self._enter_open_answers()
        self.run.save()

    def _enter_open_answers(self) -> None:
        """Enters all open answers so far, scored alike by the newest reward model."""
        for name, answers in self.progression.opened(self.reward, self.policy).items():
            self._measured(name).open = answers

    def _measured(self, name: str) -> Measured:
        base = self.run.record.base
        assert base is not None, "measured before the first stage"
        return base if name == BASE else self.run.record.stages[name]
