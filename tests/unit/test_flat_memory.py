"""The driver's memory does not grow with the number of shards by more than a few bytes each, whatever it does.

Counted by `tracemalloc` between two numbers of shards, so that neither the machine nor what is held once matters.
"""

import json
import tracemalloc
from collections import Counter
from dataclasses import dataclass

import pytest
from toy_stages import ManyShards, ToyStage

from data_pipeline import frozen_list, funnel_files, json_items
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

FEW, MANY = 300, 1_800
RECORD = json.dumps({"counts": Counts(10, 9, Counter(small=1), Counter(bytes=100)).to_json(), "seconds": 1.0})
BYTES_A_SHARD = 40
"""8 for the hash of its name, and some more while the list of hashes is grown. A name alone is 60, a shard with one
input 300."""


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


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """What is held at once is held whole by few shards too."""
    monkeypatch.setattr(json_items, "_BLOCK", 1 << 12)
    monkeypatch.setattr(frozen_list, "_PIECES", 50)
    monkeypatch.setattr(funnel_files, "_ROWS_AT_ONCE", 100)


def peak(work, stage):
    tracemalloc.start()
    work(stage)
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


def stages_of(folder, few, many):
    """Two stages of few shards and two of many."""
    return [
        [ManyShards(folder / f"{number}{twin}" / "toy", number) for twin in "ab"] for number in (few, many)
    ]


def growth(work, stages):
    """Bytes a shard; of two equal stages the lower counts: what is held once, such as a module, is not there twice."""
    few, many = (min(peak(work, stage) for stage in twins) for twins in stages)
    return (many - few) / (stages[1][0].num_shards - stages[0][0].num_shards)


def run(stage):
    report = run_stage(stage, Pretend(), max_failed_fraction=0.0)
    assert report.done + report.skipped == stage.num_shards


def look(stage):
    (step,) = read_status(stage.folder.parent, [])
    assert (step.done, step.total) == (stage.num_shards, stage.num_shards)


def later(stage):
    next_one = Later(stage.folder.parent / ".later" / "toy", earlier=str(stage.folder))
    assert len(freeze_manifest(next_one)) == stage.num_shards


def funnel(stage):
    write_file_funnel(
        stage.folder.parent / ".funnel", "toy", stage.folder, {}, Counts(extra=Counter(bytes=1))
    )


def test_what_the_driver_does_takes_a_few_bytes_a_shard(tmp_path):
    stages = stages_of(tmp_path, FEW, MANY)
    grown = [(work.__name__, growth(work, stages)) for work in (run, run, look, later, funnel)]
    assert max(each for _, each in grown) < BYTES_A_SHARD, grown
    folder = stages[0][0].folder
    assert (progress_of(folder), finished_shards(folder)[-1]) == ((FEW, FEW), f"{FEW - 1:08d}")


def test_a_run_in_a_worker_process_takes_a_few_bytes_a_shard(tmp_path):
    def run_here(stage):
        executor = LocalExecutor(num_workers=1, retries=0, shard_timeout_s=600.0)
        assert run_stage(stage, executor, max_failed_fraction=0.0).done == stage.num_shards

    # A shard that waits was 400. So few are compared, being made for real, that what is held once counts as well.
    assert growth(run_here, stages_of(tmp_path, 100, 400)) < 100
