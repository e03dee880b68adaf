"""How sure a number is: an estimate with its interval, its chance level and what it was measured on.

The kinds of interval differ because the units do: independent samples (Wilson), samples that come in clusters
or enter a metric jointly (bootstrap), and repeated training subsets (spread over the seeds).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crawl2clip.wilson import wilson_interval
from evaluate.resampling import bootstrap, bootstrap_sums, resample_counts


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
    """Fraction of hits with its 95% Wilson score interval."""
    low, high = wilson_interval(hits, num)
    return Estimate(hits / num if num else math.nan, low, high, "wilson_95", num, chance)


def percentile_interval(
    value: float,
    resampled: NDArray[np.floating],
    *,
    num: int,
    chance: float | None = None,
    unit: str = "fraction",
) -> Estimate:
    """An estimate with the 2.5% and 97.5% quantiles of its resamples, widened to hold the value itself."""
    defined = resampled[~np.isnan(resampled)]
    if not len(defined):
        return Estimate(value, 0.0, 1.0, "bootstrap_95", num, chance, unit)
    low, high = (float(end) for end in np.quantile(defined, [0.025, 0.975]))
    return Estimate(value, min(low, value), max(high, value), "bootstrap_95", num, chance, unit)


def centred_interval(
    value: float, resampled: NDArray[np.floating], *, num: int, chance: float | None = None
) -> Estimate:
    """`percentile_interval` of resamples that are moved until their mean is the value, within 0 to 1.

    For metrics that a resample shifts by its nature. It repeats samples and misses others, so it looks worse
    calibrated than the sample it was drawn from, misses cells of the confusion matrix, and ranks copies of positives
    together; such a shift says nothing about the sample itself.
    """
    defined = resampled[~np.isnan(resampled)]
    moved = np.clip(defined - defined.mean() + value, 0.0, 1.0) if len(defined) else defined
    return percentile_interval(value, moved, num=num, chance=chance)


def bootstrap_ratio(
    hits: NDArray[np.floating],
    counts: NDArray[np.floating],
    *,
    num: int,
    chance: float | None = None,
    unit: str = "fraction",
) -> Estimate:
    """sum(hits) / sum(counts) with a 95% percentile bootstrap over clusters.

    Args:
        hits: [clusters] hits (or the sum of ranks) in each cluster, for example of the captions of one image.
        counts: [clusters] trials in each cluster.
        num: trials in all, as reported.
        chance: expected value of a random guess.
        unit: "fraction" or "rank".
    """
    if not len(hits):
        return Estimate(math.nan, 0.0, 1.0, "bootstrap_95", 0, chance, unit)
    sums = bootstrap_sums(np.column_stack([hits, counts]).astype(np.float64))
    value = float(hits.sum() / counts.sum())
    return percentile_interval(value, sums[:, 0] / sums[:, 1], num=num, chance=chance, unit=unit)


def bootstrap_median(
    values: NDArray[np.floating | np.integer],
    clusters: NDArray[np.integer],
    *,
    chance: float | None = None,
    unit: str = "fraction",
) -> Estimate:
    """The median (the mean of the two middle values of an even number) with a bootstrap over clusters.

    Args:
        values: [N] at least one.
        clusters: [N] which cluster each value belongs to; a cluster is drawn with all its values.
        chance: expected value of a random guess.
        unit: "fraction" or "rank".
    """
    order = np.argsort(values, kind="stable")
    ordered = np.asarray(values, np.float64)[order]
    _, cluster = np.unique(clusters, return_inverse=True)
    cluster = cluster[order]

    def median(counts: NDArray[np.int64]) -> float:
        upto = np.cumsum(counts[cluster])
        total = upto[-1]
        # The k-th of the repeated values, from 0, is the first one whose running count exceeds k.
        middle = np.searchsorted(upto, ((total - 1) // 2, total // 2), side="right")
        return float(ordered[middle].mean())

    units = np.ones(int(cluster.max()) + 1, np.int64)
    medians = [median(row) for counts in resample_counts(units) for row in counts]
    return percentile_interval(
        float(np.median(values)), np.asarray(medians), num=len(values), chance=chance, unit=unit
    )


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
    sizes = np.bincount(labels * 2 + correct, minlength=2 * num_classes).reshape(-1, 2)
    sizes = sizes[sizes.sum(axis=1) > 0]

    def mean_recall(counts: NDArray[np.int64]) -> NDArray[np.floating]:
        wrong, right = counts[:, 0::2], counts[:, 1::2]
        seen = wrong + right
        return (right / np.maximum(seen, 1)).sum(axis=1) / (seen > 0).sum(axis=1)

    flat = sizes.ravel()
    value = float(mean_recall(flat[None])[0])
    return percentile_interval(value, bootstrap(mean_recall, flat), num=num, chance=chance)


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
