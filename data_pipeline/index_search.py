"""The nearest rows to a vector: candidates from the index, ranked by their embeddings, under a filter.

Each call has its own parameters, so threads do not disturb each other. A filter is a bit for each row; where it leaves
few rows they are all compared, where it leaves some the search looks at more lists for them.
"""

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.index_faiss import load_faiss
from data_pipeline.index_rows import PartRows
from data_pipeline.index_vectors import PartVectors

COMPARE_ALL_BELOW = 2_000  # rows that pass a filter: so few are compared one by one
_BLOCK = 512  # embeddings that are compared at a time: they stay in the processor's cache
_MOST_SCANNED = 4_000_000  # codes looked at for one query, however narrow the filter


@dataclass(frozen=True)
class Allowed:
    """The rows that a filter leaves."""

    bits: np.ndarray  # uint8, bit i % 8 of byte i // 8 is row i
    count: int
    rows: np.ndarray | None  # the rows themselves, int64, where they are few

    @classmethod
    def of(cls, mask: np.ndarray) -> "Allowed":
        """From a bool for each row number."""
        count = int(np.count_nonzero(mask))
        rows = np.flatnonzero(mask) if count <= COMPARE_ALL_BELOW else None
        return cls(np.packbits(mask, bitorder="little"), count, rows)


@dataclass(frozen=True)
class Effort:
    """How hard a search tries, as it was measured when the index was built."""

    lists: int  # looked at for a query
    candidates: int  # ranked by their embeddings, for each result asked for


class VectorIndex:
    """One modality of one run's index, open for searching; thread-safe."""

    def __init__(
        self, index: Any, parts: Sequence[PartRows], vectors: Sequence[PartVectors], effort: Effort
    ) -> None:
        """From the index, the parts whose rows are in it, and their embeddings."""
        self._index, self._vectors, self._effort = index, vectors, effort
        self._bases = np.array([part.base for part in parts], np.int64)
        self._num_lists = getattr(index, "nlist", 0)

    @property
    def dim(self) -> int:
        """Of its vectors."""
        return int(self._index.d)

    @property
    def count(self) -> int:
        """Of its vectors."""
        return int(self._index.ntotal)

    def nearest(
        self, query: np.ndarray, count: int, allowed: Allowed | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `count` nearest rows, or fewer.

        Args:
            query: [D] float32, of length one.
            count: 1 or more.
            allowed: which rows may be found; None: all.

        Returns:
            Row numbers int64 and cosines float32 of the stored embeddings, highest first; equal ones by row.
        """
        if self.count == 0 or (allowed is not None and allowed.count == 0):
            return np.empty(0, np.int64), np.empty(0, np.float32)
        if allowed is not None and allowed.rows is not None:
            rows = allowed.rows
        else:
            wanted = min(count * self._effort.candidates, self.count)
            found = self._index.search(query[None], wanted, params=self._parameters(wanted, allowed))[1][0]
            rows = found[found >= 0]
        if len(rows) == 0:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        scores = np.empty(len(rows), np.float32)
        for chosen, vectors in self._by_part(rows):
            scores[chosen] = vectors @ query
        scored = np.isfinite(scores)
        rows, scores = rows[scored], scores[scored]
        order = np.lexsort((rows, -scores))[:count]
        return rows[order], scores[order]

    def _parameters(self, wanted: int, allowed: Allowed | None) -> Any:
        faiss = load_faiss()

        selector = None if allowed is None else faiss.IDSelectorBitmap(allowed.bits)
        if not self._num_lists:
            return None if selector is None else faiss.SearchParameters(sel=selector)
        # Enough lists that they can hold so many results: a reader who goes on and on sees them all in the end.
        lists = max(self._effort.lists, 2 * wanted * self._num_lists // self.count)
        if allowed is not None:
            cap = max(lists, int(_MOST_SCANNED * self._num_lists / self.count))
            lists = min(int(lists * self.count / allowed.count) + 1, cap)
        return faiss.SearchParametersIVF(sel=selector, nprobe=min(lists, self._num_lists))

    def embeddings_of(self, rows: np.ndarray) -> np.ndarray:
        """Unit embeddings [N, D] float32 of some rows; NaN where there is none."""
        found = np.empty((len(rows), self.dim), np.float32)
        for chosen, vectors in self._by_part(rows):
            found[chosen] = vectors
        return found

    def _by_part(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Some rows of one part at a time: their places among `rows`, and their unit embeddings."""
        part_of = np.searchsorted(self._bases, rows, side="right") - 1
        for number in np.unique(part_of):
            of_part = np.flatnonzero(part_of == number)
            for start in range(0, len(of_part), _BLOCK):
                chosen = of_part[start : start + _BLOCK]
                yield chosen, self._vectors[number].take(rows[chosen] - self._bases[number])


def open_index(path: Path) -> Any:
    """A faiss index, its inverted lists mapped from the file beside it."""
    faiss = load_faiss()
    with _stdout_to_stderr():
        return faiss.read_index(str(path), faiss.IO_FLAG_ONDISK_SAME_DIR | faiss.IO_FLAG_READ_ONLY)


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """faiss prints from C++ where it found the lists; standard output is for the command's own lines."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
        ctypes.CDLL(None).fflush(None)  # what C has not written out yet
    finally:
        os.dup2(kept, 1)
        os.close(kept)
