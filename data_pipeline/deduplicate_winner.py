"""Which row of each key stays: the earliest page's, and always the same one.

Only keys are sorted. Where a key has several rows they are compared column by column, as arrays of numbers with the
order of the values, and only as long as they are equal: nearly all are told apart by their page dates.
"""

import numpy as np
import pyarrow as pa

from crawl2clip.schema import CANDIDATE_SCHEMA
from data_pipeline.deduplicate_rows import one_array

WINNER_ORDER = ("page_date", "crawl_file", "offset", "text_source", "page_url")
"""Of rows with one key the least by these columns stays, nulls last; then by the other columns, so that it is always
the same row, whatever order the rows came in."""

_LAST = np.iinfo(np.int64).max
_DATE_DIGITS = [0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18]  # of YYYY-MM-DDTHH:MM:SSZ
_DATE_FORM = np.frombuffer(b"0000-00-00T00:00:00Z", np.uint8)


def first_of_each(table: pa.Table, high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Indices of the rows to keep, one for each key, in the order of the keys.

    Args:
        table: rows with the columns of `ROW_SCHEMA` that are not in the key, each in one piece.
        high: [N] uint64 of their keys.
        low: [N] uint64.
    """
    order = np.argsort(high)
    sorted_high = high[order]
    alike = sorted_high[1:] == sorted_high[:-1]
    if not alike.any():
        return order
    sorted_low = low[order]
    if (alike & (sorted_low[1:] != sorted_low[:-1])).any():  # two keys with one high half, or out of order
        order = np.lexsort((low, high))
        sorted_high, sorted_low = high[order], low[order]
        alike = (sorted_high[1:] == sorted_high[:-1]) & (sorted_low[1:] == sorted_low[:-1])
    starts = np.flatnonzero(np.concatenate([[True], ~alike]))
    kept = order[starts]
    sizes = np.diff(np.append(starts, len(order)))
    many = np.flatnonzero(sizes > 1)
    within = np.repeat(sizes > 1, sizes)
    kept[many] = _least(table, order[within], sizes[many])
    return kept


def _least(table: pa.Table, rows: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The least row of each group by `WINNER_ORDER` and then the other columns.

    Column by column, only the rows that are still equal are looked at: most groups end at the page date.

    Args:
        table: the table.
        rows: indices into it, group after group.
        sizes: rows of each group.
    """
    least = np.empty(len(sizes), np.int64)
    open_groups = np.arange(len(sizes))
    others = [name for name in CANDIDATE_SCHEMA.names if name not in WINNER_ORDER]
    for name in (*WINNER_ORDER, *others):
        if name not in table.column_names:  # a uid that is the key
            continue
        codes = _in_order(table.column(name).take(pa.array(rows)))
        starts = np.cumsum(sizes) - sizes
        smallest = codes == np.repeat(np.minimum.reduceat(codes, starts), sizes)
        rows, sizes = rows[smallest], np.add.reduceat(smallest, starts, dtype=np.int64)
        single = sizes == 1
        done = np.repeat(single, sizes)
        least[open_groups[single]] = rows[done]
        rows, sizes, open_groups = rows[~done], sizes[~single], open_groups[~single]
        if not len(rows):
            return least
    least[open_groups] = rows[np.cumsum(sizes) - sizes]  # equal in every column
    return least


def _in_order(column: pa.ChunkedArray) -> np.ndarray:
    """[N] int64 that are ordered, and equal, as the column's values are; nulls last."""
    if pa.types.is_dictionary(column.type):
        whole = one_array(column.unify_dictionaries().combine_chunks())
        values = whole.dictionary.to_pylist()
        places = np.empty(len(values) + 1, np.int64)
        places[sorted(range(len(values)), key=values.__getitem__)] = np.arange(len(values))
        places[len(values)] = _LAST
        return places[whole.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)]
    if pa.types.is_integer(column.type):
        return column.cast(pa.int64()).fill_null(_LAST).to_numpy()
    dates = _date_numbers(column)
    if dates is not None:
        return dates
    import pyarrow.compute as pc  # a twentieth of a second, for those who sort

    ranks = pc.call_function(
        "rank", [column], pc.RankOptions("ascending", tiebreaker="dense")
    )  # nulls at the end
    return ranks.to_numpy().astype(np.int64)


def _date_numbers(column: pa.ChunkedArray) -> np.ndarray | None:
    """Dates of the form YYYY-MM-DDTHH:MM:SSZ as the number of their digits; None when any value has another form."""
    filled = column.fill_null(_DATE_FORM.tobytes().decode())
    whole = one_array(filled.combine_chunks()).cast(pa.large_string())
    _, offset_buffer, data = whole.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[whole.offset : whole.offset + len(whole) + 1]
    if (np.diff(offsets) != 20).any():
        return None
    text = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]].reshape(-1, 20)
    numbers = np.zeros(len(whole), np.int64)
    for place in range(20):
        values = text[:, place]
        if place in _DATE_DIGITS:
            digits = values - np.uint8(48)
            if (digits > 9).any():
                return None
            numbers = numbers * 10 + digits
        elif (values != _DATE_FORM[place]).any():
            return None
    numbers[column.is_null().to_numpy()] = _LAST
    return numbers
