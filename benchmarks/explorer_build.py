"""Builds a run's index for benchmarks/explorer.py, as `stage=index` does: FOLDER WORKERS BUDGET_GB [EXACT_ROWS]."""

import logging
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_pipeline.executors.local import LocalExecutor
from data_pipeline.index import IndexConfig, make_stages
from data_pipeline.stage import run_stage


def main(folder: str, workers: str, budget_gb: str, exact_rows: str = "100000") -> None:
    """Runs the steps."""
    logging.basicConfig(level=logging.INFO)
    asked = IndexConfig(
        exact_rows=int(exact_rows), memory_budget_gb=float(budget_gb), rows_per_part=500_000,
        recall_queries=200, min_recall=0.95,
    )  # fmt: skip
    settings = SimpleNamespace(
        output_dir=folder, index=asked, tagger=SimpleNamespace(taggers=["language", "clip"])
    )
    executor = LocalExecutor(num_workers=int(workers), retries=0, shard_timeout_s=36_000.0)
    for stage in make_stages(settings):  # pyright: ignore[reportArgumentType]
        run_stage(stage, executor, max_failed_fraction=0.0)


if __name__ == "__main__":
    main(*sys.argv[1:])
