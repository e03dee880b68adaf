"""The lines of a text file, gzipped or not, whatever has happened to it.

A file that is cut off or damaged gives its lines up to there, and says so; one line without end costs itself
and no memory. Whether a file is gzipped is decided by its first bytes: names lie, and some servers unpack.
"""

import zlib
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path

from crawl2clip.errors import DataError

_BLOCK_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"


class RowFault(str, Enum):
    """Why a row of a list cannot be read."""

    row_broken = "row_broken"  # no JSON object, another number of fields, an open quote, no UTF-8, or cut off
    row_too_large = "row_too_large"  # more bytes than extract.max_record_bytes
    row_wrong_type = "row_wrong_type"  # its address or its text is no text
    row_lost = "row_lost"  # in a damaged part of a parquet file


class ListFault(str, Enum):
    """What is wrong with a list as a whole; its rows up to there are read."""

    file_empty = "file_empty"
    file_truncated = "file_truncated"  # it is cut off
    file_damaged = "file_damaged"  # its compression or its inner order is broken
    file_not_list = "file_not_list"  # it is something else, such as an error page saved in its place


def read_lines(path: Path, max_bytes: int, lose: Callable[[ListFault], None]) -> Iterator[bytes | RowFault]:
    """Yields the lines of a file without their ends, or in place of a line why it cannot be read.

    Args:
        path: the file.
        max_bytes: of one line.
        lose: called for what is wrong with the file.
    """
    faults: list[ListFault] = []
    pending, too_large = b"", False
    for block in _blocks(path, faults):
        *lines, rest = block.split(b"\n")
        for line in lines:
            line, pending = pending + line, b""
            if too_large or len(line) > max_bytes:
                yield RowFault.row_too_large
            else:
                yield line[:-1] if line.endswith(b"\r") else line
            too_large = False
        pending += rest
        if len(pending) > max_bytes:
            pending, too_large = b"", True
    if too_large:
        yield RowFault.row_too_large
    elif pending:
        yield RowFault.row_broken if faults else pending.removesuffix(b"\r")
    for fault in faults:
        lose(fault)


def open_list(path: Path) -> bytes:
    """The first bytes of a list as they lie on the disk.

    Raises:
        DataError: it cannot be opened.
    """
    try:
        with open(path, "rb") as file:
            return file.read(1 << 12)
    except OSError as error:
        raise DataError(
            f"list {path} cannot be read: {error.strerror}; check the path and its rights"
        ) from error


def _blocks(path: Path, faults: list[ListFault]) -> Iterator[bytes]:
    with open(path, "rb") as file:
        first = file.read(_BLOCK_BYTES)
        if not first:
            faults.append(ListFault.file_empty)
        blocks = iter(lambda: file.read(_BLOCK_BYTES), b"")
        if first[:2] == _GZIP:
            yield from _unpacked(first, blocks, faults)
        elif first:
            yield first
            yield from blocks


def _unpacked(raw: bytes, blocks: Iterator[bytes], faults: list[ListFault]) -> Iterator[bytes]:
    """The content of gzip members one after another; zeros after the last one are padding."""
    member = zlib.decompressobj(31)
    while True:
        try:
            content = member.decompress(raw, _BLOCK_BYTES)
        except zlib.error:
            faults.append(ListFault.file_damaged)
            return
        if content:
            yield content
        raw = member.unused_data if member.eof else member.unconsumed_tail
        if member.eof:
            while not (raw := raw.lstrip(b"\0")):
                raw = next(blocks, b"")
                if not raw:
                    return
            member = zlib.decompressobj(31)
        elif not raw and len(content) < _BLOCK_BYTES:
            raw = next(blocks, b"")
            if not raw:
                faults.append(ListFault.file_truncated)
                return
