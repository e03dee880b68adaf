"""Balancing: rows of frequent entries are thinned out until each entry keeps about as many as the limit.

MetaCLIP's second step (Xu et al. 2023, "Demystifying CLIP Data", arXiv 2309.16671, algorithm 1): an entry that is in
`count` of all rows keeps each of them with the chance min(1, limit / count), and a row stays when at least one of its
entries keeps it. So rare concepts stay whole, and a row with a frequent and a rare entry stays for the rare one. The
paper draws while it walks over the rows; here a draw is a hash of uid, entry and seed, so that it is the same whatever
the shards, the order and the machine.
"""

from collections.abc import Iterable

import numpy as np
import polars as pl

from crawl2clip.errors import DataError
from data_pipeline.rules import BalanceRule
from data_pipeline.subset import order_keys, split_mix, stream_seed, uid_halves, unit_interval

MAX_ENTRIES = 1 << 27  # a counter of 8 bytes each; MetaCLIP has half a million


def count_entries(rule: BalanceRule, survivors: Iterable[pl.DataFrame]) -> np.ndarray:
    """int64 [highest entry + 1]: how many of all rows have each entry. An entry counts once a row.

    Raises:
        DataError: an entry is negative or too large to be a number of a list of entries.
    """
    counts = np.zeros(0, np.int64)
    for frame in survivors:
        _, entries = _entries_of(frame[rule.entries])
        if not len(entries):
            continue
        if entries.min() < 0 or entries.max() >= MAX_ENTRIES:
            raise DataError(
                f"the column {rule.entries!r} holds the entry {entries.min() if entries.min() < 0 else entries.max()}; "
                f"entries are numbers of lines of the metadata, from 0 to below {MAX_ENTRIES:,}: run the tagger again"
            )
        found = np.bincount(entries, minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    return counts


def kept_by_balance(rule: BalanceRule, counts: np.ndarray) -> pl.Expr:
    """Whether a row stays; null where it has no list. A row with an empty list does not stay."""

    def decide(columns: pl.Series) -> pl.Series:
        table = columns.struct.unnest()
        stays = balanced(rule, counts, table["uid"], table[rule.entries])
        return pl.select(
            pl.when(table[rule.entries].is_null()).then(None).otherwise(pl.Series(stays, dtype=pl.Boolean))
        ).to_series()

    return pl.struct("uid", rule.entries).map_batches(decide, return_dtype=pl.Boolean)


def balanced(rule: BalanceRule, counts: np.ndarray, uids: pl.Series, lists: pl.Series) -> np.ndarray:
    """[N] bool: whether each row stays."""
    rows, entries = _entries_of(lists)
    keys = order_keys(uid_halves(uids), stream_seed(rule.seed, "balance"))
    draws = unit_interval(split_mix(keys[rows] ^ split_mix(entries.astype(np.uint64))))
    stays = np.zeros(len(uids), bool)
    stays[rows[draws * counts[entries] < rule.max_per_entry]] = True
    return stays


def _entries_of(lists: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """(row number, entry) of every entry of every row, each once a row; null lists and null entries have none."""
    table = pl.DataFrame({"row": np.arange(len(lists)), "entry": lists.list.unique()}).explode("entry")
    table = table.drop_nulls()
    return table["row"].to_numpy(), table["entry"].cast(pl.Int64).to_numpy()
