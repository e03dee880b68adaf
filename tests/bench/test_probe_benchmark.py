"""The benchmark of the linear probe runs and ends with its results; what it measures is not judged here."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_it_ends_with_time_accuracy_gap_and_extrapolation():
    words = ["samples=400", "width=16", "classes=5", "search=200", "test=300", "repeats=1", "device=cpu"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / "probe.py"), *words],
        capture_output=True, text=True, timeout=180, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    patterns = [
        r"result name=probe_time ours=[\d.]+ peer=[\d.]+ target=[\d.]+ unit=s",
        r"result name=probe_accuracy_gap ours=[\d.]+ target=0.2 unit=points",
        r"result name=probe_imagenet_extrapolated ours=[\d.]+ floor=[\d.]+ target=60 unit=min",
    ]
    for pattern, line in zip(patterns, lines[-3:], strict=True):
        assert re.fullmatch(pattern, line)
    assert "extrapolated, not measured: ImageNet's 1281167 x 512, 1000 classes" in done.stdout
    assert re.search(
        r"L-BFGS: [\d.]+ s, l2 \S+, acc1 [\d.]+%, \d+ passes of the search, \d+ of the refit", done.stdout
    )
