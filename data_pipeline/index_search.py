"""The nearest rows to a vector: candidates from the index, ranked by their stored embeddings, under a filter.

Each call has its own parameters, so threads do not disturb each other. A filter is a bit for each row; where it leaves
few rows they are all compared, where it leaves some the search looks at more lists for them.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.index_embeddings import EmbeddingFiles
from data_pipeline.index_faiss import load_faiss
from data_pipeline.index_rows import PartRows

COMPARE_ALL_BELOW = 2_000  # rows that pass a filter: so few are compared one by one
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

    def __init__(self, index: Any, parts: list[PartRows], embeddings: EmbeddingFiles, effort: Effort) -> None:
        self._index, self._parts, self._embeddings, self._effort = index, parts, embeddings, effort
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
        scores = self.embeddings_of(rows) @ query
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
        part_of = np.searchsorted(self._bases, rows, side="right") - 1
        names: list[str] = []
        which, places = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        highs = np.empty(len(rows), np.uint64)
        for number in np.unique(part_of):
            part, chosen = self._parts[number], part_of == number
            inside = rows[chosen] - part.base
            shards, of = np.unique(part.column("shard").to_numpy()[inside], return_inverse=True)
            which[chosen] = of + len(names)
            names += [part.shards[shard] for shard in shards]
            places[chosen] = part.column("embedding_row").to_numpy()[inside]
            highs[chosen] = part.column("uid_high").to_numpy()[inside]
        return self._embeddings.read(names, which, places, highs, self.dim)


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
