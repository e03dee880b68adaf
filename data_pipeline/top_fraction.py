"""The top fraction of all rows by a score: exact over any number of shards, in memory that does not grow with them.

Rows are ordered by score, the highest first, and equal scores by uid; what is looked for is the row in which the
fraction ends. A row's place in that order is one number of 192 bits (64 of the score, 128 of the uid), and the number
of the last kept row is found from its first digits on: a pass over the rows counts them by the next 16 bits, which
leaves one digit's rows in play, and as soon as those fit in memory the next pass takes them all. Scores that differ
take two passes; a million rows of one score take three or four. What comes out is one `Cut` a group, which any row
can be held against on its own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import polars as pl

from crawl2clip.errors import DataError
from data_pipeline.rules import TopFractionRule
from data_pipeline.subset import uid_halves

DIGIT_BITS = 16
ROWS_IN_MEMORY = 2_000_000  # of all groups, 24 bytes each, when the last rows are sorted
MAX_GROUPS = 2_000  # half a megabyte of counters each


@dataclass(frozen=True)
class Cut:
    """Where a top fraction ends in one group: rows above `score` are kept, equal ones up to `last_uid`."""

    rows: int  # in the group, with a score
    kept: int
    score: float  # the lowest that is kept
    last_uid: str  # the last kept uid among rows with exactly that score


Cuts = dict[str | None, Cut]  # by the group's name; the one group without `by` is None


@dataclass
class _Search:
    """What is known of the last kept row of one group."""

    prefix: list[int] = field(default_factory=list)  # its first digits
    before: int = 0  # rows that come before every row with this prefix
    rows: int = 0  # in the group
    in_play: int = 0  # rows with this prefix
    counts: np.ndarray = field(default_factory=lambda: np.zeros(1 << DIGIT_BITS, np.int64))
    places: list[np.ndarray] = field(default_factory=list)  # [N, 3] of the rows in play, once they are few

    def matching(self, places: np.ndarray) -> np.ndarray:
        """The rows of [N, 3] that start with the prefix."""
        for level, digit in enumerate(self.prefix):
            places = places[_digit(places, level) == digit]
        return places


def num_kept(fraction: float, rows: int) -> int:
    """How many of `rows` the top fraction keeps: the smallest whole number that is at least the fraction of them."""
    exact = Fraction(str(fraction)) * rows  # of the decimal that was written: 0.7 of 10 is 7, not 8
    return -(-exact.numerator // exact.denominator)


def find_cuts(rule: TopFractionRule, survivors: Callable[[], Iterator[pl.DataFrame]]) -> Cuts:
    """Where each group's top fraction ends.

    Args:
        rule: the fraction, the score and the groups.
        survivors: goes through the rows once more each time it is called: frames with uid and the rule's columns,
            none of them null.

    Raises:
        DataError: `by` has more than MAX_GROUPS values.
    """
    searches: dict[str | None, _Search] = {}
    kind: np.dtype[Any] = np.dtype(np.float64)
    for frame in survivors():
        for group, rows in _groups(frame, rule):
            search = searches.setdefault(group, _Search())
            _check_groups(rule, searches)
            scores = rows[rule.of].to_numpy()
            kind = scores.dtype
            search.rows += len(scores)
            search.counts += _count(_descending(scores) >> np.uint64(64 - DIGIT_BITS))
    for search in searches.values():
        search.in_play = search.rows
        _go_down(search, num_kept(rule.fraction, search.rows))
    while sum(search.in_play for search in searches.values()) > ROWS_IN_MEMORY and _not_at_the_end(searches):
        for search, places in _in_play(rule, searches, survivors):
            search.counts += _count(_digit(places, len(search.prefix)))
        for search in searches.values():
            _go_down(search, num_kept(rule.fraction, search.rows))
    for search, places in _in_play(rule, searches, survivors):
        search.places.append(places)
    return {
        group: _cut(search, num_kept(rule.fraction, search.rows), kind)
        for group, search in sorted(searches.items(), key=lambda item: str(item[0]))
    }


def _in_play(
    rule: TopFractionRule,
    searches: dict[str | None, _Search],
    survivors: Callable[[], Iterator[pl.DataFrame]],
) -> Iterator[tuple[_Search, np.ndarray]]:
    """(a group's search, [N, 3] places of its rows in play), frame by frame."""
    for frame in survivors():
        for group, rows in _groups(frame, rule):
            search = searches[group]
            ranks = _descending(rows[rule.of].to_numpy())
            near = np.flatnonzero(ranks >> np.uint64(64 - DIGIT_BITS) == np.uint64(search.prefix[0]))
            if len(near):
                halves = uid_halves(rows["uid"][near])
                yield search, search.matching(np.column_stack([ranks[near], halves]))


def _go_down(search: _Search, keep: int) -> None:
    """Takes the next digit of the last kept row from the counts of the rows in play."""
    upto = np.cumsum(search.counts)
    digit = int(np.searchsorted(upto, keep - search.before))
    search.before += int(upto[digit] - search.counts[digit])
    search.in_play = int(search.counts[digit])
    search.prefix.append(digit)
    search.counts = np.zeros(1 << DIGIT_BITS, np.int64)


def _not_at_the_end(searches: dict[str | None, _Search]) -> bool:
    return any(len(search.prefix) * DIGIT_BITS < 192 for search in searches.values())


def _cut(search: _Search, keep: int, kind: np.dtype[Any]) -> Cut:
    places = np.concatenate(search.places)
    order = np.lexsort((places[:, 2], places[:, 1], places[:, 0]))
    rank, high, low = places[order[keep - search.before - 1]]
    return Cut(search.rows, keep, _score(rank, kind), f"{int(high):016x}{int(low):016x}")


def _digit(places: np.ndarray, level: int) -> np.ndarray:
    word, place = divmod(level * DIGIT_BITS, 64)
    shift = np.uint64(64 - DIGIT_BITS - place)
    return (places[:, word] >> shift) & np.uint64((1 << DIGIT_BITS) - 1)


def _count(digits: np.ndarray) -> np.ndarray:
    return np.bincount(digits.astype(np.int64), minlength=1 << DIGIT_BITS)


def _check_groups(rule: TopFractionRule, searches: dict[str | None, _Search]) -> None:
    if len(searches) > MAX_GROUPS:
        raise DataError(
            f"rule {rule.reason!r} takes a fraction of each value of {rule.by!r}, which has more than {MAX_GROUPS:,} "
            "values; rank by a column with fewer, such as language or language_bucket"
        )


_SIGN = np.uint64(1 << 63)


def _descending(scores: np.ndarray) -> np.ndarray:
    """[N] uint64 that is the smaller the higher the score; the same order for every kind of number."""
    if scores.dtype.kind == "f":
        # The sum makes -0.0 the same as 0.0. Of float32 the first 16 bits tell more scores apart than of float64.
        if scores.dtype.itemsize <= 4:
            bits = (scores.astype(np.float32) + np.float32(0)).view(np.uint32).astype(np.uint64) << np.uint64(
                32
            )
        else:
            bits = (scores + 0.0).view(np.uint64)
        ascending = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    elif scores.dtype.kind == "i":
        ascending = scores.astype(np.int64).view(np.uint64) ^ _SIGN
    else:
        ascending = scores.astype(np.uint64)
    return ~ascending


def _score(rank: np.uint64, kind: np.dtype[Any]) -> Any:
    """The score of a rank: the inverse of `_descending`."""
    ascending = np.array([~rank], np.uint64)
    if kind.kind == "f":
        bits = np.where(ascending & _SIGN, ascending & ~_SIGN, ~ascending)
        if kind.itemsize <= 4:
            return (bits >> np.uint64(32)).astype(np.uint32).view(np.float32)[0].item()
        return bits.view(np.float64)[0].item()
    return (ascending ^ _SIGN).view(np.int64)[0].item() if kind.kind == "i" else ascending[0].item()


def above_cut(rule: TopFractionRule, cuts: Cuts) -> pl.Expr:
    """Whether a row is in the top fraction; null where it has no score or no group."""
    keep = pl.lit(None, pl.Boolean)
    for group, cut in cuts.items():
        score = pl.col(rule.of)
        above = (score > cut.score) | ((score == cut.score) & (pl.col("uid") <= cut.last_uid))
        member = pl.lit(True) if rule.by is None else pl.col(rule.by).cast(pl.String) == group
        keep = pl.when(member).then(above).otherwise(keep)
    return keep


def _groups(frame: pl.DataFrame, rule: TopFractionRule) -> Iterator[tuple[str | None, pl.DataFrame]]:
    """(group, its rows); one group None without `by`."""
    if rule.by is None:
        if len(frame):
            yield None, frame
        return
    for (group,), rows in frame.group_by(pl.col(rule.by).cast(pl.String).alias("group"), maintain_order=True):
        yield str(group), rows
