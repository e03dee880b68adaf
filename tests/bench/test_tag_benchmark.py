"""The benchmarks of tagging run and end with their result lines; what they measure is not judged here."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def lines_of(script, *words):
    command = [sys.executable, str(ROOT / "benchmarks" / script), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=True)
    return done.stdout.splitlines()


@pytest.mark.slow
def test_the_tag_benchmark_ends_with_its_results(tmp_path):
    lines = lines_of("tag.py", "samples=4", "repeats=1", "batch=2", "model=ViT-S-32-alt", f"peer={tmp_path}")
    assert f"clip-retrieval is left out: {tmp_path}/bin/python is not there" in lines
    assert [line.split()[1] for line in lines[-3:]] == [
        "name=tag_speed", "name=tag_model_waits", "name=tag_score_difference",
    ]  # fmt: skip
    difference = re.search(r"ours=(\S+)", lines[-1])
    assert difference is not None
    assert float(difference[1]) <= 1e-5  # the same scores as open_clip's own loop, whatever the speed


@pytest.mark.slow
def test_the_benchmark_of_duplicates_ends_with_its_results():
    pytest.importorskip("faiss", reason='pip install -e ".[semantic]"')
    lines = lines_of("duplicates.py", "images=12", "hashes=3000", "embeddings=3000", "width=16")
    results = [line.split()[1] for line in lines if line.startswith("result ")]
    assert results == [
        "name=perceptual_precision", "name=perceptual_recall", "name=near_hashes_cpu_s", "name=near_hashes_recall",
        "name=semantic_recall_2000", "name=semantic_recall_500",
    ]  # fmt: skip
    assert any("ours=1.0000" in line for line in lines if "name=near_hashes_recall" in line)
