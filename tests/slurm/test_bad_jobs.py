"""Jobs that cannot work: the log's first lines say why, and the job has failed."""

import sys

import pytest
from gloo_ranks import free_port

WORDS = ("debug=smoke", "data.shards=nowhere")


@pytest.fixture
def said(cluster, cluster_file):
    """Submits a training job on both nodes and returns what it said once it has failed."""

    def run(*words, file=cluster_file, **environment):
        job = cluster.submit(
            "train", f"cluster={file}", "nodes=2", *WORDS, *words,
            CRAWL2CLIP_PORT=str(free_port()), CRAWL2CLIP_PREFLIGHT_S="6", **environment,
        )  # fmt: skip
        cluster.wait_for_job(job, ["FAILED", "COMPLETED"])
        log = cluster.log("train", job)
        assert cluster.job_state(job) == "FAILED", log
        assert log.startswith((f"train: job {job}, start 1, nodes n[1-2]", "error: ")), log
        assert "complete" not in log
        return log

    return run


def test_what_cannot_work_is_named_before_anything_is_started(said, tmp_path, cluster_file):
    log = said("run_name=x", f"run_folder={tmp_path}/x")  # no GPU in the file, and no device=cpu
    assert log.count("no GPU was granted: the cluster file's gres asks for none") == 2
    assert "preflight: 2 of 2 nodes failed; to go on without them: --exclude=n1,n2" in log
    assert "error: preflight failed, nothing was started" in log

    (tmp_path / "file").write_text("")
    log = said("device=cpu", "run_name=x", f"run_folder={tmp_path}/file/x")
    assert f"preflight: n1: cannot write to {tmp_path}/file/x (Not a directory)" in log

    log = said(
        "device=cpu", "run_name=x", f"run_folder={tmp_path}/x", CRAWL2CLIP_RENDEZVOUS="no-such-host.invalid"
    )
    assert "preflight: n2: cannot reach the rendezvous no-such-host.invalid:" in log
    assert "the name no-such-host.invalid is not known here" in log
    assert "preflight: 1 of 2 nodes did not report to no-such-host.invalid:" in log

    half = tmp_path / "half"  # a Python that sees another folder on the second node
    half.write_text(
        f'#!/bin/bash\n[[ $SLURMD_NODENAME == n2 ]] && exec {sys.executable} "$@" /dev/null/here\n'
        f'exec {sys.executable} "$@"\n'
    )
    half.chmod(0o755)
    log = said("device=cpu", "run_name=x", f"run_folder={tmp_path}/x", CRAWL2CLIP_PYTHON=str(half))
    assert "preflight: n1: ok" in log
    assert "preflight: n2: cannot write to /dev/null/here" in log
    assert "preflight: 1 of 2 nodes failed; to go on without them: --exclude=n2" in log

    assert "error: run_name=NAME is missing" in said("device=cpu")


def test_a_setting_that_training_refuses_is_in_the_jobs_own_log(said, tmp_path):
    log = said("device=cpu", "run_name=x", f"run_folder={tmp_path}/x", "train.samples_sen=3")
    assert "error: training ended with status " in log
    assert "unknown setting 'samples_sen'; did you mean 'samples_seen'" in log
