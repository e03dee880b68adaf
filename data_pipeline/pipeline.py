"""The pipeline: its table of stages, and a run of them.

Every stage reads what earlier stages wrote to the output folder and nothing else, so any one of them can be
run alone, on another machine or another day, once those it needs have finished.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from crawl2clip import storage
from crawl2clip.errors import ConfigError, unknown_name
from data_pipeline import (
    deduplicate,
    documents,
    download,
    extract,
    index,
    report,
    reshard,
    select,
    tag,
)
from data_pipeline.config import PipelineConfig
from data_pipeline.executors import make_executor
from data_pipeline.funnel import FunnelRow, funnel_row, funnel_table, update_funnel
from data_pipeline.funnel_files import file_summary, read_step_files, write_file_funnel
from data_pipeline.stage import Executor, Stage, StageReport, TooManyFailures, progress_of, run_stage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One line of the table of stages.

    Attributes:
        steps: the settings -> the stages of the frame that it consists of, in order; checks the settings.
        folders: the settings -> where those that later stages read write, below the output folder.
        needs: the settings -> the earlier stages whose output it reads.
        only_when_named: it is no part of a run of all stages.
    """

    steps: Callable[[PipelineConfig], list[Stage]]
    folders: Callable[[PipelineConfig], list[str]]
    needs: Callable[[PipelineConfig], list[str]]
    only_when_named: bool = False


STAGES: dict[str, Entry] = {
    "extract": Entry(lambda c: [extract.make_stage(c)], lambda c: ["candidates"], lambda c: []),
    "deduplicate": Entry(deduplicate.make_stages, lambda c: ["deduplicated"], lambda c: ["extract"]),
    "download": Entry(
        lambda c: [download.make_stage(c)],
        lambda c: ["raw"],
        lambda c: ["deduplicate"] if c.download.update is None else [],
    ),
    "tag": Entry(
        tag.make_stages, lambda c: [f"tags/{name}" for name in c.tagger.taggers], lambda c: ["download"]
    ),
    "select": Entry(lambda c: [select.make_stage(c)], lambda c: ["subset"], lambda c: ["download", "tag"]),
    "reshard": Entry(
        reshard.make_stages,
        lambda c: ["reshard/publish"],
        lambda c: ["download", "select"] if c.reshard.uids is None else ["download"],
    ),
    "report": Entry(
        lambda c: [report.make_stage(c)], lambda c: ["report"], lambda c: ["download", "tag", "select"]
    ),
    # What the explorer searches; it has an extra of its own.
    "index": Entry(
        index.make_stages, lambda c: ["index/whole"], lambda c: ["download", "tag"], only_when_named=True
    ),
    # Another kind of data set from the same crawl: no stage for pairs reads it, and it needs WARC files.
    "documents": Entry(
        lambda c: [documents.make_stage(c)], lambda c: ["documents"], lambda c: [], only_when_named=True
    ),
}
"""Stage name -> what it is, in the order in which they run."""


def run_pipeline(config: PipelineConfig) -> str:
    """Runs the stages that are asked for, as far as they are not done yet.

    Args:
        config: the settings; `config.stage` names one stage, or is None for all but those that run only when named.

    Returns:
        The funnel of the output folder, as a table.

    Raises:
        ConfigError: a setting is wrong, or an earlier stage has not finished; found before any work starts.
        TooManyFailures: more shards of a stage failed than allowed; what could be made is in place.
    """
    config = with_local_paths(config)
    steps = validate(config)
    output_dir = Path(config.output_dir)
    executor = make_executor(config.executor)
    rows: list[FunnelRow] = []
    for name, stages in steps.items():
        if not stages:  # a recipe without taggers
            continue
        rows = _run_steps(name, stages, executor, config.executor.max_failed_fraction, output_dir)
    return funnel_table(rows)


def _run_steps(
    name: str, stages: list[Stage], executor: Executor, max_failed_fraction: float, output_dir: Path
) -> list[FunnelRow]:
    """Runs a stage's steps and enters them in the funnel, also when one fails."""
    reports: list[StageReport] = []
    try:
        for stage in stages:
            report = run_stage(stage, executor, max_failed_fraction=max_failed_fraction)
            reports.append(report)
            write_file_funnel(output_dir, stage.name, stage.folder, report.failed, report.counts)
            logger.info(
                "%s: %d rows in, %d out; %d shards done, %d were there already, %d failed; %.1f s",
                stage.name, report.counts.rows_in, report.counts.rows_out,
                report.done, report.skipped, len(report.failed), report.seconds,
            )  # fmt: skip
    except TooManyFailures as error:
        reports.append(error.report)
        stage = stages[len(reports) - 1]
        write_file_funnel(output_dir, stage.name, stage.folder, error.report.failed, error.report.counts)
        rows = update_funnel(output_dir, list(STAGES), funnel_row(name, reports))
        logger.info("the funnel so far:\n%s\n%s", funnel_table(rows), describe_files(output_dir))
        raise
    return update_funnel(output_dir, list(STAGES), funnel_row(name, reports))


def with_local_paths(config: PipelineConfig) -> PipelineConfig:
    """The settings with local paths for addresses in an object store; single files are brought."""

    def here(path: str) -> str:
        return str(storage.local_path(path))

    def brought(paths: list[str]) -> list[str]:
        for path in paths:
            storage.fetch_newest(here(path))
        return [here(path) for path in paths]

    deduplicated, download = config.deduplicate, config.download
    select, reshard = config.select, config.reshard
    return replace(
        config,
        output_dir=here(config.output_dir),
        deduplicate=replace(
            deduplicated,
            earlier=[here(path) for path in deduplicated.earlier],
            blocklist=brought(deduplicated.blocklist),
        ),
        download=replace(download, update=None if download.update is None else here(download.update)),
        select=replace(select, blocklist=brought(select.blocklist)),
        reshard=replace(
            reshard,
            uids=None if reshard.uids is None else brought([reshard.uids])[0],
            weights=None if reshard.weights is None else brought([reshard.weights])[0],
            captions=brought(reshard.captions),
        ),
    )


def describe_files(output_dir: Path | str) -> str:
    """Where the funnels of single files are, and which files were damaged or could not be made; for the terminal."""
    return file_summary(read_step_files(Path(output_dir), list(STAGES)))


def validate(config: PipelineConfig) -> dict[str, list[Stage]]:
    """Checks the settings without doing any work.

    Returns:
        The steps of the stages that are asked for, by stage, in order.

    Raises:
        ConfigError: an unknown stage or executor, a setting that a stage refuses, or a stage that is
            needed by the one asked for and has not finished.
    """
    if config.stage is not None and config.stage not in STAGES:
        raise ConfigError(
            unknown_name(
                "stage", config.stage, STAGES, do="Leave stage out to run all but documents and index."
            )
        )
    make_executor(config.executor)
    if config.stage is None:
        return {name: entry.steps(config) for name, entry in STAGES.items() if not entry.only_when_named}
    for name in STAGES[config.stage].needs(config):
        for folder in STAGES[name].folders(config):
            _require_finished(config, name, Path(config.output_dir) / folder)
    return {config.stage: STAGES[config.stage].steps(config)}


def _require_finished(config: PipelineConfig, stage: str, folder: Path) -> None:
    finished, total = progress_of(folder)
    if total == 0:
        found = f"{folder} holds nothing yet"
    elif total - finished > config.executor.max_failed_fraction * total:
        found = f"{folder} has {finished} of {total} shards"
    else:
        return
    raise ConfigError(
        f"stage={config.stage} needs the output of stage={stage}, which has not finished: {found}. "
        f"Run stage={stage} first, or leave stage out to run all of them in order."
    )
