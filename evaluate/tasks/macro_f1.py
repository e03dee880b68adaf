"""Macro F1: the mean over classes of the harmonic mean of precision and recall.

Classes without a sample are left out, whatever was predicted: that is scikit-learn's f1_score with
labels=unique(y_true), which WILDS and, through it, DataComp use for iWildCam. A class with samples that is never
predicted right counts as 0.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluate.intervals import Estimate, centred_interval
from evaluate.resampling import bootstrap


def macro_f1(labels: NDArray[np.integer], predicted: NDArray[np.integer]) -> Estimate:
    """Macro F1 with a 95% bootstrap over samples, its resamples laid around the value.

    Args:
        labels: [N] the true classes.
        predicted: [N] the predicted ones.
    """
    num = len(labels)
    if not num:
        return Estimate(math.nan, 0.0, 1.0, "bootstrap_95", 0)
    # A cell of the confusion matrix is all a sample is; few of the C x C cells occur.
    cells, sizes = np.unique(np.column_stack([labels, predicted]), axis=0, return_counts=True)
    classes, starts = np.unique(cells[:, 0], return_index=True)
    by_prediction = np.argsort(cells[:, 1], kind="stable")
    said, said_starts = np.unique(cells[by_prediction, 1], return_index=True)
    known = np.isin(said, classes)
    place = np.searchsorted(classes, said[known])
    right = cells[:, 0] == cells[:, 1]
    right_place = np.searchsorted(classes, cells[right, 0])

    def statistic(counts: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
        support = np.add.reduceat(counts, starts, axis=1)
        hits, claims = np.zeros_like(support), np.zeros_like(support)
        hits[:, right_place] = counts[:, right]
        claims[:, place] = np.add.reduceat(counts[:, by_prediction], said_starts, axis=1)[:, known]
        f1 = 2 * hits / np.maximum(support + claims, 1)
        return (f1 * (support > 0)).sum(axis=1) / (support > 0).sum(axis=1)

    value = float(statistic(sizes[None])[0])
    return centred_interval(value, bootstrap(statistic, sizes), num=num)
