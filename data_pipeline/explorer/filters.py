"""Filters over the mapped columns: which rows pass, as bits, evaluated part by part by Polars and remembered.

Values come from requests and are only ever compared, never put into an expression as text, so there is no injection.
What is withheld or taken down passes no filter.
"""

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

import numpy as np
import polars as pl
import pyarrow.compute as pc

from crawl2clip.errors import ConfigError, unknown_name
from data_pipeline.explorer.library import Library
from data_pipeline.explorer.requests import Filter
from data_pipeline.explorer.safety import SafetyPolicy
from data_pipeline.explorer.takedown import Takedown
from data_pipeline.index_rows import PartRows
from data_pipeline.index_search import Allowed

_REMEMBERED_BYTES = 64_000_000  # of filters' bits, together
TEXT = "text"
"""The one column that is filtered by what it contains."""


class FilterEngine:
    """Evaluates filters over a library; thread-safe."""

    def __init__(self, library: Library, policy: SafetyPolicy, takedown: Takedown) -> None:
        self._library, self._policy, self._takedown = library, policy, takedown
        self._columns = library.columns
        self._bits: OrderedDict[str, list[np.ndarray]] = OrderedDict()  # of one filter, an array a run
        self._size = 0
        self._lock = Lock()

    def check(self, filters: Sequence[Filter]) -> None:
        """Raises ConfigError for a filter that cannot be applied."""
        for each in filters:
            if each.column == TEXT:
                if each.contains is None or (each.min, each.max, each.any_of, each.none_of) != (None,) * 4:
                    raise ConfigError(
                        "the filter on text asks for something else; text takes `contains` alone"
                    )
                continue
            if each.column not in self._columns:
                raise ConfigError(unknown_name("column", each.column, [*self._columns, TEXT]))
            if each.contains is not None:
                raise ConfigError(
                    f"the filter on {each.column!r} has `contains`, which only text takes; give any_of or a range"
                )
            given = [name for name in ("any_of", "none_of") if getattr(each, name) is not None]
            given += ["a range"] if (each.min, each.max) != (None, None) else []
            if len(given) != 1:
                raise ConfigError(
                    f"the filter on {each.column!r} has {' and '.join(given) or 'no condition'}; give one of any_of, "
                    "none_of, or a range (min, max or both)"
                )
            only_missing = [None] in (each.any_of, each.none_of)
            if self._columns[each.column] == (given == ["a range"]) and not only_missing:
                has, takes = (
                    ("categories", "any_of or none_of")
                    if given == ["a range"]
                    else ("numbers", "min and max")
                )
                raise ConfigError(
                    f"the column {each.column!r} has {has}, not {given[0]}; filter it with {takes}"
                )

    def masks(self, filters: Sequence[Filter]) -> list[np.ndarray]:
        """For each run, a bool for each row number: whether it is a row that passes all filters and may be shown.

        Raises:
            ConfigError: a filter cannot be applied.
        """
        self.check(filters)
        masks = self._unpacked("", None)
        for each in filters:
            for mask, more in zip(masks, self._unpacked(each.model_dump_json(), each), strict=True):
                mask &= more
        for row in self._taken_down():
            run = next(run for run in reversed(self._library.runs) if row >= run.base)
            masks[self._library.runs.index(run)][row - run.base] = False
        return masks

    def allowed(self, filters: Sequence[Filter]) -> list[Allowed]:
        """The rows that pass, for the vector search."""
        return [Allowed.of(mask) for mask in self.masks(filters)]

    def _taken_down(self) -> np.ndarray:
        self._takedown.refresh()
        return self._takedown.rows

    def _unpacked(self, key: str, condition: Filter | None) -> list[np.ndarray]:
        bits = self._remembered(key, condition)
        return [
            np.unpackbits(each, bitorder="little", count=run.size).view(bool)
            for each, run in zip(bits, self._library.runs, strict=True)
        ]

    def _remembered(self, key: str, condition: Filter | None) -> list[np.ndarray]:
        """A filter's bits; None: the rows that there are and that the policy lets be found."""
        with self._lock:
            if key in self._bits:
                self._bits.move_to_end(key)
                return self._bits[key]
        made = []
        for run in self._library.runs:
            mask = np.zeros(run.size, bool)
            for part in run.parts:
                passed = self._findable(part) if condition is None else _evaluate(part, condition)
                mask[part.base : part.base + len(part)] = passed
            made.append(np.packbits(mask, bitorder="little"))
        with self._lock:
            if key not in self._bits:
                self._size += sum(each.nbytes for each in made)
                self._bits[key] = made
            # The first entry, what may be found at all, is used by every request and stays.
            while self._size > _REMEMBERED_BYTES and len(self._bits) > 2:
                oldest = next(name for name in self._bits if name)
                self._size -= sum(each.nbytes for each in self._bits.pop(oldest))
        return made

    def _findable(self, part: PartRows) -> np.ndarray:
        if not self._policy.withholds:
            return np.ones(len(part), bool)
        return self._policy.findable(part).to_numpy()


def _evaluate(part: PartRows, condition: Filter) -> np.ndarray:
    """Bool for each row of a part."""
    if condition.column == TEXT:
        assert condition.contains is not None
        found = pc.match_substring(part.column("text"), condition.contains, ignore_case=True)  # pyright: ignore[reportAttributeAccessIssue]
        return np.asarray(found.fill_null(False).to_numpy(zero_copy_only=False), bool)
    asked = condition.any_of if condition.any_of is not None else condition.none_of
    if condition.column not in part.numbers.columns:  # another run has it: missing here
        passes = asked is not None and (None in asked) == (condition.any_of is not None)
        return np.full(len(part), passes)
    column = pl.col(condition.column)
    if asked is None:
        passes = pl.lit(True)
        if condition.min is not None:
            passes = passes & (column >= condition.min)
        if condition.max is not None:
            passes = passes & (column <= condition.max)
    else:
        passes = column.is_in(_codes(part, condition.column, asked)).fill_null(None in asked)
        if condition.any_of is None:
            passes = ~passes
    return part.numbers.select(passes.fill_null(False)).to_series().to_numpy()


def _codes(part: PartRows, column: str, asked: Sequence[str | None]) -> list[int]:
    """The codes of values in a part; a value that it does not have has none."""
    if not part.is_category(column):
        return []
    values = part.values(column)
    found = [pc.index(values, value).as_py() for value in asked if value is not None]  # pyright: ignore[reportAttributeAccessIssue]
    return [code for code in found if code >= 0]
