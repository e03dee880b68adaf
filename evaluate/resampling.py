"""The bootstrap under every interval that is not Wilson's: draws with replacement, a thousand times over.

As many units are drawn as there are. What a metric sees of a draw is only how often each *cell* of equal units came
up, and those counts are multinomial: where cells are few they are drawn directly, which is the same distribution as
drawing indices and takes a fraction of the time. The seed is fixed, so the same hits give the same interval each
time and for any number of ranks.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

BOOTSTRAP_RESAMPLES = 1000
_BOOTSTRAP_CHUNK = 1 << 17  # counts in memory at a time: 1 MB, so that what is done with them stays in cache
_BOOTSTRAP_SEED = 0
_MULTINOMIAL_PAYS = 8  # units a cell from which drawing a count is cheaper than drawing indices; measured


def resample_counts(sizes: NDArray[np.integer]) -> Iterator[NDArray[np.int64]]:
    """How often each cell comes up when sum(sizes) units are drawn with replacement, 1,000 times over.

    Args:
        sizes: [cells] how many equal units each cell holds.

    Yields:
        [resamples of this chunk, cells] int64; each row sums to sum(sizes).
    """
    rng = np.random.default_rng(_BOOTSTRAP_SEED)
    total, cells = int(sizes.sum()), len(sizes)
    rows = max(1, _BOOTSTRAP_CHUNK // max(1, cells))
    merged = total >= _MULTINOMIAL_PAYS * cells
    cell_of_unit = None if total == cells and sizes.all() else np.repeat(np.arange(cells), sizes)
    for start in range(0, BOOTSTRAP_RESAMPLES, rows):
        size = min(rows, BOOTSTRAP_RESAMPLES - start)
        if merged:
            yield rng.multinomial(total, sizes / total, size)
            continue
        counts = np.empty((size, cells), np.int64)
        for row in range(size):
            picked = rng.integers(0, total, total)
            if cell_of_unit is not None:
                picked = cell_of_unit[picked]
            counts[row] = np.bincount(picked, minlength=cells)
        yield counts


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], NDArray[np.floating]], sizes: NDArray[np.integer]
) -> NDArray[np.floating]:
    """A statistic of the counts of cells, over the resamples.

    Args:
        statistic: from counts [rows, cells] to [rows, ...], one entry for each row.
        sizes: [cells] units in each cell; at least one unit in all.

    Returns:
        [1000, ...] what `statistic` gave, NaN where it is not defined on a resample.
    """
    return np.concatenate([statistic(counts) for counts in resample_counts(sizes)])


def bootstrap_sums(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    """Column sums over resampled clusters.

    Args:
        rows: [clusters, columns] what each cluster adds to each column.

    Returns:
        [1000, columns] float64.
    """
    distinct, sizes = np.unique(rows, axis=0, return_counts=True)
    return bootstrap(lambda counts: counts.astype(np.float64) @ distinct, sizes)
