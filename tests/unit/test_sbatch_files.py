"""The sbatch files have no value of a cluster in them."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(ROOT.glob("slurm/*.sbatch"))


def test_what_belongs_to_a_cluster_is_in_its_file_only():
    asked = re.compile(r"^#SBATCH --(account|partition|time|gres|qos|constraint|mem|cpus-per-task)\b", re.M)
    assert [path.name for path in SCRIPTS if asked.search(path.read_text())] == []
