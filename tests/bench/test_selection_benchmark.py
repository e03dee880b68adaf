"""The selection benchmark runs and ends with its result lines; what it measures is not judged here."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_ends_with_its_results(tmp_path):
    words = ["rows=20000", "rows_per_shard=3000", "peers=polars", f"folder={tmp_path}"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "selection.py"), *words],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("result ")]
    assert len(lines) == 9
    for line in lines:
        peer = "" if "metaclip" in line else r" peer=[\d.]+ target=[\d.]+"
        assert re.fullmatch(rf"result name=select_\w+ ours=[\d.]+{peer} rows=20000 unit=(s|MB)", line)
