"""Our deduplicate stage, and the floor under it, each in a process of its own, for benchmarks/deduplicate.py.

    python deduplicate_ours.py ours OUTPUT_DIR WORKERS ROWS_PER_RUN
    python deduplicate_ours.py floor CANDIDATES OUT_FOLDER KEPT_FRACTION

The floor reads every row and writes as many as are to be kept, a file at a time, in one thread: no keys, no order.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyarrow.parquet as pq

from data_pipeline.deduplicate import DeduplicateConfig, make_stages
from data_pipeline.deduplicate_rows import read_candidates
from data_pipeline.executors.local import LocalExecutor
from data_pipeline.stage import run_stage


def ours(output_dir: str, workers: str, rows_per_run: str) -> None:
    """Runs the stage as the pipeline does."""
    asked = DeduplicateConfig(rows_per_run=int(rows_per_run), rows_per_shard=10_000)
    executor = LocalExecutor(num_workers=int(workers), retries=0, shard_timeout_s=36_000)
    rows = 0
    for stage in make_stages(SimpleNamespace(output_dir=output_dir, deduplicate=asked)):  # pyright: ignore[reportArgumentType]
        report = run_stage(stage, executor, max_failed_fraction=0)
        rows = report.counts.rows_out
        print(stage.name, f"{report.seconds:.1f} s wall, {report.worker_seconds:.1f} s in workers")
    print("rows", rows)


def floor(candidates: str, out: str, kept_fraction: str) -> None:
    """Reads all, writes the first rows of each file."""
    rows = 0
    for path in sorted(Path(candidates).glob("*.parquet")):
        table = read_candidates(str(path))
        table = table.slice(0, round(table.num_rows * float(kept_fraction)))
        pq.write_table(
            table,
            f"{out}/{path.name}",
            compression="zstd",
            use_dictionary=["crawl_file", "text_source", "page_language", "license"],  # pyright: ignore[reportArgumentType]
        )
        rows += table.num_rows
    print("rows", rows)


if __name__ == "__main__":
    {"ours": ours, "floor": floor}[sys.argv[1]](*sys.argv[2:])
