"""A set of very many names in 8 bytes each: 64 bits of a hash stand for a name.

Of n names, one that is not among them is taken for one of them with a probability of n / 2**64: for a run of four
million shards one of them is, with a probability of one in a million, taken for finished when it is not. The run then
ends with an error, because that shard's record is missing; the next run, being another process, hashes otherwise.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterable

import numpy as np


class NameSet:
    """Names that are only asked for."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._hashes = array("q", map(hash, names))
        self._is_sorted = False

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, name: str) -> bool:
        self._sort()
        place = bisect_left(self._hashes, hash(name))
        return place < len(self._hashes) and self._hashes[place] == hash(name)

    def add(self, name: str) -> None:
        """Adds a name. To ask after each is slow: they are sorted anew."""
        self._hashes.append(hash(name))
        self._is_sorted = False

    def has_repeats(self) -> bool:
        """Whether a name was given twice."""
        self._sort()
        hashes = np.frombuffer(self._hashes or array("q", [0]), np.int64)
        return bool((hashes[1:] == hashes[:-1]).any())

    def _sort(self) -> None:
        if not self._is_sorted and self._hashes:
            np.frombuffer(self._hashes, np.int64).sort()  # in place
        self._is_sorted = True
