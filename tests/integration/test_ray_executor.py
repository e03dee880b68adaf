"""executor=ray on a Ray of this machine: the same output as the local executor, through raised and killed workers."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from toy_stages import CountingSetup, ToyStage, outputs

from crawl2clip.errors import ConfigError, DataError
from data_pipeline.executors.local import LocalExecutor
from data_pipeline.stage import TooManyFailures, finished_shards, run_stage

ray = pytest.importorskip("ray", reason="the Ray executor needs ray: pip install 'crawl2clip[ray]'")

from data_pipeline.executors.ray import RayExecutor  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster():
    """A Ray with two cores and two pretended GPUs."""
    folder = tempfile.mkdtemp(prefix="ray-")  # its sockets need a short path
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        ray.init(
            address="local", num_cpus=4, num_gpus=2, include_dashboard=False, _temp_dir=folder, log_to_driver=False,
            object_store_memory=100_000_000, runtime_env={"env_vars": {"PYTHONPATH": paths}},
        )  # fmt: skip
        yield
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def run(stage, *, retries=1, shard_timeout_s=60.0, num_workers=2):
    executor = RayExecutor(
        address=None, num_workers=num_workers, retries=retries, shard_timeout_s=shard_timeout_s
    )
    return run_stage(stage, executor, max_failed_fraction=0.0)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    stage = ToyStage(tmp_path_factory.mktemp("unbroken") / "toy", num_shards=6)
    run_stage(stage, LocalExecutor(num_workers=2, retries=0, shard_timeout_s=60.0), max_failed_fraction=0.0)
    return outputs(stage.folder)


@pytest.mark.parametrize("gpus", [0, 1])  # tasks, and actors
def test_raised_and_killed_workers_cost_a_try_and_bad_shards_are_named(cluster, unbroken, tmp_path, gpus):
    faults = {"001": "raise_once", "002": "kill_once", "004": "raise"}
    stage = ToyStage(tmp_path / "toy", num_shards=6, faults=faults)
    stage.gpus_per_worker = gpus
    with pytest.raises(TooManyFailures) as info:
        run(stage)
    assert list(info.value.report.failed) == ["004"]
    assert info.value.report.failed["004"].startswith("RuntimeError: shard 004 is cursed (toy_stages.py:")
    assert finished_shards(stage.folder) == ["000", "001", "002", "003", "005"]
    # What Ray began is finished by the local executor: the one that failed and nothing else.
    local = LocalExecutor(num_workers=1, retries=0, shard_timeout_s=60.0)
    report = run_stage(ToyStage(stage.folder, num_shards=6), local, max_failed_fraction=0.0)
    assert (report.done, report.skipped) == (1, 5)
    assert outputs(stage.folder) == unbroken


def test_an_actor_loads_its_model_once_for_all_its_shards(cluster, tmp_path):
    stage = CountingSetup(tmp_path / "toy", num_shards=6)
    stage.gpus_per_worker = 1
    assert run(stage).done == 6
    log = (stage.folder / "log.txt").read_text().split()
    assert 1 <= log.count("setup") <= 2


def test_a_shard_over_its_time_and_a_setup_that_fails(cluster, tmp_path):
    with pytest.raises(TooManyFailures, match=r"001: no end after 4 s \(executor\.shard_timeout_s\)"):
        run(
            ToyStage(tmp_path / "slow", num_shards=2, faults={"001": "sleep"}), retries=0, shard_timeout_s=4.0
        )
    with pytest.raises(DataError, match="stage 'toy' cannot start its workers: the model is missing"):
        run(ToyStage(tmp_path / "toy", faults={"setup": "raise"}))


def test_more_gpus_than_there_are_is_an_error(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    stage = ToyStage(tmp_path / "toy")
    stage.gpus_per_worker = 1
    with pytest.raises(
        ConfigError, match=r"needs a GPU a worker and the Ray cluster has none; .*tagger\.device=cpu"
    ):
        run(stage)
