"""All pairs of 64-bit hashes that differ in a few bits, exactly, without comparing all with all.

Why nothing is missed: cut the 64 bits into b bands. Two hashes that differ in at most r bits differ in at most r
bands, since each differing bit lies in one band; so they agree in at least b - r bands, and therefore in all of the
bands of at least one of the C(b, b - r) choices of b - r bands. Hashes are grouped by their bits in the bands of each
choice in turn; any pair within the radius meets in a group of some choice, where its distance is computed in full.
(With b = r + 1 this is the pigeonhole argument of multi-index hashing, Norouzi et al. 2012; more bands, as in Manku
et al. 2007, give larger keys and smaller groups for more passes.)
"""

from collections.abc import Iterator
from itertools import combinations, pairwise
from math import comb

import numpy as np

HASH_BITS = 64
MAX_RADIUS = 15  # with more, bands are of 4 bits and nearly everything is compared with everything
_GROUP = 32  # hashes of a group, on average, that are worth another pass
_MAX_CHOICES = 128
_SHIFTED = 64  # groups up to this size are compared by shifting the whole array against itself
_BLOCK = 4096  # hashes of a larger group compared at a time

_BITS_OF_16 = np.array([bin(value).count("1") for value in range(1 << 16)], np.uint8)


def masks_for(radius: int, rows: int) -> list[int]:
    """The bits of each choice of bands, as 64-bit masks: the fewest choices with small groups for so many hashes."""
    chosen = radius + 1
    while rows > _GROUP << _key_bits(chosen, radius) and comb(chosen + 1, radius) <= _MAX_CHOICES:
        chosen += 1
    bands = _bands(chosen)
    return [sum(bands[place] for place in places) for places in combinations(range(chosen), chosen - radius)]


def _bands(number: int) -> list[int]:
    """Masks that cut 64 bits into bands, whose sizes differ by one bit at most."""
    ends = [HASH_BITS * place // number for place in range(number + 1)]
    return [(1 << end) - (1 << start) for start, end in pairwise(ends)]


def _key_bits(number: int, radius: int) -> int:
    return sum(sorted(bin(band).count("1") for band in _bands(number))[: number - radius])


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Bits in which two uint64 arrays differ."""
    different = np.bitwise_xor(first, second)
    if hasattr(np, "bitwise_count"):  # numpy 2
        return np.bitwise_count(different)
    parts = np.ascontiguousarray(different)[..., None].view(np.uint16)
    return _BITS_OF_16[parts].sum(axis=-1, dtype=np.uint8)


def smallest_neighbours(hashes: np.ndarray, keys: np.ndarray, radius: int) -> np.ndarray:
    """For each hash the first one before it that has the same key and is within the radius.

    Args:
        hashes: uint64 [N], in the order of preference.
        keys: uint64 [N].
        radius: bits.

    Returns:
        int64 [N]: its place, or the hash's own where there is none.
    """
    order = np.argsort(keys, kind="stable")  # within a group, still in the order of preference
    sorted_hashes, sorted_keys = hashes[order], keys[order]
    found = np.arange(len(order))
    starts = np.flatnonzero(np.r_[True, sorted_keys[1:] != sorted_keys[:-1]]) if len(order) else order
    sizes = np.diff(np.r_[starts, len(order)])
    small = np.repeat(sizes <= _SHIFTED, sizes)
    for shift in range(1, min(int(sizes.max(initial=0)), _SHIFTED)):
        # Later shifts reach hashes of more preference, and overwrite.
        near = small[shift:] & (sorted_keys[shift:] == sorted_keys[:-shift])
        places = np.flatnonzero(near)
        places = places[distances(sorted_hashes[places + shift], sorted_hashes[places]) <= radius]
        found[places + shift] = places
    for start, size in zip(starts[sizes > _SHIFTED], sizes[sizes > _SHIFTED], strict=True):
        group = sorted_hashes[start : start + size]
        for row, first in _first_near(group, radius):
            found[start + row] = start + first
    result = np.empty_like(found)
    result[order] = order[found]
    return result


def _first_near(group: np.ndarray, radius: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows, the first row before each that is near) of one group, in blocks."""
    for start in range(0, len(group), _BLOCK):
        block = group[start : start + _BLOCK]
        left = np.arange(len(block))  # rows of the block for which none is found yet
        for other in range(0, start + len(block), _BLOCK):
            near = distances(block[left, None], group[None, other : other + _BLOCK]) <= radius
            near &= np.arange(other, min(other + _BLOCK, len(group))) < (start + left)[:, None]
            hit = near.any(axis=1)
            yield start + left[hit], other + near[hit].argmax(axis=1)
            left = left[~hit]
            if not len(left):
                break


class HammingIndex:
    """A set of hashes, to be asked which of them is the first within a radius of another.

    Args:
        hashes: uint64 [N], in the order of preference.
        radius: bits.
    """

    def __init__(self, hashes: np.ndarray, radius: int) -> None:
        self._hashes, self._radius = hashes, radius
        self._tables: list[tuple[np.uint64, np.ndarray, np.ndarray]] = []
        for mask in masks_for(radius, len(hashes)):
            keys = hashes & np.uint64(mask)
            order = np.argsort(keys, kind="stable")
            self._tables.append((np.uint64(mask), keys[order], order))

    def first_within(self, hashes: np.ndarray) -> np.ndarray:
        """int64 [M]: the place of the first hash within the radius of each of uint64 [M], or -1."""
        none = len(self._hashes)
        found = np.full(len(hashes), none, np.int64)
        for mask, keys, order in self._tables:
            wanted = hashes & mask
            start, end = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
            for offset in range(int((end - start).max(initial=0))):
                rows = np.flatnonzero(start + offset < end)
                places = order[start[rows] + offset]
                near = distances(hashes[rows], self._hashes[places]) <= self._radius
                found[rows[near]] = np.minimum(found[rows[near]], places[near])
        return np.where(found < none, found, -1)
