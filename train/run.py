"""One training run, from settings to an exported model.

A run is a chain of segments. Each begins with a checkpoint (or nothing), builds what trains (`session.py`) and runs
the loop (`loop.py`) until there is a reason to build anew: the end of a stage, a roll back. So resuming, changing
stage and rolling back are one path, and all of them work on any number of ranks and with any strategy.
"""

import logging
import os
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig

from crawl2clip import storage
from crawl2clip.config import save_config
from crawl2clip.distributed import World, distributed
from crawl2clip.errors import DataError
from crawl2clip.export import export_model
from crawl2clip.files import read_json, write_json
from crawl2clip.logs import progress as progress_bar
from crawl2clip.logs import provenance, setup_logging
from crawl2clip.models import CONFIG_NAME
from evaluate.ranks import on_main
from train.card import card_of_run
from train.checkpoints.checkpoint_folder import find_newest, list_checkpoints, remove_checkpoint
from train.checkpoints.open_published import bring_log, open_published
from train.checkpoints.published_run import PublishedRun
from train.checkpoints.saving import Saver
from train.checkpoints.state_files import StateFiles
from train.config import Plan, TrainConfig, make_plan, validate
from train.data.training_data import find_samples
from train.dry_run import dry_run
from train.in_loop import open_evaluation
from train.loop import Ending, Progress, Reason, Tools, UnstableError, run_steps, save
from train.model.flops import peak_flops
from train.model.precision import check_precision, set_matmul_precision
from train.monitoring.accounting import PROCESS_BEGAN, Accounting, gpu_hours_spent
from train.monitoring.device_idle import DeviceIdle
from train.monitoring.garbage_collection import SteadyGarbageCollection
from train.monitoring.metrics import METRICS_NAME, MetricsLog, read_metrics
from train.monitoring.profiling import StepProfiler
from train.monitoring.roll_back import plan_roll_back
from train.monitoring.safety import Guard
from train.monitoring.watchdog import Watchdog, set_communication_environment
from train.session import Session, open_data, open_session
from train.stages import stage_of
from train.startup import Flops, check_resume, device_name, identity_of, log_startup
from train.stop_signal import STOPPED_EXIT_CODE, StopRequest

logger = logging.getLogger(__name__)


def run(config: TrainConfig, composed: DictConfig) -> int:
    """The command: checks, joins the process group, trains; returns the exit status."""
    if config.dry_run:
        report = dry_run(config)
        print(f"dry run: nothing is trained or written\n{report.table()}")
        report.check()
        return 0
    validate(config, int(os.environ.get("WORLD_SIZE", "1")))
    folder = storage.local_path(config.run_folder)
    set_communication_environment(os.environ, folder)
    with distributed(config.watchdog.comm_timeout_s, config.device) as world:
        on_main(world, lambda: bring_log(folder))
        if world.is_main:
            save_config(composed, folder)
            write_json(folder / "provenance.json", provenance())
            setup_logging(world.rank, world.world_size, folder)
        return train(config, world)


def train(config: TrainConfig, world: World) -> int:
    """Trains to the end, or until a signal asks to stop; the same call goes on from the last checkpoint.

    A run whose folder is in an object store goes on from what is there, on any machine.

    Returns:
        0 when the run is complete, STOPPED_EXIT_CODE when it saved and stopped on SIGTERM or SIGUSR1.

    Raises:
        ConfigError, DataError: settings, data or a checkpoint do not fit.
        UnstableError: loss or gradient are not to be trusted, and the settings say stop; on every rank.
    """
    folder = storage.local_path(config.run_folder)
    check_precision(config.precision.name, world.device)
    set_matmul_precision(config.precision.name)
    samples = find_samples(config.data, world)
    plan = make_plan(config, len(samples), world.world_size)
    identity = identity_of(config, plan)
    published = open_published(folder, config.checkpoint, world)
    state = find_newest(folder / "checkpoints", repair=True, world=world)
    if state is not None:
        check_resume(state, identity, plan)
    progress = Progress.of(state)
    log_startup(config, plan, state, world)
    if progress.step >= plan.total_steps and exported_step(folder / "export") == progress.step:
        publish(published, world)  # what an earlier start may not have come to
        logger.info("the run is complete: %s", folder / "export")
        return 0

    with ExitStack() as stack:
        if published is not None:
            stack.callback(published.close)
            published.start()
        tools = make_tools(config, plan, progress, identity, world, published, stack)
        data, texts = None, None
        while True:
            stage = stage_of(plan.stages, progress.step + 1)
            if data is None or texts != (stage.context_length, stage.text_mask):
                data, texts = (
                    open_data(config, stage, samples, world),
                    (stage.context_length, stage.text_mask),
                )
                tools.watchdog.sample = data.reading
            session = open_session(config, stage, data, state, world, tools.watchdog.enter)
            if state is not None and progress.position != state.progress["position"]:
                save(session, tools, progress, {})  # a kill must not undo a roll back
            ending = run_steps(session, tools, progress)
            tools.saver.finish()
            if ending.reason is Reason.stopped:
                on_main(world, lambda: published.try_to_publish() if published is not None else None)
                if world.is_main:
                    by = tools.request.received or "a signal on another rank"
                    logger.warning("saved and stopped by %s; the same command goes on (exit status 75)", by)
                return STOPPED_EXIT_CODE
            if ending.reason is Reason.stage_done and progress.step >= plan.total_steps:
                break
            session.close()
            del session
            tools.garbage.collect()  # its memory is the next one's
            if ending.reason is Reason.roll_back:
                state = roll_back(ending, tools, progress)
            else:
                state = find_newest(folder / "checkpoints", repair=False, world=world)
                tools.guard.forget()
        export(session, tools, progress, folder)
        publish(published, world)
    return 0


def publish(published: PublishedRun | None, world: World) -> None:
    """Waits until everything is in the store. Collective.

    Raises:
        DataError: it cannot be put there; on every rank.
    """
    on_main(world, lambda: published.publish() if published is not None else None)


def make_tools(
    config: TrainConfig,
    plan: Plan,
    progress: Progress,
    identity: dict,
    world: World,
    published: PublishedRun | None,
    stack: ExitStack,
) -> Tools:
    """Everything that lives as long as the run; `stack` closes it."""
    folder = storage.local_path(config.run_folder)
    guard = Guard(config.safety, config.loss.max_logit_scale)
    if progress.guard:
        guard.load_state_dict(progress.guard)
    spent = gpu_hours_spent({"gpu_hours": progress.gpu_hours}, read_metrics(folder / METRICS_NAME))
    log = None
    if world.is_main:
        log = MetricsLog(
            folder, progress.step, config.run_name, config.wandb, asdict(config), config.logging.tensorboard
        )
        stack.callback(log.close)
    profiler = StepProfiler(config.profile, folder, enabled=world.is_main, device=world.device)
    stack.callback(profiler.close)
    bar = progress_bar(total=plan.total_steps, desc="training", unit="step", disable=not world.is_main)
    bar.update(progress.step)
    return Tools(
        config=config,
        plan=plan,
        world=world,
        scored=open_evaluation(config.evaluation, world),
        saver=stack.enter_context(
            # Rank 0 gives up on a part before the others' collectives give up on rank 0.
            Saver(
                folder / "checkpoints",
                config.checkpoint,
                world,
                identity,
                timeout_s=0.9 * config.watchdog.comm_timeout_s,
                follower=published,
            )
        ),
        published=published,
        guard=guard,
        accounting=Accounting(
            world_size=world.world_size,
            peak_flops=peak_flops(device_name(world.device), config.precision.name.value),
            gpu_hours=spent,
            idle=DeviceIdle.of(world.device),
            began=PROCESS_BEGAN,
        ),
        flops=Flops(config.loss.teacher),
        log=log,
        bar=stack.enter_context(bar),
        watchdog=stack.enter_context(Watchdog(config.watchdog, folder, world.rank, world.world_size)),
        profiler=profiler,
        garbage=stack.enter_context(SteadyGarbageCollection()),
        request=stack.enter_context(StopRequest()),
    )


def roll_back(ending: Ending, tools: Tools, progress: Progress) -> StateFiles:
    """The checkpoint to go on from after a roll back; `progress` then points behind every sample drawn so far.

    Raises:
        UnstableError: there is no checkpoint from before the trouble.
    """
    verdict, safety = ending.verdict, tools.config.safety
    assert verdict is not None
    folder = tools.saver.folder
    saved = {}
    for path in list_checkpoints(folder) if tools.world.is_main else []:
        try:
            found = StateFiles(path)
        except DataError:  # find_newest names it
            continue
        saved[found.step] = found.progress["position"]
    saved = tools.world.all_gather_object(saved)[0]
    stage = stage_of(tools.plan.stages, progress.step)
    plan = plan_roll_back(
        saved,
        since=verdict.since,
        drawn=progress.position,
        global_batch_size=stage.global_batch_size,
        rewind_steps=safety.rewind_steps,
        min_skipped_steps=safety.min_skipped_steps,
    )
    state = find_newest(folder, repair=True, world=tools.world, up_to=plan.step) if plan else None
    if plan is None or state is None:
        raise UnstableError(
            f"{verdict.message}. No checkpoint in {folder} is from before step {verdict.since}, so there is nothing to "
            "roll back to; start again with a lower optimizer.lr, or set checkpoint.every_steps lower"
        )
    if tools.world.is_main:
        logger.warning(
            "%s. Rolled back to step %d; %d samples of the stream are left out",
            verdict.message, state.step, plan.position - state.progress["position"],
        )  # fmt: skip
        # A restart must not take one from after the trouble.
        for path in list_checkpoints(folder):
            if int(path.name[5:]) > state.step:
                remove_checkpoint(path)
    if tools.published is not None:
        tools.published.roll_back(state.step)
    tools.world.barrier()
    progress.step, progress.position = state.step, plan.position
    # The steps after it are done again.
    done = Progress.of(state)
    progress.bad_draws, progress.bad_reasons = done.bad_draws, done.bad_reasons
    progress.skipped_samples = plan.position - tools.plan.samples_seen(state.step)
    tools.guard.rolled_back(state.step)
    if tools.log is not None:
        tools.log.rewind(state.step)
    tools.bar.reset()
    tools.bar.update(state.step)
    return state


def export(session: Session, tools: Tools, progress: Progress, folder: Path) -> None:
    """Writes the trained model as open_clip loads it, with its model card."""
    plan, world = tools.plan, tools.world
    seen = plan.samples_seen(progress.step)
    card = card_of_run(folder, tools.config.data, num_samples=plan.samples_per_epoch, samples_seen=seen)
    # What a scaling law is fitted over; multiply-adds of a forward with the whole caption, as Cherti et al. 2023 count.
    gmacs = tools.flops.forward(session.model_config, plan.stages[-1].context_length).total / 2e9
    origin = {
        **provenance(),
        "run_name": tools.config.run_name,
        "step": progress.step,
        "training": {"samples_seen": seen, "gmacs_per_sample": gmacs},
    }
    with session.whole() as model:
        if world.is_main:
            path = export_model(model, session.model_config, folder / "export", provenance=origin, card=card)
            logger.info("exported; open_clip.create_model_and_transforms('local-dir:%s') loads it", path)
    world.barrier()  # no rank leaves the group while rank 0 still writes


def exported_step(export_folder: Path) -> int | None:
    """The step whose weights lie in an export folder; None when it holds no export of a run."""
    if not (export_folder / CONFIG_NAME).is_file():
        return None
    return read_json(export_folder / CONFIG_NAME).get("provenance", {}).get("step")
