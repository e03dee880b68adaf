"""Reading a shard's table: only the columns asked for, every uid once, and an error that names the file."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from crawl2clip.errors import DataError


def read_table(path: str | Path, columns: Sequence[str], *, stored_only: bool = False) -> pl.DataFrame:
    """Columns of a shard's parquet file, `uid` among them, in the file's order.

    Args:
        path: a download or tag table.
        columns: what to read.
        stored_only: for a download table: leave out the rows that brought no image (status other than success).

    Raises:
        DataError: the file is missing, damaged, lacks a column, or holds a uid twice.
    """
    try:
        frame = _scan(path, columns, stored_only).collect()
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


def read_tables(
    paths: Sequence[str | Path], columns: Sequence[str], *, stored_only: bool = False, check_uids: bool = True
) -> tuple[pl.DataFrame, list[int]]:
    """Columns of several shards' files one after the other, and the number of rows of each; read side by side.

    Args:
        paths, columns, stored_only: as for `read_table`.
        check_uids: whether a uid that comes twice in a file is looked for.

    Raises:
        DataError: as for `read_table`; names the file.
    """
    try:
        frames = pl.collect_all([_scan(path, columns, stored_only) for path in paths])
        frame = pl.concat(frames, how="vertical_relaxed")
    except (OSError, pl.exceptions.PolarsError):
        frames = [
            read_table(path, columns, stored_only=stored_only) for path in paths
        ]  # says which file it is
        frame = pl.concat(frames, how="vertical_relaxed")
    # Hashes are counted much faster than texts; two uids with one hash only cost a closer look.
    if check_uids and frame["uid"].hash().n_unique() < len(frame):
        for path in paths:
            read_table(path, ["uid"], stored_only=stored_only)
    return frame, [len(each) for each in frames]


def _scan(path: str | Path, columns: Sequence[str], stored_only: bool) -> pl.LazyFrame:
    lazy = pl.scan_parquet(path)
    if stored_only:
        lazy = lazy.filter(pl.col("status") == "success")
    return lazy.select(columns)
