"""The benchmark of the explorer runs, at a size that says nothing about speed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("faiss", reason="faiss is not installed: pip install -e '.[data,explorer]'")
pytest.importorskip("fastapi", reason="fastapi is not installed: pip install -e '.[data,explorer]'")


@pytest.mark.slow
def test_it_measures_every_target(tmp_path):
    words = ["rows=6000", "dim=16", "queries=4", "exact_rows=0", f"folder={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "benchmarks/explorer.py", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results = [line for line in done.stdout.splitlines() if line.startswith("result name=")]
    names = {line.split()[1].removeprefix("name=") for line in results}
    assert {
        "index_build_cpu_s_per_million", "exact_faiss_p95_ms", "image_search_p95_ms", "text_filtered_p95_ms",
        "image_recall_at_10", "text_recall_at_10", "server_anonymous_mb", "facets_cpu_ms",
    } <= names  # fmt: skip
    recall = next(line for line in results if "image_recall_at_10" in line)
    assert float(recall.split("ours=")[1].split()[0]) >= 0.9


def test_an_unknown_word_is_refused():
    done = subprocess.run(
        [sys.executable, "benchmarks/explorer.py", "row=1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "unknown row; known: rows, dim" in done.stderr
