"""The documents benchmark runs and ends with a result line; what it measures is not judged here."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_ends_with_its_result():
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "documents.py"), "pages=5", "repeats=1"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    first, *_, last = done.stdout.splitlines()
    assert re.fullmatch(r"5 pages of \d\d kB, 1 repeats", first)
    assert re.fullmatch(
        r"result name=documents_cpu_ms_a_page ours=[\d.]+ floor=[\d.]+ target=[\d.]+ unit=ms", last
    )
