"""The driver's memory does not grow with the number of shards by more than a few bytes each, whatever it does.

Counted by `tracemalloc` between two numbers of shards, so that neither the machine nor what is held once matters.
"""

import json
import shutil
import tracemalloc
from dataclasses import dataclass

import pytest
from toy_stages import ManyShards, ToyStage

from data_pipeline import funnel_files
from data_pipeline.completion import STATS_SUFFIX
from data_pipeline.executors.local import LocalExecutor
from data_pipeline.funnel_files import write_file_funnel
from data_pipeline.stage import (
    Counts,
    Outcome,
    Shard,
    finished_shards,
    freeze_manifest,
    progress_of,
    run_stage,
    stream_finished,
)
from data_pipeline.status import read_status

FEW, MANY = 1_000, 6_000
RECORD = json.dumps({"counts": Counts(10, 9, {"small": 1}, {"bytes": 100}).to_json(), "seconds": 1.0})
BYTES_A_SHARD = 24
"""8 for the hash of its name, and as much again while the list of hashes is grown. A name alone is 60, a shard with
one input 300 (a list of them was held before)."""


@dataclass
class Later(ToyStage):
    """A stage with a shard for each of an earlier one's."""

    earlier: str = ""

    def shards(self):
        for name in stream_finished(self.earlier):
            yield Shard(name, (f"/elsewhere/{name}.parquet",))


class Pretend:
    """An executor whose shards are there as soon as they are asked for."""

    def run(self, stage, shards):
        for shard in shards:
            (stage.folder / (shard.name + STATS_SUFFIX)).write_text(RECORD)
            yield Outcome(shard, None)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Stages of few and of many shards."""
    return [
        ManyShards(tmp_path_factory.mktemp("run") / str(number) / "toy", number) for number in (FEW, MANY)
    ]


def growth(work, stages):
    """Bytes a shard."""
    peaks = []
    work(stages[0])  # what is held once, such as a module, is there the second time
    for stage in stages:
        tracemalloc.start()
        work(stage)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return (peaks[1] - peaks[0]) / (stages[1].num_shards - stages[0].num_shards)


def run(stage):
    report = run_stage(stage, Pretend(), max_failed_fraction=0.0)
    assert report.done + report.skipped == stage.num_shards


def run_anew(stage):
    for path in stage.folder.glob("*"):
        path.unlink()
    run(stage)


def look(stage):
    (step,) = read_status(stage.folder.parent, [])
    assert (step.done, step.total) == (stage.num_shards, stage.num_shards)


def later(stage):
    next_one = Later(stage.folder.parent / ".later" / "toy", earlier=str(stage.folder))
    assert len(freeze_manifest(next_one)) == stage.num_shards


def funnel(stage):
    write_file_funnel(stage.folder.parent / ".funnel", "toy", stage.folder, {}, Counts(extra={"bytes": 1}))


def test_what_the_driver_does_takes_a_few_bytes_a_shard(stages, monkeypatch):
    monkeypatch.setattr(funnel_files, "_ROWS_AT_ONCE", 500)
    for stage in stages:
        stage.folder.mkdir(parents=True)
    grown = {work.__name__: growth(work, stages) for work in (run_anew, run, look, later, funnel)}
    assert max(grown.values()) < BYTES_A_SHARD, grown
    assert progress_of(stages[0].folder) == (FEW, FEW)
    assert finished_shards(stages[0].folder)[-1] == f"{FEW - 1:08d}"


def test_a_run_in_worker_processes_takes_a_few_bytes_a_shard(tmp_path):
    def run_here(stage):
        executor = LocalExecutor(num_workers=1, retries=0, shard_timeout_s=600.0)
        assert run_stage(stage, executor, max_failed_fraction=0.0).done == stage.num_shards
        shutil.rmtree(stage.folder)

    stages = [ManyShards(tmp_path / str(number), number) for number in (100, 500)]
    assert growth(run_here, stages) < 100  # a shard that waits was 400
