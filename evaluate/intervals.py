"""How sure a number is: an estimate with its interval, its chance level and what it was measured on.

Three kinds of interval, because the units differ: independent samples (Wilson), samples that come in
clusters (bootstrap over the clusters), and repeated training subsets (spread over the seeds).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Z_95 = 1.959963984540054
BOOTSTRAP_RESAMPLES = 1000
_BOOTSTRAP_SEED = 0  # fixed: the same hits give the same interval
_BOOTSTRAP_CHUNK = 4_000_000  # resampled indices in memory at a time


@dataclass(frozen=True)
class Estimate:
    """One measured number with its interval; fractions run from 0 to 1."""

    value: float
    low: float  # lower end of the interval
    high: float  # upper end of the interval
    interval: str  # "wilson_95", "bootstrap_95", "seed_spread" (one standard deviation) or "combined_95"
    num: int  # what was averaged: samples, queries, seeds or data sets
    chance: float | None = None  # expected value of a random guess; None where it has no meaning
    unit: str = "fraction"  # "fraction" is shown in percent; "rank" counts from 1 and is shown as it is


def wilson(hits: int, num: int, chance: float | None = None) -> Estimate:
    """Fraction of hits with its 95% Wilson score interval (Wilson 1927).

    It stays inside 0 to 1 and has a sensible width at 0 and `num` hits, where the textbook interval has none.
    """
    if num == 0:
        return Estimate(math.nan, 0.0, 1.0, "wilson_95", 0, chance)
    value = hits / num
    z2 = Z_95**2
    centre = (value + z2 / (2 * num)) / (1 + z2 / num)
    half = Z_95 / (1 + z2 / num) * math.sqrt(value * (1 - value) / num + z2 / (4 * num**2))
    # At 0 and num hits the ends are exactly 0 and 1; rounding would leave them a hair outside the value.
    low, high = min(value, max(0.0, centre - half)), max(value, min(1.0, centre + half))
    return Estimate(value, low, high, "wilson_95", num, chance)


def bootstrap_ratio(
    hits: NDArray[np.floating], counts: NDArray[np.floating], *, num: int, chance: float | None = None
) -> Estimate:
    """sum(hits) / sum(counts) with a 95% percentile bootstrap over clusters.

    Args:
        hits: [clusters] hits in each cluster, for example the captions of one image that found it.
        counts: [clusters] trials in each cluster.
        num: trials in all, as reported.
        chance: expected value of a random guess.
    """
    clusters = len(hits)
    if clusters == 0:
        return Estimate(math.nan, 0.0, 1.0, "bootstrap_95", 0, chance)
    rng = np.random.default_rng(_BOOTSTRAP_SEED)
    rows = max(1, _BOOTSTRAP_CHUNK // clusters)
    ratios = []
    for start in range(0, BOOTSTRAP_RESAMPLES, rows):
        size = min(rows, BOOTSTRAP_RESAMPLES - start)
        picked = rng.integers(0, clusters, (size, clusters))
        ratios.append(hits[picked].sum(axis=1) / counts[picked].sum(axis=1))
    low, high = np.quantile(np.concatenate(ratios), [0.025, 0.975])
    value = float(hits.sum() / counts.sum())
    return Estimate(value, min(float(low), value), max(float(high), value), "bootstrap_95", num, chance)


def bootstrap_mean_per_class(
    correct: NDArray[np.bool_], labels: NDArray[np.integer], num_classes: int, *, chance: float | None = None
) -> Estimate:
    """Mean over classes of the fraction correct, with a 95% percentile bootstrap over samples.

    Classes without a sample are left out, as in scikit-learn's balanced accuracy; so are classes that a
    resample happens to miss.
    """
    num = len(labels)
    if num == 0:
        return Estimate(math.nan, 0.0, 1.0, "bootstrap_95", 0, chance)

    def mean_recall(picked_correct: NDArray[np.bool_], picked_labels: NDArray[np.integer]) -> float:
        counts = np.bincount(picked_labels, minlength=num_classes)
        hits = np.bincount(picked_labels, weights=picked_correct, minlength=num_classes)
        return float((hits[counts > 0] / counts[counts > 0]).mean())

    rng = np.random.default_rng(_BOOTSTRAP_SEED)
    values = []
    for _ in range(BOOTSTRAP_RESAMPLES):
        picked = rng.integers(0, num, num)
        values.append(mean_recall(correct[picked], labels[picked]))
    low, high = np.quantile(values, [0.025, 0.975])
    value = mean_recall(correct, labels)
    return Estimate(value, min(float(low), value), max(float(high), value), "bootstrap_95", num, chance)


def seed_spread(values: Sequence[float], chance: float | None = None) -> Estimate:
    """Mean over seeds; the interval is one sample standard deviation to each side.

    It says how much the choice of training samples moves the number, not how large the test set is.
    """
    mean = float(np.mean(values))
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return Estimate(mean, mean - spread, mean + spread, "seed_spread", len(values), chance)


def combined_mean(estimates: Sequence[Estimate]) -> Estimate:
    """Plain mean of independent estimates; half-widths add as variances do."""
    num = len(estimates)
    value = sum(e.value for e in estimates) / num
    half = math.sqrt(sum(((e.high - e.low) / 2) ** 2 for e in estimates)) / num
    chances = [e.chance for e in estimates if e.chance is not None]
    chance = sum(chances) / num if len(chances) == num else None
    return Estimate(value, max(0.0, value - half), min(1.0, value + half), "combined_95", num, chance)
