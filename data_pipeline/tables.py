"""Reading a shard's table: only the columns asked for, every uid once, and an error that names the file."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from crawl2clip.errors import DataError
from data_pipeline import storage


def read_table(path: str | Path, columns: Sequence[str], *, stored_only: bool = False) -> pl.DataFrame:
    """Columns of a shard's parquet file, `uid` among them, in the file's order.

    Args:
        path: a download or tag table.
        columns: what to read.
        stored_only: for a download table: leave out the rows that brought no image (status other than success).

    Raises:
        DataError: the file is missing, damaged, lacks a column, or holds a uid twice.
    """
    storage.fetch(path)
    try:
        lazy = pl.scan_parquet(path)
        if stored_only:
            lazy = lazy.filter(pl.col("status") == "success")
        frame = lazy.select(columns).collect()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"{path} cannot be read with the columns {', '.join(columns)} ({str(error).splitlines()[0]}); delete the "
            "stats.json beside it and run the stage that writes it again"
        ) from error
    repeated = frame.filter(pl.col("uid").is_duplicated())
    if len(repeated):
        uid = repeated["uid"][0]
        raise DataError(
            f"{path} holds the uid {uid} {(repeated['uid'] == uid).sum()} times; a uid stands for one pair: run "
            "stage=deduplicate and the stages after it again, in a new output_dir"
        )
    return frame
