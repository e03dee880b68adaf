"""The folder of a run's checkpoints: the newest whole one, which are kept, and what killed writers left behind."""

import logging
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from omegaconf import MISSING

from crawl2clip.distributed import World, single_process
from crawl2clip.errors import DataError
from train.checkpoints.state_files import StateFiles

_REPLACED_SUFFIX = "-replaced"
_BROKEN_SUFFIX = ".broken"
_TEMPORARY_MARK = ".tmp-"

logger = logging.getLogger(__name__)


class BestMode(Enum):
    """Which of two scores is the better."""

    max = "max"
    min = "min"


@dataclass(kw_only=True)
class BestConfig:
    """The score by which one checkpoint is kept as the best."""

    metric: str = MISSING  # as in metrics.jsonl: "evaluation/<data set>/<task>/<metric>"
    mode: BestMode = MISSING  # max: higher is better; min: lower is

    def better(self, score: float, than: float) -> bool:
        """Whether a score beats another; not-a-number beats nothing."""
        return score > than if self.mode is BestMode.max else score < than


@dataclass(frozen=True)
class Saved:
    """What retention needs to know of a checkpoint."""

    step: int
    scores: Mapping[str, float]


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step_{step:07d}"


def step_of(path: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(path.name[5:])


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first; whether they are whole is not looked at."""
    found = [path for path in folder.glob("step_*") if path.is_dir() and path.name[5:].isdecimal()]
    return sorted(found, key=step_of)


def temporary_path(target: Path, token: str) -> Path:
    """Where a checkpoint is made; `find_newest` clears such names away."""
    return target.with_name(f"{target.name}{_TEMPORARY_MARK}{token}")


def replaced_path(temporary: Path) -> Path:
    """Where a checkpoint waits while a temporary one takes its place; `find_newest` puts it back if that never came."""
    return temporary.with_name(temporary.name + _REPLACED_SUFFIX)


def find_newest(
    folder: Path, *, repair: bool, world: World | None = None, up_to: int | None = None
) -> StateFiles | None:
    """The newest checkpoint whose bytes are those that were written; every rank calls this and gets the same one.

    Each rank compares the hashes of a share of the files. Newer checkpoints that are not whole are named in the log.

    Args:
        folder: the run's checkpoints.
        repair: renames the broken ones to `*.broken`, and removes what a killed writer left; without it nothing
            is touched.
        world: the ranks; None for this process alone.
        up_to: leaves out checkpoints of later steps, as a roll-back wants it.

    Raises:
        DataError: there are checkpoints and none is whole (starting again from nothing must be the user's choice), or
            a rank does not see the folder.
        ConfigError: the checkpoint has another version of the format.
    """
    world = single_process() if world is None else world
    if repair and world.is_main:
        for leftover in folder.glob(f"step_*{_TEMPORARY_MARK}*"):
            target = folder / leftover.name.partition(_TEMPORARY_MARK)[0]
            if leftover.name.endswith(_REPLACED_SUFFIX) and not target.exists():
                leftover.rename(target)  # the one that was to come in its place did not
            else:
                shutil.rmtree(leftover, ignore_errors=True)
    names = [path.name for path in list_checkpoints(folder)] if world.is_main else None
    names = world.all_gather_object(names)[0]
    broken: dict[Path, str] = {}
    for path in (folder / name for name in reversed(names)):
        if up_to is not None and step_of(path) > up_to:
            continue
        state, problem = _open_whole(path, world)
        if state is None:
            broken[path] = problem
            continue
        if world.is_main:
            for torn, why in broken.items():
                logger.warning("checkpoint %s is passed over for an older one: %s", torn, why)
                if repair:
                    _set_aside(torn)
        world.barrier()
        return state
    if broken:
        listed = "; ".join(f"{path.name}: {problem}" for path, problem in broken.items())
        raise DataError(
            f"{folder} has {len(broken)} checkpoint(s) and none is whole ({listed}); restore one from a copy, or "
            "remove them all to start from the beginning"
        )
    return None


def _open_whole(path: Path, world: World) -> tuple[StateFiles | None, str]:
    """The checkpoint when every rank finds its share of it right; else None and why."""
    state, problem, seen = None, "", path.is_dir()
    try:
        if seen:
            state = StateFiles(path)
            if state.step != step_of(path):
                raise DataError(f"its manifest is of step {state.step}")
            state.verify(world.rank, world.world_size)
    except DataError as error:
        problem = str(error)
    found = world.all_gather_object((seen, problem))
    blind = [rank for rank, (saw, _) in enumerate(found) if not saw]
    if blind:
        raise DataError(
            f"rank {', '.join(map(str, blind))} does not see {path}; put run_folder on a file system that all nodes "
            "share"
        )
    problems = [problem for _, problem in found if problem]
    return (None, problems[0]) if problems else (state, "")


def _set_aside(path: Path) -> None:
    aside = path.with_name(path.name + _BROKEN_SUFFIX)
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)


def steps_to_keep(
    saved: list[Saved], *, keep_last: int, keep_every_steps: int | None, best: BestConfig | None
) -> set[int]:
    """The steps whose checkpoints stay: the newest, the milestones and the best-scored one.

    Args:
        saved: all there are, in any order.
        keep_last: how many of the newest stay.
        keep_every_steps: steps divisible by this stay for ever; None for no such.
        best: by which score the best one is found; None keeps none. The older one wins a tie.
    """
    steps = sorted(checkpoint.step for checkpoint in saved)
    keep = set(steps[-keep_last:])
    if keep_every_steps is not None:
        keep |= {step for step in steps if step % keep_every_steps == 0}
    leader = best_of(saved, best) if best is not None else None
    return keep | {leader.step} if leader is not None else keep


def best_of(saved: list[Saved], best: BestConfig) -> Saved | None:
    """The best-scored checkpoint; None when none has the score."""
    leader: Saved | None = None
    for checkpoint in sorted(saved, key=lambda checkpoint: checkpoint.step):
        score = checkpoint.scores.get(best.metric)
        if score is None or score != score:
            continue
        if leader is None or best.better(score, leader.scores[best.metric]):
            leader = checkpoint
    return leader


def remove_checkpoint(path: Path) -> None:
    """Removes a checkpoint; killed half-way it leaves a name that no reader looks at."""
    doomed = temporary_path(path, uuid.uuid4().hex[:8])
    path.rename(doomed)
    shutil.rmtree(doomed)
