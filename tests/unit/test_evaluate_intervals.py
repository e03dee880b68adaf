"""Intervals: textbook values, ends, units that are clusters or seeds, and the resampling beneath them."""

import math

import numpy as np
import pytest

import evaluate.resampling as resampling
from evaluate.intervals import (
    bootstrap_mean_per_class,
    bootstrap_median,
    bootstrap_ratio,
    centred_interval,
    combined_mean,
    percentile_interval,
    seed_spread,
    wilson,
)
from evaluate.resampling import bootstrap_sums, resample_counts


def test_wilson_equals_a_textbook_value():
    # Newcombe 1998, table I: 81 of 263 has the Wilson interval 0.2553 to 0.3662.
    estimate = wilson(81, 263)
    assert estimate.value == pytest.approx(81 / 263)
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (0.2553, 0.3662)


def test_wilson_has_a_width_where_all_or_none_are_right():
    none, all_right = wilson(0, 10), wilson(10, 10)
    assert (none.low, all_right.high) == (0.0, 1.0)
    assert none.high == pytest.approx(0.2775, abs=1e-4)
    assert all_right.low == pytest.approx(0.7225, abs=1e-4)


def test_wilson_of_no_sample_says_nothing():
    estimate = wilson(0, 0)
    assert math.isnan(estimate.value)
    assert (estimate.low, estimate.high) == (0.0, 1.0)


def counts_of(sizes) -> np.ndarray:
    return np.concatenate(list(resample_counts(np.asarray(sizes))))


@pytest.mark.parametrize("sizes", [[1] * 60, [3, 1, 0, 2], [400, 0, 250, 350]])
def test_a_resample_draws_as_many_units_as_there_are(sizes):
    counts = counts_of(sizes)
    assert counts.shape == (1000, len(sizes))
    assert (counts.sum(axis=1) == sum(sizes)).all()
    assert (counts[:, np.asarray(sizes) == 0] == 0).all()
    # A count has the mean of its size; five standard errors of the mean over 1000 resamples.
    bound = 5 * np.sqrt(np.asarray(sizes) / 1000)
    assert (np.abs(counts.mean(axis=0) - sizes) <= bound).all()


def test_drawing_counts_and_drawing_indices_have_one_distribution(monkeypatch):
    sizes = [30, 50, 20]
    monkeypatch.setattr(resampling, "_MULTINOMIAL_PAYS", 0)
    multinomial = counts_of(sizes)
    monkeypatch.setattr(resampling, "_MULTINOMIAL_PAYS", math.inf)
    indices = counts_of(sizes)
    assert not np.array_equal(multinomial, indices)  # two ways of drawing
    # Covariance n (diag(p) - p p'); sampling error of a covariance of 1000 draws is about 1.4 / sqrt(1000) = 4.5%.
    share = np.asarray(sizes) / 100
    expected = 100 * (np.diag(share) - np.outer(share, share))
    for counts in (multinomial, indices):
        assert np.allclose(np.cov(counts.T), expected, rtol=0.2, atol=1.0)


def test_chunks_do_not_change_the_resamples_of_indices(monkeypatch):
    whole = counts_of([1] * 50)
    monkeypatch.setattr(resampling, "_BOOTSTRAP_CHUNK", 350)  # seven resamples at a time
    assert np.array_equal(counts_of([1] * 50), whole)


def test_sums_of_equal_clusters_are_those_of_their_counts():
    rows = np.array([[1.0, 2.0], [0.0, 1.0], [1.0, 2.0]])
    sums = bootstrap_sums(rows)
    assert sums.shape == (1000, 2)
    # k draws of the rows [1, 2] and 3 - k of [0, 1] sum to [k, 3 + k].
    assert np.array_equal(sums[:, 1], sums[:, 0] + 3)


def test_bootstrap_is_wider_when_hits_come_in_clusters():
    rng = np.random.default_rng(1)
    hits = rng.integers(0, 2, 200).astype(float)
    apart = bootstrap_ratio(np.repeat(hits, 5), np.ones(1000), num=1000)
    clustered = bootstrap_ratio(hits * 5, np.full(200, 5.0), num=1000)
    assert clustered.value == apart.value == hits.mean()
    ratio = (clustered.high - clustered.low) / (apart.high - apart.low)
    assert ratio == pytest.approx(math.sqrt(5), rel=0.1)


def test_a_bootstrap_of_independent_hits_agrees_with_the_normal_interval():
    hits = np.r_[np.ones(600), np.zeros(400)]
    estimate = bootstrap_ratio(hits, np.ones(1000), num=1000)
    half = 1.96 * math.sqrt(0.6 * 0.4 / 1000)
    # A quantile of 1000 resamples is off by about 8% of a half-width at the 2.5% tail.
    assert estimate.low == pytest.approx(0.6 - half, abs=0.25 * half)
    assert estimate.high == pytest.approx(0.6 + half, abs=0.25 * half)


def test_bootstrap_gives_the_same_interval_twice():
    hits, counts = np.array([0.0, 2.0, 1.0, 3.0]), np.array([1.0, 2.0, 3.0, 4.0])
    assert bootstrap_ratio(hits, counts, num=10) == bootstrap_ratio(hits, counts, num=10)


def test_bootstrap_of_no_cluster_says_nothing():
    estimate = bootstrap_ratio(np.empty(0), np.empty(0), num=0)
    assert math.isnan(estimate.value)
    assert (estimate.low, estimate.high) == (0.0, 1.0)


def test_an_interval_leaves_out_resamples_without_a_value_and_holds_the_estimate():
    estimate = percentile_interval(0.9, np.array([0.1, math.nan, 0.3]), num=3)
    assert (estimate.low, estimate.high) == (pytest.approx(0.105), 0.9)
    nothing = percentile_interval(0.9, np.full(3, math.nan), num=3)
    assert (nothing.low, nothing.high) == (0.0, 1.0)


def test_a_centred_interval_lies_around_the_value_and_within_the_scale():
    resampled = np.linspace(0.7, 0.9, 1001)
    estimate = centred_interval(0.5, resampled, num=10)
    assert (estimate.low, estimate.high) == pytest.approx((0.405, 0.595))
    at_the_end = centred_interval(0.99, resampled, num=10)
    assert (at_the_end.low, at_the_end.high) == pytest.approx((0.895, 1.0))
    nothing = centred_interval(0.5, np.full(3, math.nan), num=10)
    assert (nothing.low, nothing.high) == (0.0, 1.0)


def test_a_median_is_numpys_and_its_interval_that_of_drawn_clusters():
    rng = np.random.default_rng(0)
    values, clusters = rng.integers(1, 100, 61), rng.integers(0, 20, 61)
    clusters[:20] = np.arange(20)
    estimate = bootstrap_median(values, clusters, unit="rank")
    assert estimate.value == np.median(values)
    assert estimate.unit == "rank"
    reference = [
        np.median(np.repeat(values, row[clusters])) for row in counts_of([1] * 20)
    ]  # the same draws, with the values written out
    assert (estimate.low, estimate.high) == tuple(np.quantile(reference, [0.025, 0.975]))


def test_the_median_of_an_even_number_is_between_the_middle_two():
    estimate = bootstrap_median(np.array([1, 2, 5, 100]), np.zeros(4, np.int64))
    assert (estimate.value, estimate.low, estimate.high) == (3.5, 3.5, 3.5)  # one cluster: nothing to vary


def test_mean_per_class_equals_scikit_learns_balanced_accuracy():
    from sklearn.metrics import balanced_accuracy_score

    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 7, 300), rng.integers(0, 8, 300)  # class 7 has no sample
    found = bootstrap_mean_per_class(labels == predicted, labels, 8)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert found.value == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-12)
    assert found.low < found.value < found.high


def test_mean_per_class_interval_equals_that_of_drawn_samples():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), [10, 20, 40, 80, 160])
    correct = rng.random(310) < np.linspace(0.3, 0.9, 310)
    found = bootstrap_mean_per_class(correct, labels, 5)
    means = []
    for _ in range(1000):
        picked = rng.integers(0, 310, 310)
        hits = np.bincount(labels[picked], weights=correct[picked], minlength=5)
        means.append((hits / np.bincount(labels[picked], minlength=5)).mean())
    # Quantiles of two sets of 1000 resamples; each is off by about 8% of a half-width.
    half = (found.high - found.low) / 2
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.3 * half)


def test_mean_per_class_of_no_sample_says_nothing():
    assert math.isnan(bootstrap_mean_per_class(np.empty(0, bool), np.empty(0, np.int64), 3).value)


def test_seed_spread_is_mean_and_sample_deviation():
    estimate = seed_spread([0.1, 0.2, 0.6])
    assert estimate.value == pytest.approx(0.3)
    assert estimate.high - estimate.value == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1))
    assert estimate.num == 3


def test_combined_mean_of_equal_intervals_is_narrower_by_the_root():
    one = wilson(50, 100, chance=0.1)
    mean = combined_mean([one] * 4)
    assert mean.value == 0.5
    assert mean.chance == pytest.approx(0.1)
    assert mean.high - mean.low == pytest.approx((one.high - one.low) / 2)
