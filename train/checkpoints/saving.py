"""When training state is saved, and saving it while training goes on.

Training waits for a copy into host memory only; a thread on every rank writes (checkpoint_write.py). A
checkpoint under its own name is whole, whatever is killed and whenever. What went wrong in a thread is told to all
ranks where they meet anyway: at the next save, at `finish`, or at once when the loop sees `failed`.
"""

import json
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from omegaconf import MISSING

from crawl2clip.distributed import World
from crawl2clip.errors import ConfigError, DataError, unknown_name
from crawl2clip.files import read_json
from train.checkpoints.checkpoint_folder import (
    BestConfig,
    Saved,
    best_of,
    checkpoint_path,
    list_checkpoints,
    remove_checkpoint,
    step_of,
    steps_to_keep,
)
from train.checkpoints.checkpoint_write import CheckpointWrite
from train.checkpoints.state import Piece
from train.checkpoints.state_manifest import MANIFEST_NAME
from train.checkpoints.state_parts import StagingMemory

_GRACE_S = 30.0  # how long a run that ends by an error waits for a save that is in flight

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class SaveConfig:
    """When training state is saved and how much of it is kept. The last step and a stop signal always save."""

    every_steps: int | None = MISSING  # optimizer steps between checkpoints, 1 or more; null: not by steps
    every_minutes: float | None = (
        MISSING  # minutes from one checkpoint to the next, above 0; null: not by time
    )
    keep_last: int = MISSING  # newest checkpoints kept; 2 or more, so that a torn newest has one before it
    keep_every_steps: int | None = None  # steps divisible by this are saved and kept for ever; null: none
    keep_best: BestConfig | None = None  # one more is kept, the best by a score; null: none
    asynchronous: bool = MISSING  # true: written while training goes on; false: training waits

    def __post_init__(self) -> None:
        if self.every_steps is not None and self.every_steps < 1:
            raise ConfigError(f"checkpoint.every_steps is {self.every_steps}; give 1 or more steps, or null")
        if self.every_minutes is not None and not self.every_minutes > 0:
            raise ConfigError(
                f"checkpoint.every_minutes is {self.every_minutes}; give minutes above 0, or null"
            )
        if self.keep_last < 2:
            raise ConfigError(
                f"checkpoint.keep_last is {self.keep_last}; give 2 or more, so that there is one to fall back on"
            )
        if self.keep_every_steps is not None and self.keep_every_steps < 1:
            raise ConfigError(
                f"checkpoint.keep_every_steps is {self.keep_every_steps}; give 1 or more steps, or null"
            )


def is_due(config: SaveConfig, step: int, since_save_s: float) -> bool:
    """Whether a checkpoint is due after a step.

    By steps every rank comes to the same answer; clocks differ, so ranks must take rank 0's when
    `every_minutes` is set.

    Args:
        config: when to save.
        step: optimizer steps done.
        since_save_s: seconds since the last save began, or since the start of the run.
    """
    intervals = (config.every_steps, config.keep_every_steps)
    if any(steps is not None and step % steps == 0 for steps in intervals):
        return True
    return config.every_minutes is not None and since_save_s >= 60 * config.every_minutes


class Follower(Protocol):
    """Who does something with checkpoints once they are saved (train/checkpoints/published_run.py); on rank 0."""

    @property
    def being_put(self) -> int | None:
        """The step whose files must stay for now."""
        ...

    def wake(self) -> None:
        """A checkpoint is saved, old ones are removed; returns at once."""


class Saver:
    """Saves a run's state, one save at a time; every rank has one and calls its methods at the same steps.

    Attributes:
        folder: the run's checkpoints.
        saved_at_s: `time.monotonic()` of the start of the last save, or of the run; for `is_due`.
    """

    def __init__(
        self,
        folder: Path,
        config: SaveConfig,
        world: World,
        identity: Mapping[str, Any],
        *,
        timeout_s: float = 1800.0,
        follower: Follower | None = None,
    ) -> None:
        """Agrees with the other ranks on names; call it after `find_newest`.

        Args:
            folder: the run's checkpoints, on a file system that all ranks share.
            config: what is kept, and whether training waits.
            world: the ranks.
            identity: what a run must share to go on from these checkpoints; JSON-able.
            timeout_s: how long rank 0 waits for the other ranks' parts of one checkpoint.
            follower: told of each saved checkpoint; None for nobody.
        """
        self.folder = folder
        self.saved_at_s = time.monotonic()
        self._config = config
        self._world = world
        self._identity = dict(identity)
        self._timeout_s = timeout_s
        self._follower = follower
        # Parts that an earlier, killed run left under the same step must not be taken for this run's.
        self._token: str = world.all_gather_object(uuid.uuid4().hex[:8])[0]
        self._num_saves = 0
        self._memory = StagingMemory()
        self._write: CheckpointWrite | None = None
        self._saved: dict[int, Mapping[str, float]] = {}  # rank 0: scores of the checkpoints there are
        if world.is_main and config.keep_best is not None:
            for path in list_checkpoints(folder):
                self._saved[step_of(path)] = _scores_in(path)

    @property
    def failed(self) -> bool:
        """Whether this rank's writer has failed; ranks that share this flag call `finish`, which raises on all."""
        return self._write is not None and self._write.error is not None

    def is_best(self, scores: Mapping[str, float]) -> bool:
        """Whether these scores beat those of every checkpoint so far, by `keep_best`; rank 0's answer counts.

        Raises:
            ConfigError: there are scores, and the one of `keep_best` is not among them.
        """
        best = self._config.keep_best
        if best is None or not scores:
            return False
        if best.metric not in scores:
            do = "Set checkpoint.keep_best.metric to one of these, or checkpoint.keep_best=null."
            raise ConfigError(unknown_name("score in checkpoint.keep_best", best.metric, scores, do=do))
        there = {step_of(path) for path in list_checkpoints(self.folder)}  # a roll back has removed some
        if self._write is not None:
            there.add(self._write.step)
        leader = best_of([Saved(step, found) for step, found in self._saved.items() if step in there], best)
        return leader is None or best.better(scores[best.metric], leader.scores[best.metric])

    def save(
        self,
        step: int,
        pieces: Sequence[Piece],
        progress: Mapping[str, Any],
        scores: Mapping[str, float] | None = None,
    ) -> float:
        """Saves the state of a step; when it returns, the tensors may be changed. Collective.

        Waits for the save before this one. A checkpoint of the same step, which a rolled-back run leaves, is replaced.

        Args:
            step: optimizer steps done.
            pieces: this rank's share of the state; all ranks' pieces together cover every row once.
            progress: everything else, JSON-able; rank 0's is kept.
            scores: metrics of an evaluation at this very step; rank 0's are kept.

        Returns:
            Milliseconds that training stood still.

        Raises:
            DataError: this save or the one before cannot be written; on every rank.
        """
        started = time.monotonic()
        self.finish()
        waited = time.monotonic()
        self.saved_at_s = started
        self._num_saves += 1
        scores = dict(scores or {})
        about = {"step": step, "identity": self._identity, "progress": dict(progress), "scores": scores}
        about = json.loads(json.dumps(about))  # a copy, and an error here and now for what JSON cannot hold
        staged = self._memory.stage(pieces)
        copied = time.monotonic()
        self._saved = {**self._saved, step: scores}
        self._write = CheckpointWrite(
            checkpoint_path(self.folder, step),
            staged,
            about,
            rank=self._world.rank,
            world_size=self._world.world_size,
            token=f"{self._token}-{self._num_saves}",
            timeout_s=self._timeout_s,
            committed=lambda: self._committed(step),
        )
        if not self._config.asynchronous:
            self.finish()
        stood_ms = 1000 * (time.monotonic() - started)
        logger.info(
            "checkpoint of step %d: training stood still for %.0f ms (%.0f for the save before, %.0f to copy %.3f GB)",
            step, stood_ms, 1000 * (waited - started), 1000 * (copied - waited), staged.num_bytes / 1e9,
        )  # fmt: skip
        return stood_ms

    def finish(self) -> None:
        """Waits until the last save is on the disk under its own name. Collective.

        Raises:
            DataError: it could not be written, on every rank; the checkpoints before it are as they were.
        """
        write = self._write
        if write is None:
            return
        write.wait_for_part()
        problems = self._problems(write)
        if problems:
            write.abandon()
        write.join()
        problems = problems or self._problems(write)  # rank 0 may have failed after every part was there
        self._write = None
        if not problems:
            return
        if self._world.is_main:
            write.clear()  # again: a rank that was late may have written after rank 0's thread did
        before = [path.name for path in list_checkpoints(self.folder)]
        stays = f"{before[-1]} and those before it are untouched" if before else "there is no earlier one"
        raise DataError(
            f"the checkpoint of step {write.step} could not be written: {'; '.join(problems)}. What was written of it "
            f"has been removed, {stays}; put that right and run the same command again"
        ) from write.error

    def close(self) -> None:
        """Ends without the other ranks, after an error of training; a save in flight gets a little time."""
        write, self._write = self._write, None
        if write is None:
            return
        write.join(_GRACE_S)
        if write.error is not None:
            logger.error("the checkpoint of step %d could not be written: %s", write.step, write.problem())

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _problems(self, write: CheckpointWrite) -> list[str]:
        """What went wrong on each rank, in words; empty when nothing did."""
        found = self._world.all_gather_object(write.problem())
        return [f"rank {rank}: {problem}" for rank, problem in enumerate(found) if problem is not None]

    def _committed(self, step: int) -> None:
        self._prune(step)
        if self._follower is not None:
            self._follower.wake()

    def _prune(self, newest: int) -> None:
        there = {step_of(path): path for path in list_checkpoints(self.folder)}
        self._saved = {step: self._saved.get(step, {}) for step in there}
        keep = steps_to_keep(
            [Saved(step, scores) for step, scores in self._saved.items()],
            keep_last=self._config.keep_last,
            keep_every_steps=self._config.keep_every_steps,
            best=self._config.keep_best,
        )
        if self._follower is not None and self._follower.being_put is not None:
            keep.add(self._follower.being_put)  # goes after the next save
        for step, path in there.items():
            if step in keep or step == newest:
                continue
            try:
                remove_checkpoint(path)
            except OSError as error:  # training must not end for the sake of an old checkpoint
                logger.warning("the old checkpoint %s could not be removed: %s", path, error)


def _scores_in(path: Path) -> Mapping[str, float]:
    try:
        scores = read_json(path / MANIFEST_NAME).get("scores")
    except (DataError, AttributeError):
        return {}
    return scores if isinstance(scores, dict) else {}
