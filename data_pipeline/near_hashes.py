"""Perceptual hashes near listed ones: exact for any number of differing bits, without comparing all with all.

Two hashes that differ in d bits of 64 agree in at least one of d + 1 bands, so only those that share a band are
compared.
"""

from itertools import pairwise

import numpy as np

HASH_BITS = 64
MAX_DISTANCE = 15  # bands of 4 bits: beyond that nearly everything shares one
_PAIRS_AT_ONCE = 4_000_000  # compared in memory, at 40 bytes each


def is_near(listed: np.ndarray, hashes: np.ndarray, distance: int) -> np.ndarray:
    """Whether each hash differs from a listed one in at most `distance` bits.

    Args:
        listed: [M] uint64.
        hashes: [N] uint64.
        distance: 0 to MAX_DISTANCE bits.

    Returns:
        [N] bool.
    """
    near = np.zeros(len(hashes), bool)
    if not len(listed):
        return near
    for low, high in _bands(distance + 1):
        mask = np.uint64((1 << (high - low)) - 1)
        band = (listed >> np.uint64(low)) & mask
        order = np.argsort(band, kind="stable")
        band = band[order]
        left = np.flatnonzero(~near)
        wanted = (hashes[left] >> np.uint64(low)) & mask
        start, end = np.searchsorted(band, wanted, "left"), np.searchsorted(band, wanted, "right")
        for part in _parts(end - start):
            rows = np.repeat(np.arange(part.start, part.stop), (end - start)[part])
            offsets = np.arange(len(rows)) - np.repeat(
                np.cumsum((end - start)[part]) - (end - start)[part], (end - start)[part]
            )
            others = listed[order[start[rows] + offsets]]
            hits = _ones(hashes[left[rows]] ^ others) <= distance
            near[left[rows[hits]]] = True
    return near


def _bands(count: int) -> list[tuple[int, int]]:
    """(first bit, bit after the last) of `count` bands that cover all bits, as equal as they can be."""
    edges = [number * HASH_BITS // count for number in range(count + 1)]
    return list(pairwise(edges))


def _parts(lengths: np.ndarray) -> list[slice]:
    """The rows cut so that a part has about _PAIRS_AT_ONCE pairs, or is one row."""
    groups = np.cumsum(lengths) // _PAIRS_AT_ONCE
    edges = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(lengths)]
    return [slice(first, last) for first, last in pairwise(edges) if last > first]


def _ones(words: np.ndarray) -> np.ndarray:
    """Bits that are set in each of [N] uint64 (numpy's own bitwise_count came with 2.0)."""
    m1, m2, m4 = (np.uint64(m) for m in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F))
    words = words - ((words >> np.uint64(1)) & m1)
    words = (words & m2) + ((words >> np.uint64(2)) & m2)
    words = (words + (words >> np.uint64(4))) & m4
    return (words * np.uint64(0x0101010101010101)) >> np.uint64(56)
