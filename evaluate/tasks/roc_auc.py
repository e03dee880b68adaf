"""Area under the ROC curve: the chance that a positive scores above a negative, ties counting half (Mann-Whitney)."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluate.intervals import Estimate, percentile_interval
from evaluate.resampling import bootstrap


def roc_auc(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> Estimate:
    """ROC AUC with a 95% percentile bootstrap over samples; it does not depend on the order of the samples.

    Args:
        scores: [N] higher for what looks positive.
        positive: [N] bool.

    Returns:
        the estimate; its value is NaN where there is no positive or no negative.
    """
    num = len(scores)
    if not positive.any() or positive.all():
        return Estimate(math.nan, 0.0, 1.0, "bootstrap_95", num, 0.5)
    # Cells of equal score and side, by rising score, at each score the negatives (even numbers) first.
    _, level = np.unique(scores, return_inverse=True)
    sizes = np.bincount(2 * level + positive)
    cells = np.flatnonzero(sizes)
    negative = cells % 2 == 0
    positives = np.flatnonzero(~negative)
    tied = positives[(positives > 0) & (cells[positives - 1] == cells[positives] - 1)]

    def statistic(counts: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
        below = (counts * negative).cumsum(axis=1)
        drawn = counts[:, positives]
        # Twice the pairs won, so that the half for a tie stays a whole number.
        won = 2 * (drawn * below[:, positives]).sum(axis=1) - (counts[:, tied] * counts[:, tied - 1]).sum(
            axis=1
        )
        pairs = 2 * below[:, -1] * drawn.sum(axis=1)
        return np.where(pairs > 0, won / np.maximum(pairs, 1), np.nan)

    value = float(statistic(sizes[cells][None])[0])
    return percentile_interval(value, bootstrap(statistic, sizes[cells]), num=num, chance=0.5)
