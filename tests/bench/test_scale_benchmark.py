"""The benchmark of the frame runs all its phases and ends with its results; what it measures is not judged here."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_it_ends_with_a_result_for_every_phase_and_for_memory(tmp_path):
    words = ["tasks=200", "small=100", f"folder={tmp_path / 'scale'}"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / "scale.py"), *words],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("result ")]
    names = ["freeze", "run", "status", "resume_half", "resume_none", "hand_out", "make"]
    for name, line in zip(names, lines, strict=False):
        assert re.fullmatch(rf"result name=scale_{name} ours=[\d.]+ fewer=[\d.]+ target=1\.5x unit=us", line)
    assert re.fullmatch(r"result name=scale_memory ours=\d+ target=200 unit=MB", lines[-1])
    assert len(lines) == 8
