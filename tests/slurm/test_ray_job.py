"""slurm/ray.sbatch: a Ray of two nodes inside an allocation, and the pipeline on it."""

from pathlib import Path

import pytest
from crawl_files import image, member, wat_record, wat_value
from gloo_ranks import free_port

from crawl2clip.files import read_json

pytest.importorskip("ray", reason="slurm/ray.sbatch needs ray: pip install 'crawl2clip[ray]'")


def test_a_ray_of_both_nodes_runs_the_pipeline_and_leaves_nothing(cluster, cluster_file, tmp_path):
    values = [wat_value([image(f"{page}.jpg")], url=f"https://h{page}.org/") for page in range(10)]
    for name in ("a", "b"):
        (tmp_path / f"{name}.wat.gz").write_bytes(b"".join(member(wat_record(value)) for value in values))
    port = next(
        port for port in iter(free_port, None) if port < 20_000
    )  # within Ray's own range for its workers
    job = cluster.submit(
        "ray", f"cluster={cluster_file}", "nodes=2", "stage=extract", "recipe=laion400m",
        f"output_dir={tmp_path / 'out'}", f"source.files=['{tmp_path}/*.wat.gz']", CRAWL2CLIP_PORT=str(port),
    )  # fmt: skip
    cluster.wait_for_job(job, ["COMPLETED", "FAILED", "TIMEOUT"], 400)
    log = cluster.log("ray", job)
    assert cluster.job_state(job) == "COMPLETED", log
    assert "preflight: n2: ok" in log
    (row,) = read_json(tmp_path / "out" / "funnel.json")["stages"]
    assert (row["stage"], row["rows_out"], row["shards"]) == ("extract", 20, 2)
    assert not cluster.processes_of(job)
    assert not list(Path("/tmp").glob(f"ray-{job}-*"))
