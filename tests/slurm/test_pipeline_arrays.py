"""executor=slurm on two nodes: the same output as the local executor, through lost nodes, failures and restarts."""

import os
import subprocess
import sys
import time

import pytest
from crawl_files import image, member, wat_record, wat_value
from slurm_cluster import ROOT
from toy_stages import ToyStage, outputs

from crawl2clip.errors import ConfigError
from crawl2clip.files import read_json
from data_pipeline.completion import read_failures
from data_pipeline.executors.local import LocalExecutor
from data_pipeline.executors.slurm import SlurmExecutor, read_arrays
from data_pipeline.stage import TooManyFailures, finished_shards, run_stage
from data_pipeline.status import read_status, status_table


@pytest.fixture
def on_slurm(cluster, cluster_file, monkeypatch):
    """Makes an executor that sees the cluster."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")

    def make(shards_per_task=2, max_parallel_tasks=None, retries=1, cluster=cluster_file):
        return SlurmExecutor(
            cluster=str(cluster), shards_per_task=shards_per_task, max_parallel_tasks=max_parallel_tasks,
            retries=retries, shard_timeout_s=120.0,
        )  # fmt: skip

    return make


def run(stage, executor, max_failed_fraction=0.0):
    return run_stage(stage, executor, max_failed_fraction=max_failed_fraction)


def local():
    return LocalExecutor(num_workers=2, retries=1, shard_timeout_s=120.0)


def names_of(arrays):
    """The shards of each task."""
    return [
        [shard.name for shard in array.shards(number)]
        for array in arrays
        for number in range(array.num_tasks)
    ]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """What eight shards are, made without Slurm."""
    stage = ToyStage(tmp_path_factory.mktemp("unbroken") / "toy", num_shards=8)
    run(stage, local())
    return outputs(stage.folder)


def test_arrays_make_what_the_local_executor_makes_and_failures_are_named(on_slurm, unbroken, tmp_path):
    faults = {"002": "raise", "003": "kill_once"}
    stage = ToyStage(tmp_path / "run" / "toy", num_shards=8, faults=faults)
    with pytest.raises(TooManyFailures, match="002: RuntimeError: shard 002 is cursed"):
        run(stage, on_slurm(shards_per_task=4))
    (array,) = read_arrays(stage.folder)
    assert names_of([array]) == [["000", "001", "002", "003"], ["004", "005", "006", "007"]]
    assert len(finished_shards(stage.folder)) == 7
    table = status_table(read_status(tmp_path / "run", []))
    assert "  failed: 002: RuntimeError: shard 002 is cursed (toy_stages.py:" in table
    # What Slurm began is finished here: the one that failed, and nothing else.
    report = run(ToyStage(stage.folder, num_shards=8), local())
    assert (report.done, report.skipped) == (1, 7)
    assert outputs(stage.folder) == unbroken
    assert read_failures(stage.folder) == {}


def test_what_began_here_is_finished_on_slurm(on_slurm, unbroken, tmp_path):
    stage = ToyStage(tmp_path / "toy", num_shards=8, faults={"001": "raise", "005": "raise", "006": "raise"})
    with pytest.raises(TooManyFailures):
        run(stage, local())
    report = run(ToyStage(stage.folder, num_shards=8), on_slurm())
    assert (report.done, report.skipped) == (3, 5)
    assert names_of(read_arrays(stage.folder)) == [["001", "005"], ["006"]]
    assert outputs(stage.folder) == unbroken


PIPELINE = """
import sys
from pathlib import Path
from toy_stages import ToyStage
from crawl2clip.logs import setup_logging
from data_pipeline.executors.slurm import SlurmExecutor
from data_pipeline.stage import run_stage
if __name__ == "__main__":
    setup_logging()
    stage = ToyStage(Path(sys.argv[1]), num_shards=8, shard_seconds=float(sys.argv[3]))
    executor = SlurmExecutor(
        cluster=sys.argv[2], shards_per_task=1, max_parallel_tasks=4, retries=1, shard_timeout_s=120.0
    )
    print(run_stage(stage, executor, max_failed_fraction=0.0).done)
"""


def start(folder, cluster_file, seconds):
    return subprocess.Popen(
        [sys.executable, "-c", PIPELINE, str(folder), str(cluster_file), str(seconds)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_node_that_is_lost_and_a_driver_that_is_killed_change_nothing(
    cluster, on_slurm, cluster_file, unbroken, tmp_path
):
    folder = tmp_path / "run" / "toy"
    driver = start(folder, cluster_file, 6.0)
    try:
        cluster.wait_for(
            lambda: (folder / ".tmp").exists() and len(list((folder / ".tmp").iterdir())) >= 2, "tasks"
        )
        (step,) = read_status(tmp_path / "run", [])
        assert step.at_work.startswith("Slurm tasks: ")
        assert step.running > 0
    finally:
        driver.kill()
        driver.communicate()
    busy = {line.split()[0] for line in cluster.ask("squeue", "-h", "-t", "RUNNING", "-o", "%N").splitlines()}
    lost = sorted(busy)[-1]
    cluster.kill_node(lost)
    try:
        again = start(folder, cluster_file, 0.0)
        while again.poll() is None:
            cluster.start_delayed()
            time.sleep(0.5)
        _, errors = again.communicate()
    finally:
        cluster.start_node(lost)
        cluster.wait_for(
            lambda: set(cluster.states().values()) <= {"idle", "mixed", "allocated"}, "both nodes"
        )
    assert again.returncode == 0, errors
    assert "which is in the queue already" in errors
    assert len(read_arrays(folder)) == 1, errors
    (array,) = read_arrays(folder)  # Slurm started the lost tasks again, elsewhere
    logs = [path.read_text() for path in array.folder.glob("*.log")]
    assert any(f" on {lost}: 1 of 1 shards" in log and log.count(": 1 of 1 shards") > 1 for log in logs)
    assert finished_shards(folder) == [f"{number:03d}" for number in range(8)]
    assert outputs(folder) == unbroken


def test_a_task_that_is_cancelled_is_handed_out_again(cluster, on_slurm, cluster_file, unbroken, tmp_path):
    folder = tmp_path / "toy"
    driver = start(folder, cluster_file, 1.0)
    cluster.wait_for(lambda: bool(read_arrays(folder)), "an array")
    (array,) = read_arrays(folder)
    cluster.ask("scancel", f"{array.job}_7")
    _, errors = driver.communicate(timeout=400)
    assert driver.returncode == 0, errors
    assert "shard 007 will be handed out again: task " in errors
    assert "left the queue before it started: somebody cancelled it" in errors, errors
    assert names_of(read_arrays(folder)[1:]) == [["007"]]
    assert outputs(folder) == unbroken


def test_a_partition_that_is_not_there_is_named_with_those_that_are(on_slurm, cluster_file, tmp_path):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(cluster_file.read_text().replace("partition: main", "partition: gold"))
    with pytest.raises(
        ConfigError, match=r"invalid partition specified: gold.*Partitions here: main, narrow, urgent"
    ):
        run(ToyStage(tmp_path / "toy"), on_slurm(cluster=wrong))


def test_a_stage_with_a_model_asks_for_gpus_and_a_node_without_them_is_named(
    on_slurm, cluster_file, tmp_path
):
    with_gpus = tmp_path / "gpus.yaml"
    with_gpus.write_text(cluster_file.read_text().replace("gres: null", "gres: 'gpu:2'", 1))
    stage = ToyStage(tmp_path / "toy", num_shards=1)
    stage.gpus_per_worker = 1
    # Slurm grants two, and there is no device behind them.
    with pytest.raises(TooManyFailures, match=r"n[12]: Slurm granted 2 GPU\(s\) and torch sees 0"):
        run(stage, on_slurm(cluster=with_gpus, retries=0))
    (ended,) = [read_json(path) for path in read_arrays(stage.folder)[0].folder.glob("ended-*.json")]
    assert ended["node"] in ("n1", "n2")


def pipeline(cluster, *words):
    """The command as a user calls it, on the login node."""
    return cluster.run(sys.executable, "-m", "data_pipeline", *words)


def test_the_command_begins_on_slurm_and_ends_here_and_the_other_way_round(cluster, cluster_file, tmp_path):
    values = [
        wat_value([image(f"{page}.jpg"), image("x.jpg", "")], url=f"https://h{page}.org/")
        for page in range(10)
    ]
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.wat.gz").write_bytes(b"".join(member(wat_record(value)) for value in values))
    words = ("recipe=laion400m", f"source.files=['{tmp_path}/*.wat.gz']", "deduplicate.rows_per_run=12")

    def settings(name, stage):
        return (*words, f"output_dir={tmp_path / name}", f"stage={stage}")

    on_slurm = ("executor=slurm", f"executor.cluster={cluster_file}", "executor.shards_per_task=1")
    here = ("executor=local", "executor.num_workers=1")
    job = cluster.submit("pipeline", f"cluster={cluster_file}", *settings("first", "extract"), *on_slurm[::2])
    for name, stage, executor in (("second", "extract", here), ("second", "deduplicate", on_slurm)):
        done = pipeline(cluster, *settings(name, stage), *executor)
        assert done.returncode == 0, done.stderr
    cluster.wait_for_job(job, ["COMPLETED", "FAILED"])
    assert cluster.job_state(job) == "COMPLETED", cluster.log("pipeline", job)
    done = pipeline(cluster, *settings("first", "deduplicate"), *here)
    assert done.returncode == 0, done.stderr
    first, second = (_tables(tmp_path / name) for name in ("first", "second"))
    assert len(first) > 6
    assert first == second
    said = pipeline(cluster, "status", f"output_dir={tmp_path / 'first'}").stdout.splitlines()
    assert [line.split()[:3] for line in said[1:3]] == [["extract", "3", "3"], ["deduplicate/runs", "3", "3"]]
    assert all(line.endswith("complete") for line in said[1:])


def _tables(folder):
    """The candidates and what is left of them, by path; manifests name the folder, so they are left out."""
    return {
        path: data
        for path, data in outputs(folder).items()
        if path.startswith(("candidates", "deduplicated")) and not path.endswith("manifest.json")
    }
