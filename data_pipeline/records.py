"""Reads WARC and WAT files record by record, whatever has happened to them.

A damaged record costs that record: reading goes on at the next place where a record starts, found by
looking for the beginning of a gzip member that decompresses to `WARC/`. A file that is cut off gives all
its whole records and is reported as cut. Every loss is reported under a reason from `RecordFault`.

The surprising part: a reader that simply iterates sees a file cut in half as a complete, shorter one,
and one flipped byte as the end of the file.
"""

import mmap
import zlib
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from crawl2clip.errors import DataError
from data_pipeline.http_body import undo_content_encoding

if TYPE_CHECKING:
    from fastwarc.warc import WarcRecord, WarcRecordType

_MEMBER = b"\x1f\x8b\x08"  # a gzip member with deflate, the only kind there is
_ZSTD = b"\x28\xb5\x2f\xfd"
_RECORD = b"WARC/"


class RecordFault(str, Enum):
    """What was lost of a crawl file. The first four are about a file, the others about one record."""

    file_empty = "file_empty"  # it has no bytes
    file_not_warc = "file_not_warc"  # it does not start as one, such as an error page saved in its place
    file_truncated = "file_truncated"  # it is cut off; the records before the cut are read
    file_end_lost = "file_end_lost"  # damage after which no further record could be found
    record_damaged = "record_damaged"  # its compression or its headers are broken
    record_too_large = "record_too_large"  # more bytes than one record may have
    record_bad_json = "record_bad_json"  # WAT: not JSON, or nested beyond reason
    record_wrong_form = "record_wrong_form"  # WAT: JSON, but without the keys or types of a WAT record
    record_no_address = "record_no_address"  # the page's address is missing or is not http(s)
    record_long_address = (
        "record_long_address"  # the page's address or its base is over extract.max_url_length
    )


def read_records(
    path: str | Path,
    record_types: "WarcRecordType",
    on_fault: Callable[[RecordFault], None],
    *,
    max_bytes: int,
    decode_http: bool = False,
) -> Iterator[tuple["WarcRecord", bytes]]:
    """Yields the records of a file with their payloads, in order.

    Args:
        path: a WARC or WAT file, gzipped record by record, or compressed in one piece, or plain.
        record_types: fastwarc's bit mask of the types wanted.
        on_fault: called once for everything that is lost.
        max_bytes: records with a larger payload are skipped, before and after decoding.
        decode_http: parse HTTP headers, and undo Content-Encoding and Transfer-Encoding.

    Yields:
        (record, payload): `record.stream_pos` is its byte offset in the file.

    Raises:
        DataError: the file cannot be opened.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 (it is closed by the next `with`; only opening may fail here)
    except OSError as error:
        raise DataError(
            f"crawl file {path} cannot be read: {error.strerror}; check the path and its rights"
        ) from error
    with file:
        if file.read(1) == b"":
            on_fault(RecordFault.file_empty)
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if not _starts_as_warc(data):
                on_fault(RecordFault.file_not_warc)
            else:
                yield from _Reader(path, data, record_types, on_fault, max_bytes, decode_http).records()


def _starts_as_warc(data: mmap.mmap) -> bool:
    return data[:4] == _ZSTD or data[:5] == _RECORD or (data[:3] == _MEMBER and _is_record_start(data, 0))


class _Reader:
    """One pass over one file: iterate, and after a fault resume at the next record."""

    def __init__(
        self,
        path: str | Path,
        data: mmap.mmap,
        record_types: "WarcRecordType",
        on_fault: Callable[[RecordFault], None],
        max_bytes: int,
        decode_http: bool,
    ) -> None:
        self.path, self.data, self.record_types = path, data, record_types
        self.on_fault, self.max_bytes, self.decode_http = on_fault, max_bytes, decode_http
        self.position = 0  # of the last record seen, whole or not

    def records(self) -> Iterator[tuple["WarcRecord", bytes]]:
        """Yields every whole record that is wanted, in the file's order, with its payload."""
        start: int | None = 0
        fault_reported = False
        while start is not None:
            self.position = start
            fault = RecordFault.record_damaged
            try:
                for record in self._iterate(start):
                    self.position = record.stream_pos
                    payload = self._payload(record)
                    if isinstance(payload, RecordFault):
                        fault = payload
                        break
                    fault_reported = False
                    if payload is not None:
                        yield record, payload
                else:
                    if _is_cut(self.data, self.position):
                        self.on_fault(RecordFault.file_truncated)
                    return
            except OSError:  # what fastwarc raises for broken compression and broken headers
                pass
            start = _next_record(self.data, self.position + 1)
            if start is None and _is_cut(self.data, self.position):
                self.on_fault(RecordFault.file_truncated)
            elif not fault_reported:
                self.on_fault(RecordFault.file_end_lost if start is None else fault)
            fault_reported = True  # several tries may be needed to get past one place

    def _iterate(self, start: int) -> Iterator["WarcRecord"]:
        from fastwarc.warc import ArchiveIterator

        with open(self.path, "rb") as stream:  # given a path, fastwarc would go by the file's name
            stream.seek(start)
            yield from ArchiveIterator(stream, self.record_types, parse_http=False, fsspec_args=False)

    def _payload(self, record: "WarcRecord") -> bytes | RecordFault | None:
        """The payload; a fault after which reading must find its place again; None for one that is skipped."""
        if record.content_length > self.max_bytes:
            return RecordFault.record_too_large  # its length may be a lie: do not skip by it
        if record.content_length == 0 and "Content-Length" not in record.headers:
            return RecordFault.record_damaged
        if not self.decode_http:
            payload = record.reader.read()
            return payload if len(payload) == record.content_length else RecordFault.record_damaged
        return self._http_payload(record)

    def _http_payload(self, record: "WarcRecord") -> bytes | RecordFault | None:
        announced = record.content_length
        record.freeze()  # after which it says how long it is
        if record.content_length != announced:
            return RecordFault.record_damaged  # half a page may lack its opt-out or its licence
        try:
            record.parse_http(auto_decode="transfer")
            headers = record.http_headers
            encodings = headers.get("Content-Encoding", "") if headers is not None else ""
            payload = undo_content_encoding(record.reader.read(), encodings or "", self.max_bytes)
        except (
            OSError,
            ValueError,
        ):  # in a whole record: HTTP headers or encodings that are not what they say
            self.on_fault(RecordFault.record_damaged)
            return None
        if payload is None:
            self.on_fault(RecordFault.record_too_large)
            return None
        return payload


def _next_record(data: mmap.mmap, position: int) -> int | None:
    """Where the next record starts, at or after a position; None when there is none."""
    if data[:5] == _RECORD:
        found = data.find(b"\n" + _RECORD, max(position - 1, 0))
        return None if found < 0 else found + 1
    while (position := data.find(_MEMBER, position)) >= 0:
        if _is_record_start(data, position):
            return position
        position += 1
    return None


def _is_record_start(data: mmap.mmap, position: int) -> bool:
    """Whether a gzip member begins here and a record in it; three bytes alone may be chance."""
    try:
        return zlib.decompressobj(31).decompress(data[position : position + 4096], len(_RECORD)) == _RECORD
    except zlib.error:
        return False


def _is_cut(data: mmap.mmap, position: int) -> bool:
    """Whether the file ends within a gzip member, or a plain one without a blank line.

    Args:
        data: the file.
        position: where the last record starts; only from there on is the file looked at.
    """
    if data[:5] == _RECORD:
        return not data[-8:].replace(b"\r", b"").endswith(b"\n\n")
    if data[position : position + 3] != _MEMBER:  # one member holds many records
        position = 0
    if data[position : position + 3] != _MEMBER:
        return False  # another compression, whose reader reports a cut itself
    while data[position : position + 3] == _MEMBER:
        member, at = zlib.decompressobj(31), position
        try:
            while not member.eof and at < len(data):
                block = data[at : at + (1 << 20)]
                at += len(block)
                while block and not member.eof:
                    member.decompress(block, 1 << 20)
                    block = member.unconsumed_tail
        except zlib.error:
            return False
        if not member.eof:
            return True
        position = at - len(member.unused_data)
    return False
