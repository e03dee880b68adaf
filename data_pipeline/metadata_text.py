"""Rows of lists that are text: csv, tsv and JSON lines.

A bad row costs itself. That takes care in csv, where a quote that is never closed would make the rest of the
file one field: a row may go on over some lines, and when it does not end there, only its first line is lost.
In tsv a quote is a plain character unless it wraps the whole field, since the captions of CC3M and CC12M have
quotes that nobody escaped.
"""

import csv
from collections import deque
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import msgspec

from data_pipeline.metadata_columns import (
    ListColumns,
    NamedColumns,
    columns_by_name,
    columns_of_rows,
    is_address,
)
from data_pipeline.metadata_lines import RowFault

Row = tuple[Any, ...]
"""Address, text, address of the page, licence, as they stand in the list, None for what it does not have; and then
the values of the columns that are kept."""

_MOST_LINES = 100  # of one csv row
_MOST_BYTES = 1 << 20  # of a csv row of several lines
_LOOKAHEAD = 100  # JSON rows whose keys are its columns


def delimited_rows(
    lines: Iterator[bytes | RowFault], delimiter: str, given: NamedColumns, origin: str
) -> Iterator[Row | RowFault]:
    """Yields the rows of a csv (delimiter ",") or tsv (tab) file, with or without header.

    Args:
        lines: of the file.
        delimiter: between fields.
        given: columns that the user names.
        origin: what an error calls the list.

    Raises:
        DataError: the columns cannot be told.
    """
    rows = _csv_rows(lines) if delimiter == "," else map(_tsv_row, lines)
    rows = (row for row in rows if row != [""])  # empty lines
    columns: ListColumns | None = None
    width = 0
    for row in rows:
        if isinstance(row, RowFault):
            yield row
            continue
        if columns is None:
            row[0] = row[0].removeprefix("\ufeff")
            width = len(row)
            if not any(map(is_address, row)):
                columns = columns_by_name(row, given, origin)
                continue
            columns = columns_of_rows(row, given, origin)
        yield _picked(row, columns) if len(row) == width else RowFault.row_broken


def json_rows(
    lines: Iterator[bytes | RowFault], given: NamedColumns, origin: str
) -> Iterator[Row | RowFault]:
    """Yields the rows of a file of JSON objects, one a line; a key that an object lacks is None.

    Raises:
        DataError: the columns cannot be told from the first objects.
    """
    objects = (_json_object(line) for line in lines if line != b"")
    first = list(islice(objects, _LOOKAHEAD))
    names = list(dict.fromkeys(name for each in first if isinstance(each, dict) for name in each))
    if not names and all(isinstance(each, RowFault) for each in first) and len(first) < _LOOKAHEAD:
        yield from first  # type: ignore[misc]  # a short file without one good row
        return
    columns = columns_by_name(names, given, origin)
    keys = [names[position] if position is not None else None for position in (*columns[:4], *columns.kept)]
    for each in chain(first, objects):
        if isinstance(each, RowFault):
            yield each
        else:
            yield tuple(each.get(key) if key is not None else None for key in keys)


def _picked(row: list[str], columns: ListColumns) -> Row:
    page_url = row[columns.page_url] if columns.page_url is not None else None
    return (
        row[columns.url],
        row[columns.text],
        page_url,
        row[columns.license] if columns.license is not None else None,
        *(row[position] for position in columns.kept),
    )


def _json_object(line: bytes | RowFault) -> dict[str, Any] | RowFault:
    if isinstance(line, RowFault):
        return line
    try:
        value = msgspec.json.decode(line.removeprefix(b"\xef\xbb\xbf"))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return RowFault.row_broken
    return value if isinstance(value, dict) else RowFault.row_broken


def _tsv_row(line: bytes | RowFault) -> list[str] | RowFault:
    text = _text(line)
    if isinstance(text, RowFault):
        return text
    if '"' not in text:
        return text.split("\t")
    return [_unwrapped(field) for field in text.split("\t")]


def _unwrapped(field: str) -> str:
    """A field without the quotes around it, if all of it is quoted as in csv."""
    inner = field[1:-1]
    if len(field) < 2 or field[0] != '"' or field[-1] != '"' or '"' in inner.replace('""', ""):
        return field
    return inner.replace('""', '"')


def _text(line: bytes | RowFault) -> str | RowFault:
    if isinstance(line, RowFault):
        return line
    try:
        return RowFault.row_broken if b"\0" in line else line.decode("utf-8")
    except UnicodeDecodeError:
        return RowFault.row_broken


def _csv_rows(lines: Iterator[bytes | RowFault]) -> Iterator[list[str] | RowFault]:
    waiting: deque[bytes | RowFault] = deque()  # lines that were looked at and not used
    width: int | None = None  # fields of the first row
    while True:
        line = waiting.popleft() if waiting else next(lines, None)
        if line is None:
            return
        if isinstance(line, bytes) and line.count(b'"') % 2:  # a quote is open at its end
            row = _row_over_lines(line, width, waiting, lines)
        else:
            text = _text(line)
            row = text if isinstance(text, RowFault) else _csv_fields(text)
        if width is None and isinstance(row, list):
            width = len(row)
        yield row


def _row_over_lines(
    line: bytes, width: int | None, waiting: deque[bytes | RowFault], lines: Iterator[bytes | RowFault]
) -> list[str] | RowFault:
    """The row that begins in a line and ends where its quote is closed; if none does, the other lines are put back."""
    row = [line]
    size = len(line)
    while len(row) < _MOST_LINES and size < _MOST_BYTES:
        more = waiting.popleft() if waiting else next(lines, None)
        if more is None:
            break
        if isinstance(more, RowFault):
            waiting.appendleft(more)
            break
        row.append(more)
        size += len(more)
        if more.count(b'"') % 2:
            text = _text(b"\n".join(row))
            fields = text if isinstance(text, RowFault) else _csv_fields(text)
            if isinstance(fields, list) and width in (None, len(fields)):
                return fields
            break
    waiting.extendleft(reversed(row[1:]))
    return RowFault.row_broken


def _csv_fields(text: str) -> list[str] | RowFault:
    if '"' not in text:
        return text.split(",")
    try:
        return next(csv.reader([text], strict=True))
    except (csv.Error, StopIteration):
        return RowFault.row_broken
