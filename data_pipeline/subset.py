"""Lists of uids as DataComp keeps them: sorted arrays of (high, low) 64-bit halves, and what is done with them.

Vectorised, and for a list that stays on disk: `crawl2clip.schema` has the same conversions for a few uids at a time.
"""

from pathlib import Path

import numpy as np
import polars as pl

from crawl2clip.errors import DataError
from crawl2clip.schema import UID_DTYPE
from data_pipeline import storage


def uid_halves(uids: pl.Series) -> np.ndarray:
    """[N, 2] uint64: the high and the low half of each uid.

    Raises:
        DataError: an entry is not 32 hex digits.
    """
    odd = uids.filter(~uids.str.contains(r"^[0-9a-f]{32}$"))
    if len(odd):
        raise DataError(f"{odd[0]!r} is not a uid; a uid is 32 hex digits (crawl2clip.schema.uid_of)")
    halves = [
        uids.str.slice(start, 16).str.to_integer(base=16, dtype=pl.UInt64).to_numpy() for start in (0, 16)
    ]
    return np.stack(halves, axis=1)


def sorted_uids(parts: list[np.ndarray]) -> np.ndarray:
    """The uids of all parts as one sorted array of `UID_DTYPE`.

    Args:
        parts: arrays [N, 2] uint64 of (high, low) halves.

    Raises:
        DataError: a uid is in two parts.
    """
    halves = np.concatenate([np.empty((0, 2), np.uint64), *parts])
    halves = halves[np.lexsort((halves[:, 1], halves[:, 0]))]
    repeated = np.flatnonzero((halves[1:] == halves[:-1]).all(axis=1))
    if len(repeated):
        high, low = halves[repeated[0]]
        raise DataError(
            f"{len(repeated)} uids are in several raw shards, the first is {int(high):016x}{int(low):016x}; a uid "
            "stands for one pair: run stage=deduplicate and the stages after it again, in a new output_dir"
        )
    return np.ascontiguousarray(halves).view(UID_DTYPE).reshape(-1)


def open_uids(path: str | Path) -> np.ndarray:
    """A subset's uids, mapped from disk: one-dimensional, `UID_DTYPE`, sorted, each once.

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
        ordered = (part["f0"][:-1] < part["f0"][1:]) | (
            (part["f0"][:-1] == part["f0"][1:]) & (part["f1"][:-1] < part["f1"][1:])
        )
        if not ordered.all():
            raise DataError(f"{path} is not sorted, or holds a uid twice; write it as numpy.unique(uids)")
    return uids


def is_in_subset(halves: np.ndarray, uids: np.ndarray) -> np.ndarray:
    """Whether each uid is in a sorted subset, by binary search, so that the subset can stay on disk.

    Args:
        halves: [N, 2] uint64, (high, low).
        uids: sorted, `UID_DTYPE`.

    Returns:
        [N] bool.
    """
    if len(uids) == 0:
        return np.zeros(len(halves), dtype=bool)
    low, high = np.zeros(len(halves), np.int64), np.full(len(halves), len(uids), np.int64)
    for _ in range(len(uids).bit_length()):
        middle = np.minimum((low + high) // 2, len(uids) - 1)
        probe = uids[middle]
        smaller = (probe["f0"] < halves[:, 0]) | (
            (probe["f0"] == halves[:, 0]) & (probe["f1"] < halves[:, 1])
        )
        active = low < high
        low, high = np.where(active & smaller, middle + 1, low), np.where(active & ~smaller, middle, high)
    found = uids[np.minimum(low, len(uids) - 1)]
    return (low < len(uids)) & (found["f0"] == halves[:, 0]) & (found["f1"] == halves[:, 1])


def order_keys(halves: np.ndarray, seed: int) -> np.ndarray:
    """A number for each uid that puts the uids in the random order of `seed`: [N] uint64 of [N, 2] uint64.

    Three rounds of SplitMix64 (Steele et al. 2014), whose output does not depend on library versions.
    """
    start = _split_mix(np.array([seed % 2**64], dtype=np.uint64))
    return _split_mix(halves[:, 0] ^ _split_mix(halves[:, 1] ^ start))


def _split_mix(values: np.ndarray) -> np.ndarray:
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
