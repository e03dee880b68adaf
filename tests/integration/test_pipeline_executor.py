"""The local executor against crashes, hangs and kills: what is lost is one try of one shard."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_stages import ToyStage, outputs

from crawl2clip.errors import ConfigError, DataError
from data_pipeline.executors import EXECUTORS, ExecutorConfig, make_executor
from data_pipeline.executors.local import LocalExecutor
from data_pipeline.stage import TooManyFailures, finished_shards, run_stage

ROOT = Path(__file__).resolve().parents[2]


def run(stage, *, num_workers=2, retries=1, shard_timeout_s=60.0, max_failed_fraction=0.0):
    executor = LocalExecutor(num_workers=num_workers, retries=retries, shard_timeout_s=shard_timeout_s)
    return run_stage(stage, executor, max_failed_fraction=max_failed_fraction)


def tries_of(stage):
    return sorted((stage.folder / "log.txt").read_text().split())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    stage = ToyStage(tmp_path_factory.mktemp("unbroken") / "toy", num_shards=6)
    run(stage)
    return outputs(stage.folder)


def test_a_killed_worker_costs_one_try_of_its_shard(tmp_path, unbroken):
    stage = ToyStage(tmp_path / "toy", num_shards=6, faults={"002": "kill_once", "004": "raise_once"})
    report = run(stage)
    assert (report.done, report.failed) == (6, {})
    assert outputs(stage.folder) == unbroken
    assert tries_of(stage) == ["000", "001", "002", "003", "004", "005"]  # nothing was made twice


def test_shards_that_always_fail_are_named_and_the_others_are_made(tmp_path, unbroken):
    faults = {"000": "kill", "003": "raise"}
    stage = ToyStage(tmp_path / "toy", num_shards=6, faults=faults)
    with pytest.raises(TooManyFailures) as info:
        run(stage)
    failed = info.value.report.failed
    assert failed["000"] == "its worker process died (signal SIGKILL)"
    assert failed["003"].startswith("RuntimeError: shard 003 is cursed (toy_stages.py:")
    assert finished_shards(stage.folder) == ["001", "002", "004", "005"]
    run(ToyStage(stage.folder, num_shards=6))
    assert outputs(stage.folder) == unbroken


def test_a_shard_over_its_time_is_given_up(tmp_path):
    stage = ToyStage(tmp_path / "toy", num_shards=3, faults={"001": "sleep"})
    with pytest.raises(TooManyFailures, match=r"001: no end after 3 s \(executor\.shard_timeout_s\)"):
        run(stage, retries=0, shard_timeout_s=3.0)  # far more than the other shards take on a busy machine
    assert finished_shards(stage.folder) == ["000", "002"]


def test_a_setup_that_fails_stops_the_stage(tmp_path):
    with pytest.raises(DataError, match="stage 'toy' cannot start its workers: the model is missing"):
        run(ToyStage(tmp_path / "toy", faults={"setup": "raise"}))


def test_workers_that_die_in_setup_stop_the_stage(tmp_path):
    with pytest.raises(
        DataError, match=r"3 in a row ended before they were ready \(.*SIGKILL.*num_workers lower"
    ):
        run(ToyStage(tmp_path / "toy", faults={"setup": "kill"}))


def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path, unbroken):
    folder = tmp_path / "toy"
    code = (
        "from pathlib import Path; from toy_stages import DyingExecutor, ToyStage\n"
        "from data_pipeline.stage import run_stage\n"
        "if __name__ == '__main__':\n"
        f"    stage = ToyStage(Path({str(folder)!r}), num_shards=6, shard_seconds=0.3)\n"
        "    executor = DyingExecutor('toy', 1, num_workers=2, retries=0, shard_timeout_s=60)\n"
        "    run_stage(stage, executor, max_failed_fraction=0)\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    victim = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, stderr=subprocess.DEVNULL, check=False
    )
    assert victim.returncode == -signal.SIGKILL
    made = finished_shards(folder)
    assert 0 < len(made) < 6
    time.sleep(0.5)  # workers of the dead run would publish now, if they could
    assert finished_shards(folder) == made
    report = run(ToyStage(folder, num_shards=6))
    assert (report.done, report.skipped) == (6 - len(made), len(made))
    assert outputs(folder) == unbroken


def test_workers_are_no_more_than_shards_and_know_their_slot(tmp_path):
    stage = ToyStage(tmp_path / "toy", num_shards=2)
    stage.max_workers = 1
    assert run(stage, num_workers=8).done == 2


def config(**changes):
    values = {
        "kind": "local",
        "num_workers": 2,
        "retries": 0,
        "shard_timeout_s": 1.0,
        "max_failed_fraction": 0.1,
    }
    return ExecutorConfig(**values | changes)


def test_executor_settings_are_checked():
    assert isinstance(make_executor(config(num_workers=None)), LocalExecutor)
    with pytest.raises(
        ConfigError, match=r"unknown executor\.kind 'lokal'; did you mean 'local'\? Known: local, ray, slurm"
    ):
        make_executor(config(kind="lokal"))
    assert list(EXECUTORS) == ["local", "slurm", "ray"]
    with pytest.raises(
        ConfigError, match=r"executor=slurm needs executor\.cluster; give a name in configs/cluster"
    ):
        make_executor(config(kind="slurm"))
    for name, value, message in (
        ("num_workers", 0, "num_workers is 0; give 1 or more"),
        ("retries", -1, "retries is -1; give 0 or more"),
        ("shard_timeout_s", 0.0, r"shard_timeout_s is 0\.0; give seconds above 0"),
        ("shards_per_task", 0, "shards_per_task is 0; give 1 or more"),
        ("max_parallel_tasks", 0, "max_parallel_tasks is 0; give 1 or more"),
        ("max_failed_fraction", 1.5, r"max_failed_fraction is 1\.5; give 0 to 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            config(**{name: value})
