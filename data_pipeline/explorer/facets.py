"""Facets: what the rows that pass the filters are like, with counts; each leaves its own filter out.

So a reader who has chosen `en` still sees how many rows `de` would give. Numbers get a histogram whose edges depend on
all rows, not on the filter, so that it does not jump while it is narrowed.
"""

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline.explorer.filters import FilterEngine
from data_pipeline.explorer.library import Library
from data_pipeline.explorer.requests import Filter
from data_pipeline.explorer.takedown import Takedown
from data_pipeline.index_rows import PartRows

_BINS = 24
_VALUES = 30  # most frequent values of a category; the others are counted together
_REMEMBERED = 64
_LOGARITHMIC = ("short_side", "bytes", "text_length", "aspect_ratio")  # sizes: bins of equal ratio


class FacetEngine:
    """Counts facets over a library; thread-safe."""

    def __init__(self, library: Library, filters: FilterEngine, takedown: Takedown) -> None:
        self._library, self._filters, self._takedown = library, filters, takedown
        self._edges: dict[str, np.ndarray | None] = {}
        self._made: OrderedDict[Any, dict[str, Any]] = OrderedDict()
        self._lock = Lock()

    def facets(self, filters: Sequence[Filter]) -> dict[str, Any]:
        """`rows`, how many pass all filters, and `facets`, one for each column that has any value.

        Raises:
            ConfigError: a filter cannot be applied.
        """
        key = (self._takedown.refresh(), tuple(sorted(each.model_dump_json() for each in filters)))
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]
        masks = self._filters.masks(filters)
        filtered = {each.column for each in filters}
        facets = []
        for column, is_category in self._library.columns.items():
            own = masks
            if column in filtered:
                own = self._filters.masks([each for each in filters if each.column != column])
            facet = self._categories(column, own) if is_category else self._histogram(column, own)
            if facet is not None:
                facets.append(facet)
        made = {"rows": int(sum(mask.sum() for mask in masks)), "facets": facets}
        with self._lock:
            self._made[key] = made
            if len(self._made) > _REMEMBERED:
                self._made.popitem(last=False)
        return made

    def _columns(self, column: str, masks: Sequence[np.ndarray]) -> list[tuple[PartRows, np.ndarray]]:
        """The parts that have a column, each with the bool of its rows."""
        return [
            (part, mask[part.base : part.base + len(part)])
            for run, mask in zip(self._library.runs, masks, strict=True)
            for part in run.parts
            if column in part.numbers.columns
        ]

    def _categories(self, column: str, masks: Sequence[np.ndarray]) -> dict[str, Any] | None:
        counts: dict[str, int] = {}
        missing = others = distinct = 0
        for part, mask in self._columns(column, masks):
            codes, there = _values_and_presence(part, column)
            missing += int(np.count_nonzero(mask & ~there))
            values = part.values(column)
            distinct = max(distinct, len(values))
            found = np.bincount(codes[mask & there], minlength=len(values))
            # A part's rarest values are counted together: a list of all domains would not fit.
            top = np.argsort(-found, kind="stable")[: 20 * _VALUES]
            top = top[found[top] > 0]
            others += int(found.sum() - found[top].sum())
            for value, count in zip(values.take(pa.array(top)).to_pylist(), found[top].tolist(), strict=True):
                counts[value] = counts.get(value, 0) + count
        if distinct == 0:
            return None
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        others += sum(count for _, count in ranked[_VALUES:])
        shown = [{"value": value, "count": count} for value, count in ranked[:_VALUES]]
        return {"column": column, "kind": "categories", "values": shown, "others": others, "missing": missing}

    def _histogram(self, column: str, masks: Sequence[np.ndarray]) -> dict[str, Any] | None:
        edges = self._edges_of(column)
        if edges is None:
            return None
        counts, missing = np.zeros(len(edges) - 1, np.int64), 0
        for part, mask in self._columns(column, masks):
            values, there = _values_and_presence(part, column)
            missing += int(np.count_nonzero(mask & ~there))
            places = np.searchsorted(edges, values[mask & there], side="right") - 1
            counts += np.bincount(places.clip(0, len(counts) - 1), minlength=len(counts))
        return {
            "column": column,
            "kind": "histogram",
            "edges": [float(f"{edge:.6g}") for edge in edges],
            "counts": counts.tolist(),
            "missing": missing,
        }

    def _edges_of(self, column: str) -> np.ndarray | None:
        """Bins over all values, once; None when there is none."""
        if column not in self._edges:
            low, high = np.inf, -np.inf
            for run in self._library.runs:
                for part in run.parts:
                    if column in part.numbers.columns:
                        values = part.numbers[column]
                        if values.count():
                            low, high = min(low, float(values.min())), max(high, float(values.max()))  # pyright: ignore[reportArgumentType]
            self._edges[column] = _make_edges(low, high, column in _LOGARITHMIC)
        return self._edges[column]


def _make_edges(low: float, high: float, logarithmic: bool) -> np.ndarray | None:
    if not low <= high:
        return None
    if low == high:
        return np.array([low, np.nextafter(np.float32(high), np.float32(np.inf))], np.float64)
    if logarithmic and low > 0:
        return np.geomspace(low, high, _BINS + 1)
    return np.linspace(low, high, _BINS + 1)


def _values_and_presence(part: PartRows, column: str) -> tuple[np.ndarray, np.ndarray]:
    """A column's numbers or codes, and for each whether it is there; the numbers point into the mapped file."""
    series = part.numbers[column]
    if series.null_count() == 0:
        return series.to_numpy(), np.ones(len(series), bool)
    there = series.is_not_null().to_numpy()
    return series.fill_null(0).to_numpy(), there
