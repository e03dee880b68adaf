"""Paired tests of two models: against scipy, by hand, with clusters, and samples that do not fit."""

import numpy as np
import pytest
from scipy.stats import binomtest

from crawl2clip.errors import DataError
from evaluate.paired import mcnemar_exact, paired_bootstrap


def answers(only_a: int, only_b: int, both: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Hits of two models with so many samples of each kind."""
    a = np.repeat([True, False, True, False], [only_a, only_b, both, neither])
    b = np.repeat([False, True, True, False], [only_a, only_b, both, neither])
    return a, b


@pytest.mark.parametrize(
    ("only_a", "only_b"), [(0, 0), (0, 1), (3, 3), (2, 9), (121, 59), (4000, 3800), (9000, 12)]
)
def test_mcnemar_equals_the_binomial_test_of_scipy(only_a, only_b):
    found = mcnemar_exact(*answers(only_a, only_b, 10, 10))
    tosses = only_a + only_b
    expected = binomtest(only_a, tosses).pvalue if tosses else 1.0
    # Ours sums logarithms of factorials, good to about 1e-11 of the value at these counts.
    assert found.p_value == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert found.difference == pytest.approx((only_b - only_a) / (tosses + 20))
    assert found.method == "mcnemar_exact"


def test_mcnemar_by_hand():
    # 1 sample is a's alone, 5 are b's: 2 * (C(6,0) + C(6,1)) / 2^6 = 14 / 64.
    found = mcnemar_exact(*answers(1, 5, 3, 1))
    assert found.p_value == pytest.approx(14 / 64)
    assert found.difference == pytest.approx(0.4)  # b minus a
    assert found.low <= 0.4 <= found.high
    assert found.num == 10


def test_a_difference_that_is_there_is_found_and_one_that_is_not_is_not():
    rng = np.random.default_rng(0)
    base = rng.normal(size=2000)
    better = paired_bootstrap(base, base + 0.05 + rng.normal(scale=0.1, size=2000))
    same = paired_bootstrap(base, base + rng.normal(scale=0.1, size=2000))
    assert better.difference == pytest.approx(0.05, abs=0.01)
    assert better.low > 0
    assert better.p_value == pytest.approx(2 / 1001)  # the least a thousand resamples can show
    assert same.low < 0 < same.high
    assert same.p_value > 0.05


def test_pairing_sees_what_separate_intervals_hide():
    rng = np.random.default_rng(0)
    base = rng.normal(size=500)
    paired = paired_bootstrap(base, base + 0.01)
    assert (paired.low, paired.high) == pytest.approx((0.01, 0.01))  # each sample gained the same


def test_clusters_widen_the_interval_of_a_paired_difference():
    rng = np.random.default_rng(1)
    change = np.repeat(rng.normal(size=200), 5)
    apart = paired_bootstrap(np.zeros(1000), change)
    clustered = paired_bootstrap(np.zeros(1000), change, np.repeat(np.arange(200) * 7, 5))
    assert clustered.difference == apart.difference
    # Five copies of 200 values say as much as 200 values: the interval is sqrt(5) wider.
    assert (clustered.high - clustered.low) / (apart.high - apart.low) == pytest.approx(5**0.5, rel=0.15)


def test_equal_models_have_no_difference():
    same = paired_bootstrap(np.ones(10), np.ones(10))
    assert (same.difference, same.low, same.high, same.p_value) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("test", [mcnemar_exact, paired_bootstrap])
@pytest.mark.parametrize(("num_a", "num_b"), [(3, 4), (0, 0)])
def test_samples_that_do_not_pair_are_refused(test, num_a, num_b):
    with pytest.raises(DataError, match=f"a has {num_a} and b has {num_b}; score both on the same split"):
        test(np.zeros(num_a), np.zeros(num_b))


def test_clusters_of_other_samples_are_refused():
    with pytest.raises(
        DataError, match="of 3 samples got the clusters of 2; give one cluster for each sample"
    ):
        paired_bootstrap(np.zeros(3), np.ones(3), np.array([0, 1]))
