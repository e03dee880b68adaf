"""Rows of lists that are parquet, read a row group at a time.

A damaged row group costs its rows, which the footer has counted, and the next one is read. A file that is cut
off has lost its footer, and with it every row.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crawl2clip.errors import DataError
from data_pipeline.metadata_columns import NamedColumns, columns_by_name
from data_pipeline.metadata_lines import ListFault, RowFault
from data_pipeline.metadata_text import Row

_ROWS_A_BATCH = 10_000
_MAGIC = b"PAR1"


def parquet_rows(
    path: Path, given: NamedColumns, origin: str, lose: Callable[[ListFault], None]
) -> Iterator[Row | RowFault]:
    """Yields the rows of a parquet file, of which only the columns needed are read.

    Args:
        path: the file.
        given: columns that the user names.
        origin: what an error calls the list.
        lose: called for what is wrong with the file.

    Raises:
        DataError: the columns cannot be told, or do not hold texts.
    """
    try:
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True)
    except (OSError, pa.ArrowException):
        lose(_what_is_wrong(path))
        return
    with file:
        schema = file.schema_arrow
        positions = columns_by_name(schema.names, given, origin)
        wanted = (*positions[:4], *positions.kept)
        names = [schema.names[position] if position is not None else None for position in wanted]
        for name, position in zip(names[:2], positions[:2], strict=True):
            if not _holds_text(schema.field(position).type):
                raise DataError(
                    f"{origin}: column {name!r} holds {schema.field(position).type}, not texts; "
                    "name another one as source.url_column or source.text_column"
                )
        for group in range(file.num_row_groups):
            yield from _group_rows(file, group, names)


def _group_rows(file: pq.ParquetFile, group: int, names: list[str | None]) -> Iterator[Row | RowFault]:
    left = file.metadata.row_group(group).num_rows
    wanted = list(dict.fromkeys(name for name in names if name is not None))
    try:
        for batch in file.iter_batches(_ROWS_A_BATCH, [group], columns=wanted, use_threads=False):
            columns = [
                _values(batch.column(name)) if name is not None else [None] * batch.num_rows for name in names
            ]
            left -= batch.num_rows
            yield from zip(*columns, strict=True)
    except (OSError, pa.ArrowException):
        pass  # the rows that are left
    for _ in range(left):
        yield RowFault.row_lost


def _values(column: pa.Array) -> list[Any]:
    """The column's values; bytes for those that are not UTF-8, which nothing checks when a file is read."""
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        if isinstance(column, pa.DictionaryArray):
            column = column.dictionary_decode()
        values = column.cast(pa.large_binary()).to_pylist()
    return [_decoded(value) if isinstance(value, bytes) else value for value in values]


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value


def _holds_text(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.DictionaryType):
        kind = kind.value_type
    tests = ("is_string", "is_large_string", "is_string_view", "is_binary", "is_large_binary", "is_null")
    return any(getattr(pa.types, test)(kind) for test in tests if hasattr(pa.types, test))


def _what_is_wrong(path: Path) -> ListFault:
    with open(path, "rb") as file:
        if file.read(4) != _MAGIC:
            return ListFault.file_not_list
        file.seek(-4, 2)
        return ListFault.file_damaged if file.read(4) == _MAGIC else ListFault.file_truncated
