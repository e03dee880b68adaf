"""`python -m data_pipeline status output_dir=...`: how far every step of a run is, who works on it, and what failed.

It reads what is in the run's folder, and asks Slurm about the job arrays that were handed out for it. So it works
while a run goes on, after it, and for a run of another machine, whatever executor it has.
"""

import fcntl
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crawl2clip import storage
from crawl2clip.errors import Crawl2ClipError, DataError
from data_pipeline.completion import (
    MANIFEST,
    STATS_SUFFIX,
    TEMPORARY_FOLDER,
    finished_names,
    read_failures,
    read_stats,
)
from data_pipeline.frozen_list import SHARDS
from data_pipeline.json_items import read_items

WINDOW_S = 600.0  # rates are those of the last ten minutes
_SAMPLED = 100  # finished shards, about, whose rows are looked at
_NAMED = 5  # failed shards that are named
_DEPTH = 3  # of a step's folder below the run's


@dataclass(frozen=True)
class StepStatus:
    """One step.

    Attributes:
        step: its name.
        total: shards in its frozen manifest.
        done: those that are complete.
        running: shards that are being made now, as far as can be seen from here.
        at_work: who: "a run here", or what Slurm says of the job arrays; empty when nobody is seen.
        failed: shard -> why its last try failed.
        shards_per_s: finished in the last ten minutes, or since the run started; 0 when none was.
        rows_per_s: the same in rows read, from the mean of shards looked at.
        left_s: until the step is complete at this rate; None when nobody is at work or nothing was finished.
    """

    step: str
    total: int
    done: int
    running: int = 0
    at_work: str = ""
    failed: dict[str, str] = field(default_factory=dict)
    shards_per_s: float = 0.0
    rows_per_s: float = 0.0
    left_s: float | None = None


def read_status(output_dir: str | Path, order: Sequence[str]) -> list[StepStatus]:
    """The steps of a run that have started, stages in the given order.

    Raises:
        DataError: the folder holds no run, or a manifest is damaged.
    """
    folder = storage.local_path(output_dir)
    steps: list[tuple[int, float, StepStatus]] = []
    for each in storage.folders_with(folder, MANIFEST, _DEPTH):
        step = _status_of(each)
        if step is not None:
            stage = step.step.partition("/")[0]
            place = list(order).index(stage) if stage in order else len(order)
            steps.append((place, (each / MANIFEST).stat().st_mtime, step))
    if not steps:
        raise DataError(
            f"{storage.public(str(folder))} holds no step of a run; give output_dir=FOLDER of one that has started"
        )
    return [step for _, _, step in sorted(steps, key=lambda entry: entry[:2])]


def _status_of(folder: Path) -> StepStatus | None:
    """None when the manifest is not that of a step, but of training shards or of somebody else."""
    finished = finished_names(folder)
    every = max(1, len(finished) // _SAMPLED)
    about: dict[str, Any] = {}
    done, sampled = 0, []
    storage.fetch_newest(folder / MANIFEST)
    for entry in read_items(folder / MANIFEST, SHARDS, about):
        if isinstance(entry, dict) and str(entry.get("name")) in finished:
            if done % every == 0:
                sampled.append(entry["name"])
            done += 1
    if not about.keys() >= {"stage", "settings", SHARDS}:
        return None
    total = about[SHARDS]
    queue = _queue(folder)
    here = _is_locked(folder)
    running = _shards_in_the_making(folder) if here or queue.get("RUNNING") else 0
    by_slurm = ", ".join(f"{number} {state.lower()}" for state, number in queue.most_common())
    at_work = f"Slurm tasks: {by_slurm}" if queue else "a run on this machine" if here else ""
    rate = _finished_per_s(folder)
    left = (total - done) / rate if rate and at_work and done < total else None
    return StepStatus(
        str(about["stage"]), total, done, running, at_work if done < total else "", read_failures(folder),
        rate, rate * _mean_rows(folder, sampled), left,
    )  # fmt: skip


def _queue(folder: Path) -> Counter[str]:
    """State -> tasks, of the job arrays that are in Slurm's queue for a step."""
    from data_pipeline.executors.slurm import read_arrays, tasks_in_queue

    states: Counter[str] = Counter()
    if shutil.which("squeue"):
        for array in read_arrays(folder):
            try:
                tasks = tasks_in_queue(array.job, silence_s=0.0)
            except DataError:
                states["not known: Slurm does not answer"] += array.num_tasks
                continue
            for state, number in tasks.items():
                word, _, reason = state.partition(" ")
                states[f"{word} ({reason})" if word == "PENDING" else word] += number
    return states


def _is_locked(folder: Path) -> bool:
    """Whether a run holds the folder, as far as this file system tells."""
    try:
        with open(folder / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _shards_in_the_making(folder: Path) -> int:
    number = 0
    with suppress(OSError):
        for worker in os.scandir(folder / TEMPORARY_FOLDER):
            with suppress(OSError):
                number += sum(1 for _ in os.scandir(worker.path))
    return number


def _finished_per_s(folder: Path) -> float:
    """Shards that became complete in the window, or since the run that is at work took the folder, a second."""
    now = time.time()
    began = now - WINDOW_S
    with suppress(OSError):
        began = max(began, (folder / ".lock").stat().st_mtime)
    recent = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(STATS_SUFFIX):
                with suppress(OSError):
                    recent += entry.stat().st_mtime >= began
    return recent / max(now - began, 1.0)


def _mean_rows(folder: Path, sampled: Sequence[str]) -> float:
    rows = []
    for name in sampled:
        with suppress(DataError):
            rows.append(read_stats(folder, name)["counts"]["rows_in"])
    return sum(rows) / len(rows) if rows else 0.0


def status_table(steps: Sequence[StepStatus]) -> str:
    """The steps as a table, with who works on each and why shards failed below it."""
    lines: list[tuple[str, ...]] = [("step", "done", "of", "running", "failed", "rows/s", "left")]
    notes: dict[int, list[str]] = {}
    for step in steps:
        state = "complete" if step.done == step.total else _duration(step.left_s)
        numbers = (f"{step.done:,}", f"{step.total:,}", f"{step.running:,}", f"{len(step.failed):,}")
        lines.append((step.step, *numbers, f"{step.rows_per_s:,.0f}" if step.rows_per_s else "-", state))
        said = [f"  {step.at_work}"] if step.at_work else []
        said += [f"  failed: {name}: {error}" for name, error in list(step.failed.items())[:_NAMED]]
        if len(step.failed) > _NAMED:
            said.append(
                f"  and {len(step.failed) - _NAMED:,} more failed; .failed/ in the step's folder has all"
            )
        notes[len(lines) - 1] = said
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text: list[str] = []
    for number, line in enumerate(lines):
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        text += ["  ".join(cells), *notes.get(number, [])]
    return "\n".join(text)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes = round(seconds / 60)
    days, hours = minutes // 1440, minutes // 60 % 24
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60:02d} min" if hours else f"{max(minutes, 1)} min"


def main(words: Sequence[str]) -> int:
    """The command; returns the exit status: 0, or 2 when there is nothing to tell."""
    from data_pipeline.pipeline import STAGES

    folders = [word.removeprefix("output_dir=") for word in words]
    if len(folders) != 1 or folders[0] in ("-h", "--help") or folders[0].startswith("-"):
        print("usage: python -m data_pipeline status output_dir=FOLDER")
        return 0 if folders[:1] and folders[0] in ("-h", "--help") else 2
    try:
        print(status_table(read_status(folders[0], list(STAGES))))
    except Crawl2ClipError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
