"""Lists of uids as DataComp keeps them: sorted arrays of (high, low) 64-bit halves, and what is done with them.

Vectorised, and for a list that stays on disk: `crawl2clip.schema` has the same conversions for a few uids at a time.
"""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import xxhash

from crawl2clip import storage
from crawl2clip.errors import DataError
from crawl2clip.schema import UID_DTYPE
from data_pipeline.deduplicate_keys import keys_of_hex


def uid_halves(uids: pl.Series) -> np.ndarray:
    """[N, 2] uint64: the high and the low half of each uid.

    Raises:
        DataError: an entry is not 32 hex digits.
    """
    column = uids.to_arrow().cast(pa.large_string())
    _, offsets, data = column.buffers()
    ends = (
        np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
        if len(uids)
        else None
    )
    if ends is None:
        return np.empty((0, 2), np.uint64)
    digits = np.frombuffer(data or b"", np.uint8)[ends[0] : ends[-1]]
    even = not column.null_count and bool((np.diff(ends) == 32).all())
    # Capital letters would be another text for the same number: joins are by text.
    lower = even and not ((digits > ord("9")) & (digits < ord("a"))).any()
    try:
        if lower:
            return keys_of_hex(digits.data)
    except ValueError:
        pass
    odd = uids.filter(~uids.str.contains(r"^[0-9a-f]{32}$").fill_null(False))
    raise DataError(f"{odd[0]!r} is not a uid; a uid is 32 hex digits (crawl2clip.schema.uid_of)")


class SubsetWriter:
    """Makes one sorted uid file from any number of uids in any order, with a small part of them in memory.

    Uids are spread over 256 files by their first byte, and each is sorted by itself: a billion uids take 16 GB of disk
    and 250 MB of memory.

    Args:
        path: the .npy file; the other files lie beside it while it is made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._parts = [path.with_name(f"{path.name}.part{index:03d}") for index in range(256)]

    def add(self, halves: np.ndarray) -> None:
        """Adds [N, 2] uint64 (high, low) halves."""
        bucket = (halves[:, 0] >> np.uint64(56)).astype(np.uint8)
        order = np.argsort(bucket, kind="stable")
        starts = np.searchsorted(bucket[order], np.arange(257))
        for index, part in enumerate(self._parts):
            rows = order[starts[index] : starts[index + 1]]
            if len(rows):
                with open(part, "ab") as file:
                    file.write(halves[rows].tobytes())

    def close(self) -> int:
        """Writes the file and removes the others; returns the number of uids.

        Raises:
            DataError: a uid was added twice.
        """
        written = [part for part in self._parts if part.exists()]
        total = sum(part.stat().st_size for part in written) // UID_DTYPE.itemsize
        with open(self._path, "wb") as file:
            header = {
                "descr": np.lib.format.dtype_to_descr(UID_DTYPE),
                "fortran_order": False,
                "shape": (total,),
            }
            np.lib.format.write_array_header_1_0(file, header)
            for part in written:
                file.write(_sorted(np.fromfile(part, np.uint64).reshape(-1, 2)).tobytes())
                part.unlink()
        return total


def _sorted(halves: np.ndarray) -> np.ndarray:
    """[N, 2] uint64 in order.

    Raises:
        DataError: a uid is there twice.
    """
    halves = halves[np.lexsort((halves[:, 1], halves[:, 0]))]
    repeated = np.flatnonzero((halves[1:] == halves[:-1]).all(axis=1))
    if len(repeated):
        high, low = halves[repeated[0]]
        raise DataError(
            f"{len(repeated)} uids are in several raw shards, the first is {int(high):016x}{int(low):016x}; a uid "
            "stands for one pair: run stage=deduplicate and the stages after it again, in a new output_dir"
        )
    return halves


def open_uids(path: str | Path, *, repeats: bool = False) -> np.ndarray:
    """A subset's uids, mapped from disk: one-dimensional, `UID_DTYPE`, sorted, each once.

    Args:
        path: the .npy file.
        repeats: a uid may come several times, which asks for so many copies of its sample.

    Raises:
        DataError: the file is missing, is not a DataComp subset, or is not sorted.
    """
    if storage.exists(path):
        storage.fetch(path)
    try:
        uids = np.load(path, mmap_mode="r")
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing; run stage=select, or give reshard.uids=<DataComp subset file>"
        ) from error
    except (ValueError, EOFError, OSError) as error:
        raise DataError(
            f"{path} is not a numpy file ({error}); give the .npy of a DataComp subset"
        ) from error
    if uids.dtype != UID_DTYPE or uids.ndim != 1:
        raise DataError(
            f"{path} holds {uids.ndim}-dimensional {uids.dtype}, not uids; a DataComp subset is one-dimensional "
            f"{UID_DTYPE}: the high and the low 64 bits of each uid"
        )
    for start in range(0, len(uids), 1 << 20):
        part = uids[start : start + (1 << 20) + 1]
        same = part["f0"][:-1] == part["f0"][1:]
        ordered = (part["f0"][:-1] < part["f0"][1:]) | (same & (part["f1"][:-1] < part["f1"][1:]))
        if repeats:
            ordered |= same & (part["f1"][:-1] == part["f1"][1:])
        if not ordered.all():
            how = "numpy.sort(uids)" if repeats else "numpy.unique(uids)"
            raise DataError(
                f"{path} is not sorted{'' if repeats else ', or holds a uid twice'}; write it as {how}"
            )
    return uids


def is_in_subset(halves: np.ndarray, uids: np.ndarray) -> np.ndarray:
    """Whether each uid is in a sorted subset: [N] bool of [N, 2] uint64 (high, low)."""
    return count_in_subset(halves, uids) > 0


def count_in_subset(halves: np.ndarray, uids: np.ndarray, *, only_smaller: bool = False) -> np.ndarray:
    """How often each uid is in a sorted list, by binary search, so that the list can stay on disk.

    Args:
        halves: [N, 2] uint64, (high, low).
        uids: sorted; the fields f0 and f1 are the halves (`UID_DTYPE`, or more fields).
        only_smaller: count the entries that come before each uid instead.

    Returns:
        [N] int64.
    """
    smaller = _num_before(halves, uids, with_equal=False)
    return smaller if only_smaller else _num_before(halves, uids, with_equal=True) - smaller


def _num_before(halves: np.ndarray, uids: np.ndarray, *, with_equal: bool) -> np.ndarray:
    low, high = np.zeros(len(halves), np.int64), np.full(len(halves), len(uids), np.int64)
    for _ in range(len(uids).bit_length()):
        middle = np.minimum((low + high) // 2, len(uids) - 1)
        probe = uids[middle]
        second = probe["f1"] <= halves[:, 1] if with_equal else probe["f1"] < halves[:, 1]
        before = (probe["f0"] < halves[:, 0]) | ((probe["f0"] == halves[:, 0]) & second)
        active = low < high
        low, high = np.where(active & before, middle + 1, low), np.where(active & ~before, middle, high)
    return low


def order_keys(halves: np.ndarray, seed: int) -> np.ndarray:
    """A number for each uid that puts the uids in the random order of `seed`: [N] uint64 of [N, 2] uint64.

    Three rounds of SplitMix64 (Steele et al. 2014), whose output does not depend on library versions.
    """
    start = split_mix(np.array([seed % 2**64], dtype=np.uint64))
    return split_mix(halves[:, 0] ^ split_mix(halves[:, 1] ^ start))


def chances(halves: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """A number for each uid that is uniform in [0, 1): float64 [N] of [N, 2] uint64, the same in every run.

    Args:
        halves: (high, low) of each uid.
        seed: of the draw.
        purpose: what is drawn: draws for two purposes, and the order of a reshard, have nothing to do with each other.
    """
    return unit_interval(order_keys(halves, stream_seed(seed, purpose)))


def stream_seed(seed: int, purpose: str) -> int:
    """The seed of one of the streams of random numbers that a seed stands for."""
    return xxhash.xxh3_64_intdigest(f"{purpose}:{seed}".encode())


def unit_interval(keys: np.ndarray) -> np.ndarray:
    """uint64 as float64 in [0, 1), of their first 53 bits."""
    return (keys >> np.uint64(11)) * 2.0**-53


def split_mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's step of each of [N] uint64, which scatters neighbouring numbers over all of them."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
