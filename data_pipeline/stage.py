"""The frame that every stage of the pipeline fits in.

A stage turns input shards into output shards, one at a time and independently, so it runs the same in
one worker process, in many, or on a cluster. An output shard is complete when its `NAME.stats.json` is
there: that file is moved into the stage's folder last, after every file it lists. Running a stage again
runs the shards that are missing and nothing else, whatever killed the run before.

What may surprise: shards are known by name, never by number, and their list is frozen in
`manifest.json` the first time a stage starts. It stays on disk and is read whenever it is gone through,
since there may be millions. A rerun that would make other shards, from other inputs or with other
settings, is an error, so one folder never holds the output of two different runs.
"""

import fcntl
import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.logs import progress
from data_pipeline.completion import (
    MANIFEST,
    STATS_SUFFIX,
    finished_names,
    finished_shards,
    freeze_manifest,
    is_finished,
    make_shard,
    progress_of,
    publish_shard,
    read_stats,
    record_failure,
    remove_temporary,
    stream_finished,
    temporary_folder,
)
from data_pipeline.frozen_list import Shard

__all__ = [
    "MANIFEST", "STATS_SUFFIX", "Counts", "Executor", "Outcome", "Shard", "Stage", "StageReport", "TooManyFailures",
    "finished_shards", "freeze_manifest", "is_finished", "make_shard", "progress_of", "publish_shard", "read_stats",
    "run_stage", "stream_finished", "temporary_folder",
]  # fmt: skip

logger = logging.getLogger(__name__)

_EARLY_STOP_FAILURES = 10  # a run over its failure limit still tries this many bad shards before it stops


@dataclass
class Counts:
    """What happened to the rows of a shard, or of a whole stage.

    Attributes:
        rows_in: rows read.
        rows_out: rows written.
        dropped: reason (from the stage's closed list) -> rows that are not in the output for it.
        extra: anything else worth counting, by name (bytes, damaged records, cache hits).
    """

    rows_in: int = 0
    rows_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    extra: Counter[str] = field(default_factory=Counter)

    def merge(self, other: "Counts") -> None:
        """Adds another's counts to these."""
        self.rows_in += other.rows_in
        self.rows_out += other.rows_out
        self.dropped.update(other.dropped)
        self.extra.update(other.extra)

    def to_json(self) -> dict[str, Any]:
        """The counts as plain JSON values."""
        return {
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "dropped": dict(self.dropped),
            "extra": dict(self.extra),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Counts":
        """The inverse of `to_json`."""
        return cls(value["rows_in"], value["rows_out"], Counter(value["dropped"]), Counter(value["extra"]))


class Stage(ABC):
    """One step of the pipeline. Subclasses are dataclasses of plain data: they are pickled to workers.

    Attributes:
        name: what the funnel, the progress bar and the reports call it.
        folder: where its output shards go.
        settings: JSON values; everything that changes the output. Frozen in the manifest.
        max_workers: the most worker processes it can use; None means as many as the executor has.
        gpus_per_worker: GPUs that a worker needs, which a cluster is asked for.
        shares_inputs: whether several shards have inputs in common, so that those brought from a store stay.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    max_workers: int | None = None
    gpus_per_worker = 0
    shares_inputs = False

    def inputs_to_fetch(self, shard: Shard) -> Sequence[str]:
        """The inputs that must be on this machine for `run`; others it reads where they are."""
        return shard.inputs

    @abstractmethod
    def shards(self) -> Iterable[Shard]:
        """The output shards, in order. Called once the stages before have finished; cheap.

        Where there may be very many, they are made one at a time: the frame keeps none of them in memory.
        """

    def prepare(self) -> None:
        """Called before the list of shards is frozen or compared, by the one run that is at work in the folder.

        A stage whose list may grow sees to it here that what it has is still right, and lets it be frozen anew.
        """
        return None

    def setup(self) -> Any:
        """Whatever `run` needs and is costly to make, such as a model; made once a worker process.

        `CRAWL2CLIP_WORKER_SLOT` in the environment is this worker's number, from 0: a stage with a
        model may take it modulo the number of GPUs. A failure here stops the whole stage.
        """
        return None

    @abstractmethod
    def run(self, context: Any, shard: Shard, temporary: Path) -> Counts:
        """Makes one output shard.

        Writes files named `f"{shard.name}.<ext>"` into the folder `temporary`, which is empty, and
        nothing anywhere else. The same shard gives the same bytes, if the stage can promise that. A
        bad row is counted under a reason; an exception fails the shard, and it is tried again.

        Args:
            context: what `setup` returned in this process.
            shard: the shard to make.
            temporary: an empty folder on the same file system as the stage's folder.
        """


@dataclass(frozen=True)
class Outcome:
    """How the last try of a shard ended: `error` is None when its output is in place."""

    shard: Shard
    error: str | None


class Shards(Protocol):
    """Shards that are to be made, in order; they may be gone through several times."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Shard]: ...


class Executor(Protocol):
    """Runs a stage's shards somewhere, several at a time. See `data_pipeline.executors`."""

    def run(self, stage: Stage, shards: Shards) -> Iterator[Outcome]:
        """Yields one outcome a shard, as they end. Closing the iterator stops the workers.

        Holds the shards that are at work, and of the others a few bytes each at most.
        """
        ...


@dataclass
class StageReport:
    """What one run of a stage did.

    Attributes:
        stage: the stage's name.
        done: shards finished in this run.
        skipped: shards that were complete before it.
        failed: shard name -> why its last try failed.
        counts: rows of all complete shards, those of earlier runs too.
        seconds: wall time of this run.
        worker_seconds: time inside `Stage.run`, summed over all complete shards.
    """

    stage: str
    done: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    seconds: float = 0.0
    worker_seconds: float = 0.0


class TooManyFailures(DataError):
    """More shards of a stage failed than allowed. `report` says which and why."""

    def __init__(self, message: str, report: StageReport) -> None:
        super().__init__(message)
        self.report = report


def run_stage(stage: Stage, executor: Executor, *, max_failed_fraction: float) -> StageReport:
    """Runs the shards of a stage that are missing.

    Args:
        stage: what to run; the stages before it have finished.
        executor: where to run it.
        max_failed_fraction: 0 to 1, of all shards. Shards that fail up to this are only reported.

    Raises:
        TooManyFailures: more shards failed; those that could be made are in place all the same.
        ConfigError: the folder holds another run's output, or another run is at work in it.
    """
    started = time.monotonic()
    stage.folder.mkdir(parents=True, exist_ok=True)
    with _only_run_in(stage.folder):
        stage.prepare()
        shards = freeze_manifest(stage)
        finished = finished_names(stage.folder)
        report = StageReport(stage.name)
        for shard in shards if len(finished) else ():
            if shard.name in finished:
                report.skipped += 1
                _add_stats(report, stage.folder, shard)
        missing = shards.without(finished, report.skipped)
        if len(missing):
            _run_missing(stage, executor, missing, report, max_failed_fraction * len(shards))
            remove_temporary(stage, everywhere=True)
    report.seconds = time.monotonic() - started
    if len(report.failed) > max_failed_fraction * len(shards):
        raise TooManyFailures(_failure_message(report, len(shards), max_failed_fraction), report)
    return report


def _run_missing(
    stage: Stage, executor: Executor, missing: Shards, report: StageReport, allowed_failures: float
) -> None:
    remove_temporary(stage)
    rows_before, started = report.counts.rows_in, time.monotonic()
    outcomes = executor.run(stage, missing)
    with progress(total=len(missing) + report.skipped, desc=stage.name, unit="shard") as bar:
        bar.update(report.skipped)
        for outcome in outcomes:
            if outcome.error is None:
                report.done += 1
                _add_stats(report, stage.folder, outcome.shard)
            else:
                report.failed[outcome.shard.name] = outcome.error
                record_failure(stage.folder, outcome.shard, outcome.error)
                logger.warning("%s: shard %s failed: %s", stage.name, outcome.shard.name, outcome.error)
            rate = (report.counts.rows_in - rows_before) / max(time.monotonic() - started, 1e-9)
            bar.set_postfix_str(
                f"{report.counts.rows_in:,} rows, {rate:,.0f} rows/s, {len(report.failed)} failed",
                refresh=False,  # `update` draws the bar, a few times a second
            )
            bar.update()
            if len(report.failed) > max(allowed_failures, _EARLY_STOP_FAILURES - 1):
                break
    close = getattr(outcomes, "close", None)
    if close is not None:
        close()


def _add_stats(report: StageReport, folder: Path, shard: Shard) -> None:
    stats = read_stats(folder, shard.name)
    report.counts.merge(Counts.from_json(stats["counts"]))
    report.worker_seconds += stats["seconds"]


def _failure_message(report: StageReport, num_shards: int, max_failed_fraction: float) -> str:
    listed = "; ".join(f"{name}: {error}" for name, error in list(report.failed.items())[:3])
    more = f"; and {len(report.failed) - 3} more" if len(report.failed) > 3 else ""
    return (
        f"stage {report.stage!r}: {len(report.failed)} of {num_shards} shards failed ({listed}{more}). "
        f"Allowed is executor.max_failed_fraction={max_failed_fraction:g} of them. "
        "The other shards are kept: run the same command again to retry the failed ones only."
    )


@contextmanager
def _only_run_in(folder: Path) -> Iterator[None]:
    """Holds the folder's lock; the system lets go of it when the process ends, however it ends."""
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another run is at work in {folder}; wait for it or stop it, or choose another output_dir"
            ) from error
        except OSError:  # some network file systems have no locks
            logger.warning("%s cannot be locked: make sure that no other run writes to it", folder)
        yield
