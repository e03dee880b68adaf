"""What the frame costs when a stage has very many shards: freezing the list, running, status, resuming, with no work.

    python benchmarks/scale.py [tasks=100000] [small=10000] [folder=/tmp/crawl2clip-scale]

Every phase runs in a process of its own, for few tasks and for many, so that the cost of a task and the memory can be
compared: neither should grow with the number of tasks more than a list of names does. `make` is the one phase that is
not simulated: shards are made and published by the frame itself, with all its files and flushes to disk, by one
process; it is done for a tenth of the tasks. `hand out` is the Slurm executor up to sbatch, which is a stand-in here.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_pipeline.completion import STATS_SUFFIX, freeze_manifest
from data_pipeline.stage import (
    Counts,
    Outcome,
    Shard,
    Shards,
    Stage,
    make_shard,
    publish_shard,
    run_stage,
    temporary_folder,
)

PHASES = ("freeze", "run", "status", "resume half", "resume none", "hand out", "make")
STATS = json.dumps(
    {
        "stage": "scale", "shard": "0", "inputs": [], "seconds": 1.0, "files": {},
        "counts": {"rows_in": 10_000, "rows_out": 5_000, "dropped": {"a": 3_000, "b": 2_000}, "extra": {"bytes": 1}},
    }
)  # fmt: skip


@dataclass
class ScaleStage(Stage):
    """Shards that are a line of text."""

    folder: Path
    tasks: int
    name: str = "scale"

    def __post_init__(self) -> None:
        self.settings = {"tasks": self.tasks}

    def shards(self) -> Iterator[Shard]:
        for n in range(self.tasks):
            yield Shard(f"{n:08d}", (f"/crawl/segment/{n:08d}.warc.wat.gz",))

    def run(self, context: Any, shard: Shard, temporary: Path) -> Counts:
        (temporary / f"{shard.name}.txt").write_text("a line\n")
        return Counts(10_000, 10_000)


class Pretend:
    """An executor whose shards are there as soon as they are asked for."""

    def run(self, stage: Stage, shards: Shards) -> Iterator[Outcome]:
        for shard in shards:
            (stage.folder / (shard.name + STATS_SUFFIX)).write_text(STATS)
            yield Outcome(shard, None)


class Inline:
    """An executor in this process, which makes and publishes as all do."""

    def run(self, stage: Stage, shards: Shards) -> Iterator[Outcome]:
        for shard in shards:
            temporary = temporary_folder(stage, shard)
            make_shard(stage, None, shard, temporary)
            publish_shard(stage, shard, temporary)
            yield Outcome(shard, None)


def whole_run(stage: ScaleStage) -> int:
    """A first run, whose shards are there at once."""
    return run_stage(stage, Pretend(), max_failed_fraction=0.0).done


def look(stage: ScaleStage) -> int:
    """What `python -m data_pipeline status` reads."""
    from data_pipeline.status import read_status

    (step,) = read_status(stage.folder.parent, [])
    assert step.done == stage.tasks
    return stage.tasks


def resume_half(stage: ScaleStage) -> int:
    """A run that finds half of it there."""
    report = run_stage(stage, Pretend(), max_failed_fraction=0.0)
    assert report.done == stage.tasks // 2
    return stage.tasks


def resume_none(stage: ScaleStage) -> int:
    """A run that finds everything there."""
    assert run_stage(stage, Pretend(), max_failed_fraction=0.0).skipped == stage.tasks
    return stage.tasks


def hand_out(stage: ScaleStage) -> int:
    """What the Slurm executor does with a list before the first task runs."""
    from data_pipeline.executors.slurm import SlurmExecutor

    executor = SlurmExecutor(
        cluster="a100", shards_per_task=64, max_parallel_tasks=None, retries=0, shard_timeout_s=60.0
    )
    arrays = executor._hand_out(stage, stage.shards(), set())
    assert sum(array.num_tasks for array in arrays) == -(-stage.tasks // 64)
    return stage.tasks


def make(stage: ScaleStage) -> int:
    """Shards that are made and published for real, with nothing in them."""
    return run_stage(stage, Inline(), max_failed_fraction=0.0).done


WORK: dict[str, Callable[[ScaleStage], int]] = {
    "freeze": lambda stage: len(freeze_manifest(stage)),
    "run": whole_run,
    "status": look,
    "resume half": resume_half,
    "resume none": resume_none,
    "hand out": hand_out,
    "make": make,
}


def measure(phase: str, tasks: int, folder: Path) -> None:
    """In a process of its own: does the phase, prints CPU microseconds a task and the peak memory in MB."""
    stage = ScaleStage(folder / phase.replace(" ", "_") if phase == "make" else folder / "scale", tasks)
    stage.folder.mkdir(parents=True, exist_ok=True)
    import data_pipeline.status  # so that imports are not counted

    assert data_pipeline.status
    before = resource.getrusage(resource.RUSAGE_SELF)
    base_mb, began = before.ru_maxrss / 1024, time.monotonic()
    done = WORK[phase](stage)
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    wall = time.monotonic() - began
    print(json.dumps({
        "cpu_us": 1e6 * cpu / done, "wall_us": 1e6 * wall / done, "grown_mb": used.ru_maxrss / 1024 - base_mb,
    }))  # fmt: skip


def measured(phase: str, tasks: int, folder: Path, programs: Path) -> dict[str, float]:
    """What a process of its own measured."""
    if phase == "resume half":
        for number in range(0, tasks, 2):
            (folder / "scale" / f"{number:08d}{STATS_SUFFIX}").unlink()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, f"phase={phase}", f"tasks={tasks}", f"folder={folder}"],
        env=os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def pretend_slurm(folder: Path) -> Path:
    """A folder with an sbatch that takes every job."""
    folder.mkdir(parents=True)
    for name, said in (("sbatch", "17"), ("squeue", ""), ("scontrol", "MaxArraySize = 1001")):
        (folder / name).write_text(f"#!/bin/sh\necho '{said}'\n")
        (folder / name).chmod(0o755)
    return folder


def main(words: list[str]) -> None:
    """Measures all phases and prints a table and the result lines."""
    settings = {
        "tasks": "100000", "small": "10000", "folder": "/tmp/crawl2clip-scale", "phase": "",
        **dict(word.split("=", 1) for word in words),
    }  # fmt: skip
    folder, sizes = Path(settings["folder"]), [int(settings["small"]), int(settings["tasks"])]
    if settings["phase"]:
        return measure(settings["phase"], sizes[1], folder)
    shutil.rmtree(folder, ignore_errors=True)
    programs = pretend_slurm(folder / "programs")
    rows: dict[str, list[dict[str, float]]] = {}
    for phase in PHASES:
        for size in sizes:
            tasks = size // 10 if phase == "make" else size
            rows.setdefault(phase, []).append(measured(phase, tasks, folder / str(size), programs))
    shutil.rmtree(folder)
    print(
        f"| phase | CPU us a task: {sizes[0]:,} | {sizes[1]:,} | wall us | memory MB: {sizes[0]:,} | {sizes[1]:,} |"
    )
    print("|---|---|---|---|---|---|")
    for phase, (few, many) in rows.items():
        print(
            f"| {phase} | {few['cpu_us']:.1f} | {many['cpu_us']:.1f} | {many['wall_us']:.1f} "
            f"| {few['grown_mb']:.0f} | {many['grown_mb']:.0f} |"
        )
    for phase, (few, many) in rows.items():
        name = phase.replace(" ", "_")
        print(
            f"result name=scale_{name} ours={many['cpu_us']:.1f} fewer={few['cpu_us']:.1f} target=1.5x unit=us"
        )
    most = max(many["grown_mb"] for many in (row[1] for row in rows.values()))
    print(f"result name=scale_memory ours={most:.0f} target=200 unit=MB")


if __name__ == "__main__":
    main(sys.argv[1:])
