"""The sbatch files have no value of a cluster in them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(ROOT.glob("slurm/*.sbatch"))


def test_what_belongs_to_a_cluster_is_in_its_file_only():
    asked = re.compile(r"^#SBATCH --(account|partition|time|gres|qos|constraint|mem|cpus-per-task)\b", re.M)
    assert [path.name for path in SCRIPTS if asked.search(path.read_text())] == []


@pytest.fixture
def job(tmp_path):
    """Runs an sbatch file as Slurm would, with programs that only say what they were called with."""
    for name, said in (
        ("srun", 'echo "srun $*"'),
        ("scontrol", "echo NodeAddr=127.0.0.1"),
        ("scancel", "true"),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\n{said}\n")
        (tmp_path / name).chmod(0o755)

    def run(name, *words, nodes=1, **variables):
        environment = os.environ | {
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "CRAWL2CLIP_CHECKOUT": str(ROOT),
            "CRAWL2CLIP_PYTHON": sys.executable, "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "job",
            "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": str(nodes), **variables,
        }  # fmt: skip
        return subprocess.run(
            ["bash", str(ROOT / "slurm" / f"{name}.sbatch"), "device=cpu", *words],
            env=environment, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    return run


def checked_folders(done):
    """What the nodes were asked whether they can write to."""
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "node_check" in line)
    return line.split("--needs-gpu 0")[1].split()


@pytest.mark.parametrize(("name", "word"), [("train", "run_folder"), ("evaluate", "output_dir")])
def test_nodes_are_asked_for_the_folder_that_is_written_to(job, name, word):
    words = ["run_name=x"] if name == "train" else []
    assert checked_folders(job(name, *words, f"{word}=/data/runs/x")) == ["/data/runs/x"]
    address = f"{word}=s3://bucket/x"
    assert checked_folders(job(name, *words, address, CRAWL2CLIP_SCRATCH="/shared/me")) == ["/shared/me"]
    assert checked_folders(job(name, *words, address)) == []


def test_several_nodes_train_in_a_store_from_a_folder_they_share(job):
    words = "run_name=x", "run_folder=s3://bucket/x"
    done = job("train", *words, nodes=2)
    assert done.returncode == 2
    assert "a folder that all 2 nodes must see; set CRAWL2CLIP_SCRATCH to one" in done.stderr
    assert checked_folders(job("train", *words, nodes=2, CRAWL2CLIP_SCRATCH="/shared/me")) == ["/shared/me"]
