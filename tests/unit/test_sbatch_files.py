"""The shell of slurm/ and .ci/: clean by shellcheck, and with no value of a cluster in it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted([*ROOT.glob("slurm/*.sbatch"), *ROOT.glob("slurm/*.sh"), ROOT / ".ci" / "run"])


@pytest.mark.skipif(
    shutil.which("shellcheck") is None, reason="shellcheck not found; apt-get install shellcheck"
)
def test_shellcheck_finds_nothing():
    done = subprocess.run(
        ["shellcheck", "-x", *map(str, SCRIPTS)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_what_belongs_to_a_cluster_is_in_its_file_only():
    asked = re.compile(r"^#SBATCH --(account|partition|time|gres|qos|constraint|mem|cpus-per-task)\b", re.M)
    assert [path.name for path in SCRIPTS if asked.search(path.read_text())] == []
