"""The cluster of the tests: started once, and only where Slurm is installed."""

import pytest
from slurm_cluster import SlurmCluster, missing_programs


@pytest.fixture(scope="session")
def session_cluster():
    """A two-node Slurm for the whole session."""
    lacking = missing_programs()
    if lacking:
        pytest.skip(f"{', '.join(lacking)} not found; apt-get install slurm-wlm munge (see .ci/run)")
    cluster = SlurmCluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def cluster(session_cluster):
    """The cluster with no job in its queue and both nodes up, before and after the test."""
    yield session_cluster
    session_cluster.run("scancel", "--user", session_cluster.user)
    session_cluster.wait_for(lambda: not session_cluster.ask("squeue", "-h"), "an empty queue")


@pytest.fixture(scope="session")
def cluster_file(tmp_path_factory):
    """The cluster file of the two nodes: four cores, no GPUs unless asked for."""
    path = tmp_path_factory.mktemp("cluster") / "test.yaml"
    path.write_text(
        "account: null\n"
        "gpu: {partition: main, time: '10:00', gres: null, cpus: 1, mem: null}\n"
        "cpu: {partition: main, time: '10:00', gres: null, cpus: 1, mem: null}\n"
    )
    return path
