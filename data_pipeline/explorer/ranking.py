"""The results of one search, as far as they have been read: ranked, folded, and going on.

A search is deepened in steps, each four times as deep. What was shown stays where it was and later steps only add to
the end, so pages neither repeat nor skip a result, although a deeper search of a quantised index may find a better one
late. The steps depend on the search alone: a list that was forgotten is made again the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock

import numpy as np

from data_pipeline.explorer.library import Library
from data_pipeline.index_search import Allowed

_FIRST_STEP = 64
_COMPARED = 4_096  # results whose images are compared with each other; further down, addresses alone are
_BLOCK = 256


@dataclass
class Hit:
    """A result, with the near-duplicates that it stands for."""

    row: int
    similarity: float
    folded: list[int] = field(default_factory=list)  # rows


class Ranking:
    """One search's results; thread-safe."""

    def __init__(
        self,
        library: Library,
        modality: str,
        query: np.ndarray,
        allowed: Sequence[Allowed],
        *,
        similarity: tuple[float, float],
        duplicate_cosine: float | None,
        opposed: tuple[np.ndarray, np.ndarray] | None,
        depth: int,
    ) -> None:
        """Prepares the search.

        Args:
            library: what is searched.
            modality: what is compared with the query.
            query: [D], of length one.
            allowed: the rows that may be found, by run.
            similarity: lowest and highest cosine of a result.
            duplicate_cosine: images at least so similar are folded; None: nothing is.
            opposed: two sets of unit vectors [N, D]; an image nearer to one of the first is left out.
            depth: rows that are looked at, at most.
        """
        self._library, self._modality, self._query, self._allowed = library, modality, query, allowed
        self._lowest, self._highest = similarity
        self._duplicate_cosine, self._opposed, self._depth = duplicate_cosine, opposed, depth
        self._step = 0
        self._seen: set[int] = set()
        self._leaders = np.empty((0, len(query)), np.float32)
        self._leading: list[int] = []  # places in `hits` of the leaders
        self._by_url: dict[str, int] = {}
        self._lock = Lock()
        self.hits: list[Hit] = []
        self.ended = False  # nothing more will come
        self.cut = False  # it ended because it went as deep as is allowed

    def page(self, start: int, count: int) -> list[Hit]:
        """Some results; fewer where there are no more."""
        with self._lock:
            while len(self.hits) <= start + count and not self.ended:
                self._deepen()
            return self.hits[start : start + count]

    def _deepen(self) -> None:
        wanted = min(_FIRST_STEP * 4**self._step, self._depth)
        self._step += 1
        rows, scores = self._library.nearest(self._modality, self._query, wanted, self._allowed)
        self.cut = wanted == self._depth and len(rows) == wanted
        self.ended = self.cut or len(rows) < wanted or float(scores[-1]) < self._lowest
        chosen = (scores >= self._lowest) & (scores <= self._highest)
        chosen &= np.array([int(row) not in self._seen for row in rows], bool)
        rows, scores = rows[chosen], scores[chosen]
        self._seen.update(rows.tolist())
        for start in range(0, len(rows), _BLOCK):
            self._add(rows[start : start + _BLOCK], scores[start : start + _BLOCK])

    def _add(self, rows: np.ndarray, scores: np.ndarray) -> None:
        """Appends results, each folded into the first one that it repeats."""
        if self._opposed is None and self._duplicate_cosine is None:
            self._append(rows, scores)
            return
        images = self._library.embeddings_of("image", rows)
        if self._opposed is not None:
            bad, good = (np.max(images @ vectors.T, axis=1) for vectors in self._opposed)
            chosen = ~(bad > good)
            rows, scores, images = rows[chosen], scores[chosen], images[chosen]
        if self._duplicate_cosine is None:
            self._append(rows, scores)
            return
        urls = self._library.take(rows, ["url"])["url"]
        images = np.nan_to_num(images)
        compared = len(self._seen) <= _COMPARED
        to_leaders = images @ self._leaders.T if compared else np.empty((len(rows), 0))
        among = images @ images.T if compared else np.empty((len(rows), 0))
        new: list[int] = []  # of this block, those that lead
        for place, (row, score, url) in enumerate(zip(rows, scores, urls, strict=True)):
            leader = self._by_url.get(url)
            if leader is None and compared:
                leader = self._similar(to_leaders[place], among[place], new)
            if leader is not None:
                self.hits[leader].folded.append(int(row))
                continue
            self._by_url[url] = len(self.hits)
            new.append(place)
            self.hits.append(Hit(int(row), float(score)))
        if compared:
            first = len(self.hits) - len(new)
            self._leading += range(first, len(self.hits))
            self._leaders = np.concatenate([self._leaders, images[new]])

    def _append(self, rows: np.ndarray, scores: np.ndarray) -> None:
        self.hits += [Hit(int(row), float(score)) for row, score in zip(rows, scores, strict=True)]

    def _similar(self, to_leaders: np.ndarray, among: np.ndarray, new: list[int]) -> int | None:
        """The place of the first result whose image is nearly this one; None when it is new."""
        assert self._duplicate_cosine is not None
        near = np.flatnonzero(to_leaders >= self._duplicate_cosine)
        if len(near):
            return self._leading[near[0]]
        if new:
            near = np.flatnonzero(among[new] >= self._duplicate_cosine)
            if len(near):
                return len(self.hits) - len(new) + int(near[0])
        return None
