"""Calibration: how far the confidence of a prediction is from how often it is right (Guo et al. 2017).

Expected calibration error, equation 3: predictions are sorted by their confidence into 15 bins of equal width
(the paper's M), open below and closed above, and the distances |accuracy - mean confidence| of the bins are
averaged with the bins' sizes as weights. The confidence is the softmax probability of the predicted class at the
model's own logit scale.

With few samples a bin is off by chance alone, so the number is too high on small sets, and a bootstrap would add
the same again. The interval is therefore the spread of the resamples laid around the value; that bias is left in
both.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluate.intervals import Estimate, centred_interval
from evaluate.resampling import bootstrap

NUM_BINS = 15
SOURCE = "ECE, Guo et al. 2017, equation 3: 15 bins of equal width over the top-1 confidence"


def bin_of(confidence: NDArray[np.floating]) -> NDArray[np.int64]:
    """Which bin (b / 15, (b + 1) / 15] each confidence falls in; 0 falls in the first.

    Args:
        confidence: [N] from 0 to 1.
    """
    edges = np.linspace(0.0, 1.0, NUM_BINS + 1)
    return np.clip(
        np.searchsorted(edges, np.asarray(confidence, np.float64), side="left") - 1, 0, NUM_BINS - 1
    )


def expected_calibration_error(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_]
) -> tuple[Estimate, list[dict[str, float]]]:
    """The error and the bins behind it, from which a reliability diagram is drawn.

    Args:
        confidence: [N] softmax probability of the predicted class, at least one.
        correct: [N] bool, whether that class is the true one.

    Returns:
        the estimate (0 is best), and for each bin that holds a sample its "above", "upto", "num", "accuracy" and
        mean "confidence".
    """
    confidence = np.asarray(confidence, np.float64)
    order = np.argsort(bin_of(confidence), kind="stable")
    bins, starts, sizes = np.unique(bin_of(confidence)[order], return_index=True, return_counts=True)
    gap = (np.asarray(correct, np.float64) - confidence)[order]
    num = len(gap)

    def statistic(counts: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
        return np.abs(np.add.reduceat(counts * gap, starts, axis=1)).sum(axis=1) / num

    units = np.ones(num, np.int64)
    value = float(statistic(units[None])[0])
    hits = np.add.reduceat(np.asarray(correct, np.float64)[order], starts)
    sums = np.add.reduceat(confidence[order], starts)
    table = [
        {
            "above": float(b / NUM_BINS),
            "upto": float((b + 1) / NUM_BINS),
            "num": int(size),
            "accuracy": float(hit / size),
            "confidence": float(total / size),
        }
        for b, size, hit, total in zip(bins, sizes, hits, sums, strict=True)
    ]
    return centred_interval(value, bootstrap(statistic, units), num=num), table
