"""Reading a shard's table: only the columns asked for, every uid once, and an error that names the file."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crawl2clip import storage
from crawl2clip.errors import ConfigError, DataError

if TYPE_CHECKING:
    import polars as pl


def read_table(path: str | Path, columns: Sequence[str], *, stored_only: bool = False) -> "pl.DataFrame":
    """Columns of a shard's parquet file, `uid` among them, in the file's order.

    Args:
        path: a download or tag table.
        columns: what to read.
        stored_only: for a download table: leave out the rows that brought no image (status other than success).

    Raises:
        DataError: the file is missing, damaged, lacks a column, or holds a uid twice.
    """
    import polars as pl

    try:
        frame = _scan(path, columns, stored_only).collect()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise _unreadable(path, columns, error) from error
    repeated = frame.filter(pl.col("uid").is_duplicated())
    if len(repeated):
        uid = repeated["uid"][0]
        raise _not_distinct(path, uid, (repeated["uid"] == uid).sum())
    return frame


def read_rows(path: str | Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The same as plain rows, by pyarrow alone: a download worker starts in half the time without polars.

    Raises:
        DataError: as `read_table`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    storage.fetch(path)
    try:
        with pq.ParquetFile(path) as file:
            rows = file.read(columns=list(columns)).select(list(columns)).to_pylist()
    except (OSError, KeyError, pa.ArrowException) as error:
        raise _unreadable(path, columns, error) from error
    uid, times = Counter(row["uid"] for row in rows).most_common(1)[0] if rows else ("", 0)
    if times > 1:
        raise _not_distinct(path, uid, times)
    return rows


def _unreadable(path: str | Path, columns: Sequence[str], error: Exception) -> DataError:
    return DataError(
        f"{path} cannot be read with the columns {', '.join(columns)} ({str(error).splitlines()[0]}); delete the "
        "stats.json beside it and run the stage that writes it again"
    )


def _not_distinct(path: str | Path, uid: str, times: int) -> DataError:
    return DataError(
        f"{path} holds the uid {uid} {times} times; a uid stands for one pair: run "
        "stage=deduplicate and the stages after it again, in a new output_dir"
    )


def read_tables(
    paths: Sequence[str | Path], columns: Sequence[str], *, stored_only: bool = False, check_uids: bool = True
) -> "tuple[pl.DataFrame, list[int]]":
    """Columns of several shards' files one after the other, and the number of rows of each; read side by side.

    Args:
        paths, columns, stored_only: as for `read_table`.
        check_uids: whether a uid that comes twice in a file is looked for.

    Raises:
        DataError: as for `read_table`; names the file.
    """
    import polars as pl

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


def _scan(path: str | Path, columns: Sequence[str], stored_only: bool) -> "pl.LazyFrame":
    import polars as pl

    storage.fetch(path)
    lazy = pl.scan_parquet(path)
    if stored_only:
        lazy = lazy.filter(pl.col("status") == "success")
    return lazy.select(columns)


def require_columns(setting: str, path: str, columns: Sequence[str]) -> None:
    """Makes sure that a file which a setting names is a parquet file with these columns, before any work.

    Args:
        setting: its name, for the message.

    Raises:
        ConfigError: it cannot be read, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = f"give a parquet file with the columns {' and '.join(columns)}"
    try:
        found = pq.read_schema(path).names
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{setting} names {path}, which cannot be read as parquet ({reason}); {wanted}"
        ) from error
    for column in columns:
        if column not in found:
            has = ", ".join(found[:20])
            raise ConfigError(
                f"{setting} names {path}, which has no column {column!r} (it has {has}); {wanted}"
            )
