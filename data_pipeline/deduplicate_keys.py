"""Keys of rows and sorted files of them: what two rows must share to be duplicates, and what lists are made of.

A key is 128 bits, held as two arrays of uint64. A key file is a numpy array [2, N]: the high halves, sorted, then the
low ones, each contiguous, so that it is searched where it lies on disk. (DataComp's subset format interleaves the two,
and a binary search would first copy it into memory.)
"""

import binascii
from enum import Enum
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from crawl2clip import storage
from crawl2clip.errors import DataError

_NUM_BUCKETS = 64  # a key list is sorted in parts of about this fraction
_SPACE = 1 << 64  # of the high half


class DeduplicateBy(str, Enum):
    """What is kept once."""

    pair = "pair"  # a (url, text) pair: the key is the uid
    url = "url"  # an image address, with one of its texts: the key is the XXH3-128 of the address


def keys_of_hex(text: bytes | memoryview) -> np.ndarray:
    """[N, 2] uint64 from N times 32 hex digits without a separator.

    Raises:
        ValueError: something else than hex digits, or a length that is not a multiple of 32.
    """
    packed = binascii.unhexlify(text)
    if len(packed) % 16:
        raise ValueError("not a multiple of 32 hex digits")
    return np.frombuffer(packed, ">u8").reshape(-1, 2).astype(np.uint64)


def hex_of_keys(high: np.ndarray, low: np.ndarray) -> pa.LargeStringArray:
    """The inverse of `keys_of_hex`, as a column."""
    data = binascii.hexlify(np.stack([high, low], axis=1).astype(">u8").tobytes())
    offsets = np.arange(0, 32 * len(high) + 1, 32, dtype=np.int64)
    return pa.LargeStringArray.from_buffers(len(high), pa.py_buffer(offsets), pa.py_buffer(data))


def keys_of(column: pa.ChunkedArray, by: DeduplicateBy) -> np.ndarray:
    """[N, 2] uint64: the keys of a column of uids or of urls.

    Raises:
        ValueError: a uid is not 32 hex digits, or null; or a url is null.
    """
    if column.null_count:
        raise ValueError(f"a {'uid' if by == DeduplicateBy.pair else 'url'} is null")
    parts = [_keys_of_chunk(chunk.cast(pa.large_string()), by) for chunk in column.chunks if len(chunk)]
    return np.concatenate([np.empty((0, 2), np.uint64), *parts])


def _keys_of_chunk(chunk: pa.LargeStringArray, by: DeduplicateBy) -> np.ndarray:
    _, offset_buffer, data = chunk.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
    view = memoryview(data or b"")
    if by == DeduplicateBy.pair:
        if (np.diff(offsets) != 32).any():
            raise ValueError("a uid is not 32 hex digits")
        return keys_of_hex(view[offsets[0] : offsets[-1]])
    digest, ends = xxhash.xxh3_128_digest, offsets.tolist()
    packed = b"".join([digest(view[start:end]) for start, end in pairwise(ends)])
    return np.frombuffer(packed, ">u8").reshape(-1, 2).astype(np.uint64)


def key_bounds(num_ranges: int) -> np.ndarray:
    """[num_ranges - 1] uint64: the least high half of every range but the first, of equal parts of all keys."""
    return np.array([-(-part * _SPACE // num_ranges) for part in range(1, num_ranges)], dtype=np.uint64)


def range_of(high: np.ndarray, index: int, num_ranges: int) -> slice:
    """Where range `index` lies in sorted high halves."""
    bounds = key_bounds(num_ranges)
    start = int(np.searchsorted(high, bounds[index - 1])) if index else 0
    end = int(np.searchsorted(high, bounds[index])) if index + 1 < num_ranges else len(high)
    return slice(start, end)


def find(keys: np.ndarray, wanted_high: np.ndarray, wanted_low: np.ndarray) -> np.ndarray:
    """[N] int64: where each of N wanted keys stands among sorted ones, [2, M], or -1.

    Quick when the wanted keys are sorted too: neighbours are then looked for in the same place.
    """
    high, low = keys
    if not len(high):
        return np.full(len(wanted_high), -1, np.int64)
    place = np.searchsorted(high, wanted_high)
    # Different keys with one high half do not happen by chance; they stand side by side, so walk on over them.
    last = len(high) - 1
    alike = (place <= last) & (high[np.minimum(place, last)] == wanted_high)
    found = np.full(len(wanted_high), -1, np.int64)
    left = np.flatnonzero(alike)
    while len(left):
        equal = low[place[left]] == wanted_low[left]
        found[left[equal]] = place[left[equal]]
        left = left[~equal]
        place[left] += 1
        left = left[place[left] <= last]
        left = left[high[place[left]] == wanted_high[left]]
    return found


def sorted_once(keys: np.ndarray) -> np.ndarray:
    """[2, M] uint64: the distinct keys of [N, 2], sorted."""
    order = np.argsort(keys[:, 0])
    high = keys[order, 0]
    if (high[1:] == high[:-1]).any():
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        high = keys[order, 0]
    low = keys[order, 1]
    first = np.ones(len(high), bool)
    first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    return np.stack([high[first], low[first]])


def open_keys(path: Path | str) -> np.ndarray:
    """A key file, [2, N] uint64, mapped from disk.

    Raises:
        DataError: it is missing or damaged.
    """
    storage.fetch(path)
    try:
        keys = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); delete its folder and run stage=deduplicate again"
        ) from error
    if keys.dtype != np.uint64 or keys.ndim != 2 or len(keys) != 2:
        raise DataError(f"{path} is not a key file; delete its folder and run stage=deduplicate again")
    return keys


class KeyListWriter:
    """Makes one key file from any number of keys in any order, with a small part of them in memory.

    Keys are spread over 64 files by their first bits, and each is sorted by itself.

    Args:
        path: the key file; the other files lie beside it while it is made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._parts = [path.with_name(f"{path.name}.part{index:02d}") for index in range(_NUM_BUCKETS)]

    def add(self, keys: np.ndarray) -> None:
        """Adds [N, 2] uint64 keys."""
        bucket = (keys[:, 0] >> np.uint64(58)).astype(np.uint8)
        order = np.argsort(bucket, kind="stable")
        starts = np.searchsorted(bucket[order], np.arange(_NUM_BUCKETS + 1))
        for index, part in enumerate(self._parts):
            rows = order[starts[index] : starts[index + 1]]
            if len(rows):
                with open(part, "ab") as file:
                    file.write(keys[rows].tobytes())

    def close(self) -> int:
        """Writes the key file and removes the others; returns the number of distinct keys."""
        written = [part for part in self._parts if part.exists()]
        total = 0
        for part in written:
            keys = sorted_once(np.fromfile(part, np.uint64).reshape(-1, 2))
            keys.tofile(part)
            total += keys.shape[1]
        if total == 0:  # an empty file cannot be mapped
            np.save(self._path, np.empty((2, 0), np.uint64))
            return 0
        target = np.lib.format.open_memmap(self._path, mode="w+", dtype=np.uint64, shape=(2, total))
        done = 0
        for part in written:
            keys = np.fromfile(part, np.uint64).reshape(2, -1)
            target[:, done : done + keys.shape[1]] = keys
            done += keys.shape[1]
            part.unlink()
        target.flush()
        return total
