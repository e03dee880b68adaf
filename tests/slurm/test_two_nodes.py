"""The cluster that the other tests use is a real one."""


def test_a_job_runs_on_both_nodes_with_the_gpus_it_asked_for(cluster, tmp_path):
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/bash\nsrun bash -c 'echo \"$SLURMD_NODENAME $SLURM_GPUS_ON_NODE\"'\n")
    log = tmp_path / "job.log"
    job = cluster.ask("sbatch", "--parsable", "-N2", "-n2", "--gres=gpu:2", f"--output={log}", script).strip()
    cluster.wait_for_job(job, ["COMPLETED", "FAILED"])
    assert sorted(log.read_text().split("\n")) == ["", "n1 2", "n2 2"]


def test_a_partition_that_is_not_there_is_refused(cluster, tmp_path):
    refused = cluster.run("sbatch", "-p", "nowhere", "--wrap", "true", cwd=tmp_path)
    assert refused.returncode != 0
    assert "invalid partition specified: nowhere" in refused.stderr
