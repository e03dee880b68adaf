"""Results and filters as files that the pipeline reads: uid npy for reshard, parquet, csv and jsonl for download.

What the policy hides is left out, whatever was asked for.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from crawl2clip.schema import uids_to_array
from data_pipeline.explorer.library import Library

_BLOCK = 20_000  # rows in memory at a time
MEDIA_TYPES = {
    "parquet": "application/vnd.apache.parquet",
    "csv": "text/csv; charset=utf-8",
    "jsonl": "application/x-ndjson",
    "npy": "application/octet-stream",
}


def write_export(
    path: Path,
    format: str,
    library: Library,
    rows: np.ndarray,
    similarities: np.ndarray | None,
    hidden: np.ndarray,
) -> int:
    """Writes a file; how many rows it has.

    Args:
        path: the file.
        format: a key of MEDIA_TYPES.
        library: what the rows are of.
        rows: [N] int64.
        similarities: [N], or None for rows that were not searched for.
        hidden: [N] bool, rows that are left out.
    """
    chosen = ~hidden
    rows = rows[chosen]
    if similarities is not None:
        similarities = similarities[chosen]
    blocks = (slice(start, start + _BLOCK) for start in range(0, len(rows), _BLOCK))
    if format == "npy":
        uids = [uid for block in blocks for uid in library.take(rows[block], [])["uid"]]
        with open(path, "wb") as file:
            np.save(file, uids_to_array(uids))
        return len(uids)
    frames = (
        _frame(library, rows[block], None if similarities is None else similarities[block])
        for block in blocks
    )
    first = next(frames, None)
    if first is None:
        first = _frame(library, rows, similarities)
    write = {"parquet": _write_parquet, "csv": _write_csv, "jsonl": _write_jsonl}[format]
    write(path, chain([first], frames))
    return len(rows)


def _frame(library: Library, rows: np.ndarray, similarities: np.ndarray | None) -> pl.DataFrame:
    """Rows with all their columns, of the same types whatever the rows hold."""
    kinds = {name: pl.String if is_category else pl.Float32 for name, is_category in library.columns.items()}
    frame = pl.DataFrame(
        library.take(rows, ["url", "text", *kinds]),
        schema={"uid": pl.String, "url": pl.String, "text": pl.String, **kinds},
    )
    if similarities is None:
        return frame
    return frame.with_columns(similarity=pl.Series(similarities, dtype=pl.Float32))


def _write_parquet(path: Path, frames: Iterator[pl.DataFrame]) -> None:
    writer = None
    for frame in frames:
        table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
        if writer is None:
            writer = pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None
    writer.close()


def _write_csv(path: Path, frames: Iterator[pl.DataFrame]) -> None:
    with open(path, "wb") as file:
        for number, frame in enumerate(frames):
            frame.write_csv(file, include_header=number == 0)


def _write_jsonl(path: Path, frames: Iterator[pl.DataFrame]) -> None:
    with open(path, "wb") as file:
        for frame in frames:
            frame.write_ndjson(file)
