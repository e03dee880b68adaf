"""What `python -m data_pipeline status` tells: before, during and after a run, and of failures."""

import fcntl
import os
import time

import pytest
from toy_stages import InlineExecutor, ToyStage

from crawl2clip.errors import DataError
from data_pipeline.completion import STATS_SUFFIX, record_failure
from data_pipeline.stage import Shard, TooManyFailures, run_stage
from data_pipeline.status import _duration, main, read_status, status_table


def run(stage):
    return run_stage(stage, InlineExecutor(), max_failed_fraction=0.0)


def test_a_run_that_has_failures_names_them_and_a_complete_one_says_so(tmp_path):
    run(ToyStage(tmp_path / "extracted", name="extract", num_shards=2))
    faults = {f"{number:03d}": "raise" for number in range(7)}
    with pytest.raises(TooManyFailures):
        run(ToyStage(tmp_path / "sorted" / "runs", name="deduplicate/runs", num_shards=9, faults=faults))
    extract, runs = read_status(tmp_path, ["extract", "deduplicate"])
    assert (extract.step, extract.done, extract.total, extract.failed) == ("extract", 2, 2, {})
    assert (runs.step, runs.done, runs.total, len(runs.failed)) == ("deduplicate/runs", 2, 9, 7)
    assert (runs.running, runs.at_work, runs.left_s) == (0, "", None)  # nobody is at work
    lines = status_table([extract, runs]).splitlines()
    assert lines[0].split() == ["step", "done", "of", "running", "failed", "rows/s", "left"]
    assert lines[1].split()[:5] == ["extract", "2", "2", "0", "0"]
    assert lines[1].endswith("complete")
    assert lines[3] == "  failed: 000: RuntimeError: shard 000 is cursed"
    assert lines[-1] == "  and 2 more failed; .failed/ in the step's folder has all"
    run(ToyStage(tmp_path / "sorted" / "runs", name="deduplicate/runs", num_shards=9))
    assert read_status(tmp_path, ["extract", "deduplicate"])[1].failed == {}


def test_a_run_at_work_has_a_rate_and_an_end(tmp_path):
    stage = ToyStage(tmp_path / "toy", num_shards=4)
    run(stage)
    now = time.time()
    for name in ("002", "003"):
        (stage.folder / (name + STATS_SUFFIX)).unlink()
    os.utime(stage.folder / ("000" + STATS_SUFFIX), (now - 50, now - 50))
    os.utime(stage.folder / ("001" + STATS_SUFFIX), (now - 10, now - 10))
    (stage.folder / ".tmp" / "node-7" / "002").mkdir(parents=True)
    with open(stage.folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.utime(stage.folder / ".lock", (now - 100, now - 100))
        (step,) = read_status(tmp_path, [])
    assert (step.done, step.running, step.at_work) == (2, 1, "a run on this machine")
    assert step.shards_per_s == pytest.approx(2 / 100, rel=0.2)
    assert step.rows_per_s == pytest.approx(10 * 2 / 100, rel=0.2)
    assert step.left_s == pytest.approx(100, rel=0.2)
    assert "2 min" in status_table([step])


def test_a_damaged_note_of_a_failure_is_passed_over(tmp_path):
    stage = ToyStage(tmp_path / "toy", num_shards=2)
    run(stage)
    record_failure(stage.folder, Shard("000", ()), "why")
    (stage.folder / ".failed" / "001.json").write_text("{")
    (step,) = read_status(tmp_path, [])
    assert step.failed == {"000": "why"}


def test_a_folder_without_a_run_is_an_error(tmp_path, capsys):
    with pytest.raises(
        DataError, match=r"holds no step of a run; give output_dir=FOLDER of one that has started"
    ):
        read_status(tmp_path, [])
    assert main([f"output_dir={tmp_path}"]) == 2
    assert "error: " in capsys.readouterr().err
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "usage: python -m data_pipeline status output_dir=FOLDER" in capsys.readouterr().out


def test_times_are_told_as_people_tell_them():
    assert [_duration(seconds) for seconds in (None, 5, 3600, 5000, 200_000)] == [
        "-", "1 min", "1 h 00 min", "1 h 23 min", "2 d 7 h",
    ]  # fmt: skip
