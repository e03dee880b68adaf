"""The download benchmark runs and ends with its result lines; what it measures is not judged here."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_benchmark_ends_with_its_results():
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make certificates")
    words = [
        "images=8",
        "repeats=1",
        "workers=1",
        "large=0",
        "parts=0",
        "faults=0",
        "peer=0",
        "schemes=https",
    ]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "download.py"), *words],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = [line for line in done.stdout.splitlines() if line.startswith("result ")]
    assert [re.sub(r"=-?[\d.]+", "=", line) for line in results] == [
        "result name=download_https_small_exact_cpu_ms ours= target= unit=ms",
        "result name=download_https_small_scaled_cpu_ms ours= target= unit=ms",
        "result name=download_https_small_start_cpu_s ours= target= unit=s",
    ]
