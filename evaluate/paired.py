"""Two models on the same samples: is the gap between them more than luck?

Both were shown the same images, so their scores rise and fall together and their own intervals, side by side, hide
real differences. A paired test looks at the samples on which they differ.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crawl2clip.errors import DataError
from evaluate.resampling import BOOTSTRAP_RESAMPLES, bootstrap, bootstrap_sums


@dataclass(frozen=True)
class PairedTest:
    """Two models on the same samples: how far apart, and how likely such a gap is without a difference."""

    difference: float  # b minus a, in the unit of the values
    low: float  # 95% interval of the difference, bootstrap over samples or clusters
    high: float
    p_value: float  # two-sided
    num: int  # samples that both were scored on
    method: str  # "mcnemar_exact" or "paired_bootstrap"


def mcnemar_exact(correct_a: NDArray[np.bool_], correct_b: NDArray[np.bool_]) -> PairedTest:
    """McNemar's exact test of two accuracies on the same samples (McNemar 1947, with the binomial tail).

    Only samples that one model gets right and the other wrong say anything; without a difference each of those is
    a fair coin.

    Args:
        correct_a: [N] bool, whether model a is right; correct_b: the same samples in the same order.

    Raises:
        DataError: no samples, or not as many of one as of the other.
    """
    _check_paired(len(correct_a), len(correct_b))
    a, b = np.asarray(correct_a, bool), np.asarray(correct_b, bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    num = len(a)
    sizes = np.array([only_a, num - only_a - only_b, only_b])
    low, high = np.quantile(
        bootstrap(lambda counts: (counts[:, 2] - counts[:, 0]) / num, sizes), [0.025, 0.975]
    )
    return PairedTest(
        difference=(only_b - only_a) / num,
        low=float(low),
        high=float(high),
        p_value=_two_sided_coin(min(only_a, only_b), only_a + only_b),
        num=num,
        method="mcnemar_exact",
    )


def _two_sided_coin(fewer: int, tosses: int) -> float:
    """Chance that a fair coin comes up at most `fewer` times on one of its sides in so many tosses."""
    if 2 * fewer >= tosses:
        return 1.0
    # In logarithms: 2^-tosses underflows from about a thousand discordant samples on.
    log_all = math.lgamma(tosses + 1) - tosses * math.log(2.0)
    terms = (math.exp(log_all - math.lgamma(k + 1) - math.lgamma(tosses - k + 1)) for k in range(fewer + 1))
    return min(1.0, 2.0 * math.fsum(terms))


def paired_bootstrap(
    values_a: NDArray[np.floating],
    values_b: NDArray[np.floating],
    clusters: NDArray[np.integer] | None = None,
) -> PairedTest:
    """Difference of two means over the same samples, both models resampled together (Efron & Tibshirani 1993, ch. 16).

    Args:
        values_a: [N] what model a got on each sample: hits as 0 and 1, ranks, Jaccard indices ...
        values_b: the same samples in the same order.
        clusters: [N] what is drawn together, for example the image of each caption; None draws samples.

    Returns:
        the difference b minus a; its p-value is twice the smaller share of resamples on one side of zero, and no
        less than 2 / 1001, since a thousand resamples cannot show less.

    Raises:
        DataError: no samples, or not as many of one as of the other, or of the clusters.
    """
    _check_paired(len(values_a), len(values_b))
    num = len(values_a)
    if clusters is not None and len(clusters) != num:
        raise DataError(
            f"paired bootstrap of {num} samples got the clusters of {len(clusters)}; give one cluster for each sample"
        )
    change = np.asarray(values_b, np.float64) - np.asarray(values_a, np.float64)
    if clusters is None:
        rows = np.column_stack([change, np.ones(num)])
    else:
        _, cluster = np.unique(clusters, return_inverse=True)
        rows = np.column_stack([np.bincount(cluster, weights=change), np.bincount(cluster)])
    sums = bootstrap_sums(rows.astype(np.float64))
    resampled = sums[:, 0] / sums[:, 1]
    low, high = np.quantile(resampled, [0.025, 0.975])
    tail = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    return PairedTest(
        difference=float(change.mean()),
        low=float(low),
        high=float(high),
        p_value=min(1.0, 2.0 * (tail + 1) / (BOOTSTRAP_RESAMPLES + 1)),
        num=num,
        method="paired_bootstrap",
    )


def _check_paired(num_a: int, num_b: int) -> None:
    if num_a != num_b or not num_a:
        raise DataError(
            f"a paired test needs both models on the same samples, in the same order: a has {num_a} and b has "
            f"{num_b}; score both on the same split with the same number of bad images, at least one sample"
        )
