"""Results and filters as files that the pipeline reads: uid npy for reshard, parquet, csv and jsonl for download.

What the policy hides is left out, whatever was asked for.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from crawl2clip.schema import uids_to_array
from data_pipeline.explorer.library import Library

_BLOCK = 20_000
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
    if format == "npy":
        uids = [uid for block in _blocks(rows) for uid in library.take(block, [])["uid"]]
        with open(path, "wb") as file:
            np.save(file, uids_to_array(uids))
        return len(uids)
    columns = ["url", "text", *library.columns]
    frames = [library.take(block, columns) for block in _blocks(rows)]
    frame = pl.concat(frames, how="diagonal_relaxed") if frames else library.take(rows, columns)
    if similarities is not None:
        frame = frame.with_columns(similarity=pl.Series(similarities, dtype=pl.Float32))
    # The reader of lists takes columns without any value as text.
    frame = frame.with_columns(pl.col(pl.Null).cast(pl.String))
    if format == "parquet":
        frame.write_parquet(path)
    elif format == "csv":
        frame.write_csv(path)
    else:
        frame.write_ndjson(path)
    return len(frame)


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), _BLOCK):
        yield rows[start : start + _BLOCK]
