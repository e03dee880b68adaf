"""Where every sample of one shard lies: its tar headers, read once and kept.

The index is kept beside the shard as `<shard>.index` (in memory where that folder cannot be written): a line of JSON
with the counts that a start needs, a row a sample, a byte a sample that tells which members it has. Rows are read
one by one as they are needed, so they cost no memory. An index that is older than its shard, or torn, is made again
without a word.

For a remote shard the index is looked for in the local cache, then at `<url>.index`, where it can be uploaded with
the shard; where there is none, the whole shard is fetched once to make it.
"""

import errno
import json
import logging
import os
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from crawl2clip.errors import DataError
from crawl2clip.files import atomic_path
from crawl2clip.shards import SampleIndex, ShardFault, index_shard
from train.data.open_files import OpenFile, is_own_fault, machine_fault
from train.data.remote import GoneError, is_remote
from train.data.shard_cache import ShardCache

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
"""Taken in this order where a sample has several."""

MEMBERS = ("image", "txt", "json")
"""What is indexed of a sample. Its kind is the sum of 1 << n over the members it has; an empty one it has not."""

NUM_KINDS = 1 << len(MEMBERS)

SUMMARY = np.dtype(
    [("counts", "<i8", NUM_KINDS), ("shard_bytes", "<i8"), ("key_bytes", "<i8"), ("rows_at", "<i8")]
)
"""What a data set's table keeps of each index: samples of each kind, size of the shard, form and place of the rows."""

Span = tuple[int, int]
"""Offset and size in bytes."""

_FORMAT = "crawl2clip shard index 2"
_PLACES = struct.Struct(
    "<6q"
)  # of a row: offset and size of each of MEMBERS; the key follows, filled up with zeros
_HEAD_BYTES = 4096  # hold the header of a shard without a long list of faults
_CANNOT_WRITE = (errno.EROFS, errno.ENOSPC, errno.EDQUOT)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleRow:
    """One sample of a shard."""

    key: bytes  # filled up with zeros
    spans: dict[str, Span]  # of those of MEMBERS that it has


class IndexRows:
    """The samples of one shard, whole or not, in file order; each is read when it is asked for.

    Args:
        content: the index file, or all its bytes where it could not be kept.
        summary: what it holds, one of SUMMARY.
    """

    def __init__(self, content: OpenFile | bytes, summary: np.void) -> None:
        self._content = content
        self._row_bytes = _PLACES.size + int(summary["key_bytes"])
        self._rows_at, self._count = int(summary["rows_at"]), sum(summary["counts"].tolist())

    def __len__(self) -> int:
        return self._count

    def is_whole(self) -> bool:
        """Whether the content is as long as the summary says."""
        size = len(self._content) if isinstance(self._content, bytes) else self._content.size
        return size == self._rows_at + self._count * (self._row_bytes + 1)

    def row(self, number: int) -> SampleRow:
        """One sample. Raises DataError when this machine cannot read the index."""
        row = self._read(self._rows_at + number * self._row_bytes, self._row_bytes)
        image, image_size, txt, txt_size, json_, json_size = _PLACES.unpack_from(row)
        spans = {"image": (image, image_size), "txt": (txt, txt_size), "json": (json_, json_size)}
        return SampleRow(row[_PLACES.size :], {name: span for name, span in spans.items() if span[1]})

    def of_kinds(self, kinds: np.ndarray) -> np.ndarray:
        """Numbers of the samples of chosen kinds (bool [NUM_KINDS]), int64 and ascending. Raises as `row`."""
        data = self._read(self._rows_at + self._count * self._row_bytes, self._count)
        return np.flatnonzero(kinds[np.frombuffer(data, np.uint8) % NUM_KINDS])

    def _read(self, offset: int, size: int) -> bytes:
        if isinstance(self._content, bytes):
            return self._content[offset : offset + size]
        try:
            data = self._content.read(offset, size)
        except OSError as error:
            raise machine_fault(self._content.path, error) from error
        if len(data) != size:
            raise DataError(f"{self._content.path} was cut off under the run; delete it, start the run again")
        return data


@dataclass(frozen=True)
class ShardIndex:
    """The index of one shard, opened.

    Attributes:
        identity: size and time of the shard it was made from.
        summary: one of SUMMARY.
        faults: what was wrong with the archive itself.
        content: the index file, or all its bytes where it could not be kept.
    """

    identity: list[int]
    summary: np.void
    faults: list[ShardFault]
    content: OpenFile | bytes

    @property
    def rows(self) -> IndexRows:
        """Its samples."""
        return IndexRows(self.content, self.summary)


def usable_kinds(caption_members: Sequence[str]) -> np.ndarray:
    """Which kinds of sample have an image and one of `caption_members`, bool [NUM_KINDS]."""
    captioned = [kinds_with(member) for member in caption_members]
    return kinds_with("image") & np.logical_or.reduce(captioned)


def kinds_with(member: str) -> np.ndarray:
    """Which kinds of sample have a member, bool [NUM_KINDS]."""
    return np.arange(NUM_KINDS) & (1 << MEMBERS.index(member)) > 0


def open_index(shard: str, cache: ShardCache | None = None) -> ShardIndex:
    """The index of a shard: from where it is kept when it fits the shard, else made from the shard's headers.

    Raises:
        DataError: a remote shard cannot be read now (one that is not there is a fault, `missing`), or this machine's
            files cannot be.
    """
    try:
        if cache is not None and is_remote(shard):
            return _open_remote_index(shard, cache)
        identity = _identity(shard)
        return _read(place_of(shard), shard, identity) or _made(shard, *_headers(shard), identity)
    except OSError as error:
        raise machine_fault(shard, error) from error


def reopen_rows(shard: str, cache: ShardCache | None, summary: np.void) -> IndexRows:
    """The rows of an index that was opened before, here or by another process; the shard itself is not looked at.

    Raises:
        DataError: it has gone and cannot be made again the same, or this machine's files cannot be read.
    """
    path = place_of(shard, cache)
    try:
        rows = IndexRows(OpenFile(path), summary)
        if rows.is_whole():
            return rows
    except OSError as error:
        if not is_own_fault(error):
            raise machine_fault(path, error) from error
    found = open_index(shard, cache)
    for part in ("shard_bytes", "counts"):
        if not np.array_equal(found.summary[part], summary[part]):
            raise DataError(
                f"{shard} has {len(found.rows)} samples in {found.summary['shard_bytes']} bytes; when the run started"
                f" it had {summary['counts'].sum()} in {summary['shard_bytes']}; put that shard back, or start again"
            )
    return found.rows


def place_of(shard: str, cache: ShardCache | None = None) -> str:
    """Where the index of a shard is kept, there or not; a path as text, which is quicker to make at each draw."""
    if cache is not None and is_remote(shard):
        return str(cache.place(shard, ".index"))
    return f"{shard}.index"


def _open_remote_index(url: str, cache: ShardCache) -> ShardIndex:
    try:
        identity = [cache.remote.size(url), 0]
        path = place_of(url, cache)
        kept = _read(path, url, identity)
        if kept is not None:
            return kept
        beside = cache.remote.small_file(f"{url}.index")
        if beside is not None:
            with cache.writing(Path(path)) as temporary:
                temporary.write_bytes(beside)
            kept = _read(path, url, identity)
            if kept is not None:
                return kept
        samples, faults = _headers(cache.fetch(url))
        while _is_missing(faults):  # another process made room in between
            samples, faults = _headers(cache.fetch(url))
        return _made(url, samples, faults, identity, cache)
    except GoneError as error:
        return _in_memory(_content([], [ShardFault(url, None, "missing", str(error))], [0, 0]), url)


def _headers(tar: str | Path) -> tuple[list[SampleIndex], list[ShardFault]]:
    faults: list[ShardFault] = []
    samples = list(index_shard(tar, faults.append))
    if _is_missing(faults) or any(fault.reason == "not_a_tar" for fault in faults):
        faults = [fault for fault in faults if fault.reason != "no_samples"]  # which goes without saying then
    return samples, faults


def _is_missing(faults: list[ShardFault]) -> bool:
    return any(fault.reason == "missing" for fault in faults)


def _made(
    shard: str,
    samples: list[SampleIndex],
    faults: list[ShardFault],
    identity: list[int] | None,
    cache: ShardCache | None = None,
) -> ShardIndex:
    content = _content(samples, faults, identity or [0, 0])
    # Where there is no sample, a permission may be all that is missing; the next start looks again.
    kept = len(samples) > 0 and _keep(place_of(shard, cache), content, cache)
    return (_read(place_of(shard, cache), shard, identity) if kept else None) or _in_memory(content, shard)


def _in_memory(content: bytes, shard: str) -> ShardIndex:
    index = _parsed(content, content[: content.index(b"\n") + 1], shard)
    assert index is not None, "it was written a moment ago"
    return index


def _keep(path: str, content: bytes, cache: ShardCache | None) -> bool:
    try:
        with cache.writing(Path(path)) if cache else atomic_path(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        if not isinstance(error, PermissionError) and error.errno not in _CANNOT_WRITE:
            raise
        logger.debug("%s stays in memory, its folder cannot be written (%s)", path, error)
        return False
    return True


def _content(samples: list[SampleIndex], faults: list[ShardFault], identity: list[int]) -> bytes:
    keys = [sample.key.encode("utf-8", errors="surrogateescape") for sample in samples]
    key_bytes = max(map(len, keys), default=1)
    rows, kinds = [], bytearray()
    for key, sample in zip(keys, samples, strict=True):
        spans = [sample.fields.get(place, (0, 0)) for place in (_image_place(sample), "txt", "json")]
        rows += [_PLACES.pack(*spans[0], *spans[1], *spans[2]), key.ljust(key_bytes, b"\0")]
        kinds.append(sum(1 << place for place, (_, size) in enumerate(spans) if size))
    header = {
        "format": _FORMAT,
        "shard": identity,
        "key_bytes": key_bytes,
        "samples": np.bincount(np.frombuffer(kinds, np.uint8), minlength=NUM_KINDS).tolist(),
        "faults": [asdict(fault) for fault in faults],
    }
    return b"".join((json.dumps(header).encode(), b"\n", *rows, kinds))


def _image_place(sample: SampleIndex) -> str:
    return next((extension for extension in IMAGE_EXTENSIONS if extension in sample.fields), "")


def _identity(shard: str) -> list[int] | None:
    """What tells an index of this shard from one of another under its name; None where the shard is not there."""
    try:
        status = os.stat(shard)
    except OSError as error:
        if not is_own_fault(error):
            raise
        return None
    return [status.st_size, status.st_mtime_ns]


def _read(path: str, shard: str, identity: list[int] | None) -> ShardIndex | None:
    try:
        file = OpenFile(path)
    except OSError as error:
        if not is_own_fault(error):
            raise
        return None
    head = file.read(0, _HEAD_BYTES)
    if b"\n" not in head:
        head = file.read(0, file.size)
    index = _parsed(file, head[: head.find(b"\n") + 1], shard)
    return index if index is not None and _fits(index.identity, identity) else None


def _parsed(content: OpenFile | bytes, line: bytes, shard: str) -> ShardIndex | None:
    """The index with the header `line`; None where it is torn, or of another version."""
    try:
        header = json.loads(line)
        if header["format"] != _FORMAT:
            return None
        identity = [int(number) for number in header["shard"]]
        counts = [int(number) for number in header["samples"]]
        summary = np.array([(counts, identity[0], header["key_bytes"], len(line))], SUMMARY)[0]
        # Moved shards keep their index, so faults take the name by which the shard was asked for.
        faults = [ShardFault(**{**fault, "shard": shard}) for fault in header["faults"]]
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return None
    index = ShardIndex(identity, summary, faults, content)
    return index if min(counts) >= 0 and summary["key_bytes"] > 0 and index.rows.is_whole() else None


def _fits(found: list[int], identity: list[int] | None) -> bool:
    # An upload has another time, or none; its size is what is left to compare.
    return identity is not None and found[: 2 if identity[1] else 1] == identity[: 2 if identity[1] else 1]
