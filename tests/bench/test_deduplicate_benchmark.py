"""The deduplication benchmark runs and ends with its result lines; what it measures is not judged here."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("layout", ["full", "narrow"])
def test_the_benchmark_ends_with_its_results(tmp_path, layout):
    words = ["rows=20000", f"layout={layout}", "peers=polars", f"folder={tmp_path}"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "deduplicate.py"), *words],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert re.match(rf"20000 rows, 14000 pairs, \d+ bytes a row, 2 files of .* layout {layout}", lines[0])
    assert done.stdout.count("    rows 14000\n") == 3
    numbers = r"ours=[\d.]+ peer=[\d.]+ target=[\d.]+ floor=[\d.]+"
    assert re.fullmatch(rf"result name=deduplicate_cpu_s {numbers} unit=s", lines[-2])
    assert re.fullmatch(rf"result name=deduplicate_memory_mb {numbers} unit=MB", lines[-1])
