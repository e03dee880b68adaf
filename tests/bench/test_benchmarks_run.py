"""The benchmark scripts run and end with a result line; what they measure is not judged here."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("script", "words"), [("extract.py", ["pages=20", "repeats=1", "peer=0"])])
def test_a_benchmark_ends_with_its_result(script, words):
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *words],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert re.fullmatch(
        r"result name=\w+ ours=[\d.]+ floor=[\d.]+ target=[\d.]+ unit=s", done.stdout.splitlines()[-1]
    )
