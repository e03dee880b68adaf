"""Candidate rows as deduplication moves them: read, gathered, written to runs and read back.

A row is moved twice, so moving is what costs. Columns with few values (the crawl file above all) stay encoded as
dictionaries all the way, the uid is two numbers until it is written, and runs are Arrow files with LZ4, which take half
the time of Parquet. Only keys are sorted; rows are gathered once, in the order in which they are written.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from crawl2clip.errors import DataError
from crawl2clip.schema import CANDIDATE_SCHEMA
from data_pipeline.deduplicate_keys import DeduplicateBy, hex_of_keys, key_bounds, keys_of

_FEW_VALUES = ("text_source", "page_language", "license", "crawl_file")
_REQUIRED = [field.name for field in CANDIDATE_SCHEMA if not field.nullable]


def _moved(field: pa.Field) -> pa.Field:
    if field.name in _FEW_VALUES:
        return field.with_type(pa.dictionary(pa.int32(), pa.string()))
    # 64-bit offsets: the texts of one run can be more than 2 GB.
    return field.with_type(pa.large_string()) if pa.types.is_string(field.type) else field


ROW_SCHEMA = pa.schema([_moved(field) for field in CANDIDATE_SCHEMA])
"""`CANDIDATE_SCHEMA` as rows are held in memory."""


# Reading candidates


def read_candidates(path: str, rows: slice = slice(None)) -> pa.Table:
    """The rows of a candidate file, or some of them, as `ROW_SCHEMA`.

    Args:
        path: a parquet file of the extract stage.
        rows: which, by number; only the row groups that hold them are read.

    Raises:
        DataError: the file is missing, damaged, or lacks a column or a value.
    """
    try:
        with pq.ParquetFile(path, read_dictionary=list(_FEW_VALUES)) as file:
            missing = [name for name in CANDIDATE_SCHEMA.names if name not in file.schema_arrow.names]
            if missing:
                raise DataError(
                    f"{path} lacks the columns {', '.join(missing)}; candidates come from stage=extract"
                )
            table = _some_rows(file, rows).select(CANDIDATE_SCHEMA.names)
        empty = [name for name in _REQUIRED if table.column(name).null_count]
        if empty:
            raise DataError(f"{path} has rows without {', '.join(empty)}; make it again with stage=extract")
        return table.cast(ROW_SCHEMA)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path} cannot be read as candidates ({str(error).splitlines()[0]}); delete it and the stats.json "
            "beside it, and run stage=extract again"
        ) from error


def file_keys(path: str, by: DeduplicateBy) -> np.ndarray:
    """[N, 2] uint64: the keys of a candidate file's rows; only their column is read.

    Raises:
        DataError: the file is missing, damaged, or holds what is not a key.
    """
    name = "uid" if by == DeduplicateBy.pair else "url"
    try:
        table = pq.read_table(path, columns=[name], use_threads=False)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(
            f"{path} cannot be read as deduplicated candidates ({str(error).splitlines()[0]}); make that run's "
            "stage=deduplicate again"
        ) from error
    return column_keys(table, by, path)


def column_keys(table: pa.Table, by: DeduplicateBy, path: str) -> np.ndarray:
    """[N, 2] uint64: the keys of candidates that were read from `path`.

    Raises:
        DataError: a row has none.
    """
    name = "uid" if by == DeduplicateBy.pair else "url"
    if name not in table.column_names:
        raise DataError(f"{path} lacks the column {name}; candidates come from stage=extract")
    try:
        return keys_of(table.column(name), by)
    except ValueError as error:
        raise DataError(
            f"{path} holds what is no candidate ({error}); make it again with stage=extract"
        ) from error


def _some_rows(file: pq.ParquetFile, rows: slice) -> pa.Table:
    if rows == slice(None):
        return file.read()
    ends = np.cumsum([file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)])
    first = int(np.searchsorted(ends, rows.start, side="right"))
    last = int(np.searchsorted(ends, rows.stop, side="left"))
    groups = list(range(first, min(last + 1, file.num_row_groups)))
    before = int(ends[first - 1]) if first else 0
    return file.read_row_groups(groups).slice(rows.start - before, rows.stop - rows.start)


def joined(tables: list[pa.Table]) -> pa.Table:
    """The tables as one, every column in one piece, so that rows can be gathered from anywhere in it.

    Takes them out of the list, and so frees each column's pieces once it is joined.
    """
    table = pa.concat_tables(tables).unify_dictionaries()
    tables.clear()
    columns: dict[str, pa.Array] = {}
    for name in list(table.column_names):
        column = table.column(name)
        table = table.drop_columns([name])
        whole = column.combine_chunks()
        columns[name] = one_array(whole)
    return pa.table(columns)


def one_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """What `combine_chunks` gave, as an array also in the versions where it gives one chunk."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


# Runs


def with_keys(table: pa.Table, keys: np.ndarray, by: DeduplicateBy) -> pa.Table:
    """The rows as a run holds them: `high` and `low` first, and no uid where they are the uid."""
    if by == DeduplicateBy.pair:
        table = table.drop_columns(["uid"])
    table = table.add_column(0, "high", pa.array(keys[:, 0]))
    return table.add_column(1, "low", pa.array(keys[:, 1]))


def write_run(table: pa.Table, rows: np.ndarray, path: Path, num_ranges: int) -> None:
    """Writes rows of a table, given in the order of their keys, with one record batch for each range."""
    high = table.column("high").to_numpy()[rows]
    cuts = [0, *np.searchsorted(high, key_bounds(num_ranges)).tolist(), len(rows)]
    options = ipc.IpcWriteOptions(compression="lz4")
    with pa.OSFile(str(path), "wb") as sink, ipc.new_file(sink, table.schema, options=options) as writer:
        for start, end in pairwise(cuts):
            part = table.take(pa.array(rows[start:end])).combine_chunks()
            batches = part.to_batches()
            writer.write_batch(batches[0] if batches else _no_rows(table))


def _no_rows(table: pa.Table) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [column.chunk(0).slice(0, 0) for column in table.columns], schema=table.schema
    )


def read_range(runs: Iterable[str], index: int, num_ranges: int) -> pa.Table:
    """The rows of one range in all runs, joined.

    Raises:
        DataError: a run is missing or damaged, or was written for another number of ranges.
    """
    tables = []
    for path in runs:
        try:
            with pa.memory_map(path) as source, ipc.open_file(source) as reader:
                if reader.num_record_batches != num_ranges:
                    raise DataError(
                        f"{path} has {reader.num_record_batches} ranges and not {num_ranges}; delete the folder "
                        "deduplicated/ and run stage=deduplicate again"
                    )
                tables.append(pa.Table.from_batches([reader.get_batch(index)]))
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"{path} cannot be read as a sorted run ({str(error).splitlines()[0]}); delete the folder "
                "deduplicated/ and run stage=deduplicate again"
            ) from error
    return joined(tables)


# Download shards


def write_shards(table: pa.Table, rows: np.ndarray, paths: Sequence[Path], by: DeduplicateBy) -> None:
    """Writes rows of a table of runs as candidate files of nearly equal size, in the order given."""
    size = -(-len(rows) // max(len(paths), 1))
    for number, path in enumerate(paths):
        part = table.take(pa.array(rows[number * size : (number + 1) * size]))
        if by == DeduplicateBy.pair:
            uid = hex_of_keys(part.column("high").to_numpy(), part.column("low").to_numpy())
            part = part.append_column("uid", uid)
        # Without Arrow's own schema, readers get the plain strings of CANDIDATE_SCHEMA and not our dictionaries.
        pq.write_table(
            part.select(ROW_SCHEMA.names).cast(ROW_SCHEMA), path, compression="zstd", store_schema=False,
            use_dictionary=list(_FEW_VALUES),  # pyright: ignore[reportArgumentType]  # its stub knows a bool only
            row_group_size=max(part.num_rows, 1),
        )  # fmt: skip
