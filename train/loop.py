"""The loop of one segment: step, look at the numbers, log, evaluate, save.

A step's numbers are read one step late, so that the device never waits for the host to look at them; before
anything is scored or saved they are read at once, so no checkpoint follows a step that nobody has looked at.
"""

import logging
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from crawl2clip.distributed import World
from crawl2clip.errors import Crawl2ClipError, DataError
from evaluate.data.datasets import EvaluationDataset
from train.checkpoints.published_run import PublishedRun
from train.checkpoints.saving import Saver, is_due
from train.checkpoints.state_files import StateFiles
from train.config import Plan, TrainConfig
from train.in_loop import evaluate_live
from train.monitoring.accounting import Accounting, peak_memory_gb
from train.monitoring.garbage_collection import SteadyGarbageCollection
from train.monitoring.metrics import MetricsLog, console_line
from train.monitoring.profiling import StepProfiler
from train.monitoring.safety import Action, Guard, Verdict
from train.monitoring.watchdog import Phase, Watchdog
from train.session import Session
from train.startup import Flops
from train.step import Reading, StepNumbers
from train.stop_signal import StopRequest

logger = logging.getLogger(__name__)


class UnstableError(Crawl2ClipError):
    """Loss or gradient are not to be trusted and the settings say stop; the last checkpoint is from before it."""


@dataclass
class Progress:
    """What a run remembers beside its tensors, as a checkpoint keeps it; every rank has the same."""

    step: int = 0  # optimizer steps done
    position: int = 0  # place in the sample stream of the next batch
    skipped_samples: int = 0  # places that roll backs left out
    bad_draws: int = 0  # samples that had to be replaced
    bad_reasons: dict[str, int] = field(default_factory=dict)  # of them; older checkpoints have none
    gpu_hours: float = 0.0
    guard: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, float] = field(default_factory=dict)  # of fp16

    @classmethod
    def of(cls, state: StateFiles | None) -> "Progress":
        """That of a checkpoint; the beginning without one."""
        return cls() if state is None else cls(**state.progress)


@dataclass
class Tools:
    """What the loop works with in every segment of a run."""

    config: TrainConfig
    plan: Plan
    world: World
    scored: list[EvaluationDataset]
    saver: Saver
    published: PublishedRun | None  # on rank 0 of a run in an object store
    guard: Guard
    accounting: Accounting
    flops: Flops
    log: MetricsLog | None  # on rank 0
    bar: Any  # tqdm; silent on other ranks
    watchdog: Watchdog
    profiler: StepProfiler
    garbage: SteadyGarbageCollection
    request: StopRequest


class Reason(Enum):
    """Why a segment ended."""

    stage_done = "stage_done"
    stopped = "stopped"
    roll_back = "roll_back"


@dataclass(frozen=True)
class Ending:
    """How a segment ended."""

    reason: Reason
    verdict: Verdict | None = None  # of a roll back


def run_steps(session: Session, tools: Tools, progress: Progress) -> Ending:
    """Trains from `progress` to the end of the session's stage; `progress` moves along.

    Raises:
        UnstableError: the safety settings say stop.
        DataError: data, log or checkpoint cannot go on.
    """
    stage, config = session.stage, tools.config
    batches = session.data.batches(
        progress.position, stage.last_step - progress.step, stage.global_batch_size, stage.image_size
    )
    waiting: Reading | None = None  # for somebody to look at it
    tools.watchdog.enter(Phase.data, progress.step + 1)
    with closing(batches):
        for step, batch in enumerate(tools.accounting.waiting_for(batches), start=progress.step + 1):
            tools.profiler.before(step)
            reading = session.train_step(
                batch, step, stop=tools.request.received is not None, save=_time_to_save(tools, step)
            )
            if session.ema is not None:
                session.ema.update(session.strategy.plain(session.model), step)
            tools.accounting.submitted()
            tools.profiler.after(step)
            tools.garbage.step(step)
            tools.watchdog.enter(Phase.read_numbers, step)
            progress.step = step
            progress.position += stage.global_batch_size
            before = look_at(waiting, session, tools, progress) if waiting is not None else None
            if before is not None and before.verdict.action is Action.roll_back:
                return Ending(Reason.roll_back, before.verdict)
            told = before.numbers if before is not None else None
            # Asked to stop, there may be a minute left: state first, and no scores.
            stop = told is not None and told.stop
            last = step == tools.plan.total_steps
            scores_due = last or (step % config.evaluation.every_steps == 0 and not stop)
            save_due = step == stage.last_step or stop or (told is not None and told.save)
            save_due = save_due or is_due(config.checkpoint, step, since_save_s=0.0)
            waiting = reading
            if scores_due or save_due:
                now = look_at(reading, session, tools, progress)
                waiting = None
                if now.verdict.action is Action.roll_back:
                    return Ending(Reason.roll_back, now.verdict)
                stop = stop or now.numbers.stop  # nobody will look at these numbers again
                scores_due = last or (scores_due and not stop)
                save_due = save_due or stop or now.numbers.save
                with tools.accounting.pause():
                    scores = evaluate(session, tools, progress) if scores_due else {}
                    if save_due or _is_best(scores, tools):
                        save(session, tools, progress, scores)
                if stop and not last:
                    return Ending(Reason.stopped)
            tools.watchdog.enter(Phase.data, step + 1)
    return Ending(Reason.stage_done)


@dataclass(frozen=True)
class Looked:
    """A step's numbers and what the guard says of them."""

    numbers: StepNumbers
    verdict: Verdict


def look_at(reading: Reading, session: Session, tools: Tools, progress: Progress) -> Looked:
    """Reads a step's numbers, counts and judges them, and logs them when it is time.

    Raises:
        UnstableError: the safety settings say stop.
        DataError: too many samples had to be replaced.
    """
    numbers = reading.values()
    stage, batch = session.stage, session.stage.global_batch_size
    mean_tokens = numbers.text_tokens / batch
    tools.accounting.add(batch, tools.flops.training(session.model_config, mean_tokens, session.trains))
    progress.bad_draws += sum(numbers.bad_draws.values())
    so_far = progress.bad_reasons
    progress.bad_reasons = {name: so_far.get(name, 0) + count for name, count in numbers.bad_draws.items()}
    check_bad_draws(tools.config, tools.plan, progress, numbers.step)
    loss_scale = session.strategy.scaler_state().get("scale") if numbers.skipped else None
    verdict = tools.guard.judge(numbers, loss_scale)
    if tools.world.is_main:
        for warning in verdict.warnings:
            logger.warning("%s", warning)
    if verdict.action is Action.stop:
        raise UnstableError(verdict.message)
    if (
        numbers.step % tools.config.train.log_every_steps == 0
        or numbers.step == stage.last_step
        or numbers.norms
    ):
        record = step_record(numbers, tools, progress, stage.number)
        tools.bar.set_postfix_str(_bar_text(record), refresh=False)
        if tools.log is not None:
            tools.log.write(record)
            logger.info("%s", console_line(record, tools.plan.total_steps))
    tools.bar.update(1)
    return Looked(numbers, verdict)


def evaluate(session: Session, tools: Tools, progress: Progress) -> dict[str, float]:
    """Scores the model as it is, and logs them; every rank takes part."""
    if not tools.scored:
        return {}
    tools.watchdog.enter(Phase.evaluate, progress.step)
    config = tools.config
    with session.whole() as model:
        scores = evaluate_live(
            model, session.model_config, tools.scored, config.evaluation, config.precision, tools.world
        )
    if tools.log is not None:
        seen = tools.plan.samples_seen(progress.step)
        tools.log.write({"step": progress.step, "samples_seen": seen, **scores})
    return scores


def save(session: Session, tools: Tools, progress: Progress, scores: dict[str, float]) -> None:
    """Starts a checkpoint of this step. Scores came before: a checkpoint says that all before it is in the log."""
    tools.watchdog.enter(Phase.save, progress.step)
    progress.guard = tools.guard.state_dict()
    progress.scaler = session.strategy.scaler_state()
    progress.gpu_hours = tools.accounting.gpu_hours()
    tools.saver.save(progress.step, session.pieces(), asdict(progress), scores)


def _time_to_save(tools: Tools, step: int) -> bool:
    """Whether rank 0's clock asks for a checkpoint (clocks differ, so only it is asked), or a write has failed."""
    since_s = time.monotonic() - tools.saver.saved_at_s
    return tools.saver.failed or (tools.world.is_main and is_due(tools.config.checkpoint, step, since_s))


def _is_best(scores: dict[str, float], tools: Tools) -> bool:
    if tools.config.checkpoint.keep_best is None or not scores:
        return False
    return bool(tools.world.all_gather_object(tools.saver.is_best(scores))[0])


def check_bad_draws(config: TrainConfig, plan: Plan, progress: Progress, step: int) -> None:
    """Stops a run whose data is broken; every rank comes to the same answer.

    Raises:
        DataError: more than the allowed fraction of all draws up to `step` had to be replaced.
    """
    drawn, limit = plan.samples_seen(step), config.data.max_bad_fraction
    # An epoch or a thousand draws, whichever is less: a fraction of fewer says little.
    if drawn >= min(plan.samples_per_epoch, 1000) and progress.bad_draws > limit * drawn:
        raise DataError(
            f"{progress.bad_draws} of {drawn} samples drawn up to step {step} had to be replaced, more than "
            f"data.max_bad_fraction={limit}; metrics.jsonl counts them by reason and the log names the first of "
            "each with shard and key: repair the shards, or raise the limit"
        )


def step_record(numbers: StepNumbers, tools: Tools, progress: Progress, stage: int) -> dict[str, Any]:
    """A step's line of metrics.jsonl: fixed order, units in the names."""
    plan = tools.plan
    seen = plan.samples_seen(numbers.step)
    return {
        "step": numbers.step,
        "samples_seen": seen,
        "epoch": round(seen / plan.samples_per_epoch, 4),
        "stage": stage,
        "loss": numbers.loss,
        "logit_scale": numbers.logit_scale,
        "lr": numbers.lr,
        "grad_norm": numbers.grad_norm,
        **tools.accounting.read(plan.total_samples - seen),
        "peak_memory_gb": peak_memory_gb(tools.world.device),
        "bad_draws": progress.bad_draws,
        **{f"bad_draws/{reason}": count for reason, count in progress.bad_reasons.items()},
        "skipped_steps": tools.guard.skipped,
        "roll_backs": tools.guard.roll_backs,
        **numbers.norms,
    }


def _bar_text(record: dict[str, Any]) -> str:
    text = f"loss={record['loss']:.3f}, {record['samples_per_s']:.0f} samples/s"
    return text if record["mfu"] is None else f"{text}, MFU {record['mfu']:.0%}"
