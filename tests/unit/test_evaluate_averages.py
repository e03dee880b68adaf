"""Averages: plain, of one metric unless declared otherwise, complete or absent, loud about tiny groups."""

import logging

import pytest
from evaluation_suites import suite_of

from crawl2clip.errors import ConfigError
from evaluate.averages import DECLARED, AverageConfig, averages_of, check_averages, noise_notes, smallest_unit
from evaluate.data.datasets import DatasetConfig, Task
from evaluate.intervals import Estimate, wilson
from evaluate.reports.published import _table, published_values
from evaluate.results import Result


def estimate(
    value: float, *, num: int = 10_000, interval: str = "wilson_95", unit: str = "fraction"
) -> Estimate:
    return Estimate(value, value - 0.01, value + 0.01, interval, num, 0.1, unit)


def result(dataset: str, value: float, **changes) -> Result:
    metric = changes.pop("metric", "acc1")
    settings = {
        "model": "ViT-B-32", "pretrained": "openai", "weights_sha256": "ab" * 32, "precision": "fp32", "split": "test",
        "task": "zero_shot", "metrics": {metric: estimate(value)}, "num_samples": 10_000,
    }  # fmt: skip
    return Result(dataset=dataset, metric=metric, **{**settings, **changes})


def published_results(model: str, pretrained: str, source: str) -> list[Result]:
    """Published per-set values of one source as results, as a run would have given them."""
    rows = []
    for (of, weights, dataset, task, metric), values in _table().items():
        percent = [value.percent for value in values if value.source == source]
        if (of, weights) == (model, pretrained) and percent:
            rows.append(result(dataset, percent[0] / 100, task=task, metric=metric))
    return rows


@pytest.mark.parametrize(
    ("model", "pretrained", "percent"),
    [
        ("ViT-B-32", "openai", 44.89),
        ("ViT-B-16", "openai", 47.50),
        ("ViT-L-14", "openai", 55.76),
        ("ViT-H-14", "laion2b_s32b_b79k", 56.43),
    ],
)
def test_vtab_plus_of_published_sets_is_the_published_average(model, pretrained, percent):
    suite = suite_of("vtab_plus")
    acc1 = [r for r in published_results(model, pretrained, "clip_benchmark") if r.metric == "acc1"]
    named = {dataset.removeprefix("vtab/"): dataset for dataset in suite.datasets}
    for member in acc1:  # published under the canonical name, wanted under the suite's
        member.dataset = named.get(member.dataset.removeprefix("vtab/"), member.dataset)
    (average,) = averages_of(suite.averages[0], acc1)
    # Members are published with two decimals, so their mean can be off by half of the last one.
    assert 100 * average.headline.value == pytest.approx(percent, abs=0.011)
    assert (average.dataset, average.task, average.metric) == ("vtab_plus", "average", "acc1")
    assert average.headline.num == len(average.details["datasets"]) == 35
    assert [v.percent for v in published_values(model, pretrained, "vtab_plus", "average", "acc1")] == [
        percent
    ]


@pytest.mark.parametrize(
    ("model", "pretrained"),
    [("ViT-B-32", "openai"), ("ViT-L-14", "datacomp_xl_s13b_b90k"), ("RN50", "cc12m")],
)
def test_datacomp38_of_published_sets_is_the_published_average(model, pretrained):
    suite = suite_of("datacomp38")
    rows = published_results(model, pretrained, "open_clip")
    by_name = {name.removeprefix("vtab/"): name for name in suite.datasets}
    members = []
    for row in rows:
        row.dataset = by_name.get(row.dataset.removeprefix("vtab/"), row.dataset)
        if row.dataset in suite.datasets and row.metric == suite.datasets[row.dataset].metric:
            members.append(row)
    whole = next(config for config in suite.averages if config.name == "datacomp38")
    (average,) = averages_of(whole, members)
    (expected,) = published_values(model, pretrained, "datacomp38", "average", "declared_metric")
    # Their mean is over values with four digits and the published one is rounded as well.
    assert 100 * average.headline.value == pytest.approx(expected.percent, abs=0.02)
    assert average.metric == "declared_metric"
    assert average.headline.num == 38


def test_a_plain_mean_with_what_went_into_it():
    config = AverageConfig(name="mean", metric="acc1")
    results = [
        result("a", 0.5, num_samples=10, num_bad_images=1),
        result("b", 0.25, num_samples=20),
        result("old mean", 0.9, task="average"),
    ]
    (average,) = averages_of(config, results)
    assert average.headline.value == 0.375
    # Independent members: half-widths add as variances do, sqrt(0.01^2 + 0.01^2) / 2.
    assert average.headline.high - average.headline.value == pytest.approx(0.01 * 2**0.5 / 2)
    assert average.details == {"datasets": ["a", "b"], "metrics": {"a": "acc1", "b": "acc1"}}
    assert (average.num_samples, average.num_bad_images) == (30, 1)


def test_each_model_gets_its_own_average():
    results = [result("a", 0.2), result("a", 0.4, pretrained="other"), result("a", 0.6, precision="bf16")]
    averages = averages_of(AverageConfig(name="mean", metric="acc1"), results)
    assert [(r.pretrained, r.precision, r.headline.value) for r in averages] == [
        ("openai", "fp32", 0.2), ("other", "fp32", 0.4), ("openai", "bf16", 0.6)
    ]  # fmt: skip


def test_a_model_without_a_member_gets_no_average(caplog):
    config = AverageConfig(name="mean", metric="acc1", datasets=["a", "b"])
    results = [result("a", 0.2), result("b", 0.4), result("a", 0.9, pretrained="other")]
    with caplog.at_level(logging.WARNING):
        averages = averages_of(config, results)
    assert [(r.pretrained, r.headline.value) for r in averages] == [("openai", pytest.approx(0.3))]
    assert "no average 'mean' for ViT-B-32 other: 1 of its 2 data sets have no result (b)" in caplog.text
    assert averages_of(config, []) == []


def test_metrics_do_not_mix_unless_declared():
    mixed = [result("a", 0.5), result("b", 0.25, metric="mean_per_class_recall")]
    with pytest.raises(
        ConfigError, match=r"a mean of acc1, but 'b' was scored by mean_per_class_recall; .*declared"
    ):
        averages_of(AverageConfig(name="mean", metric="acc1"), mixed)
    (declared,) = averages_of(AverageConfig(name="mean", metric=DECLARED), mixed)
    assert declared.metric == "declared_metric"
    assert declared.headline.value == 0.375
    assert declared.details["metrics"] == {"a": "acc1", "b": "mean_per_class_recall"}


def test_ranks_are_not_averaged_with_fractions():
    rank = result("b", 0.3, metrics={"acc1": estimate(3.0, unit="rank")})
    with pytest.raises(ConfigError, match="would mix in acc1 of 'b', which is a rank and no fraction"):
        averages_of(AverageConfig(name="mean", metric=DECLARED), [result("a", 0.5), rank])


def test_the_task_of_an_average_picks_among_several():
    both = [result("a", 0.5), result("a", 0.75, task="linear_probe")]
    with pytest.raises(ConfigError, match="meets 'a' twice, as zero_shot and as linear_probe; set the task"):
        averages_of(AverageConfig(name="mean", metric="acc1"), both)
    (average,) = averages_of(AverageConfig(name="mean", metric="acc1", task=Task.linear_probe), both)
    assert average.headline.value == 0.75


def test_an_average_fits_its_suite():
    datasets = {
        "a": DatasetConfig(tasks=[Task.zero_shot], metric="acc1"),
        "b": DatasetConfig(tasks=[Task.zero_shot, Task.linear_probe], metric="mean_per_class_recall"),
    }

    def check(*averages: AverageConfig) -> None:
        check_averages(averages, datasets, "s")

    check(AverageConfig(name="one", metric="acc1", datasets=["a"]))
    check(AverageConfig(name="all", metric=DECLARED, task=Task.zero_shot))
    with pytest.raises(
        ConfigError, match=r"unknown data set of suite 's'.*'c'.*fewer sets is another number"
    ):
        check(AverageConfig(name="one", metric="acc1", datasets=["a", "c"]))
    with pytest.raises(ConfigError, match="does not say which task of 'b' it means"):
        check(AverageConfig(name="all", metric=DECLARED))
    with pytest.raises(ConfigError, match="over linear_probe, which 'a' does not have"):
        check(AverageConfig(name="all", metric=DECLARED, task=Task.linear_probe))
    datasets["c"] = DatasetConfig(tasks=[Task.few_shot], metric="acc1")
    with pytest.raises(
        ConfigError, match=r"few_shot's headline is acc1 of .* give the average metric=declared"
    ):
        check(AverageConfig(name="all", metric="acc1", datasets=["c"]))
    del datasets["c"]
    with pytest.raises(ConfigError, match="a mean of acc1, but 'b' has the metric mean_per_class_recall"):
        check(AverageConfig(name="all", metric="acc1", task=Task.zero_shot))
    with pytest.raises(ConfigError, match="has the name of another average or data set"):
        check(AverageConfig(name="a", metric="acc1", datasets=["a"]))
    with pytest.raises(ConfigError, match="empty list of data sets"):
        AverageConfig(name="none", metric="acc1", datasets=[])
    with pytest.raises(ConfigError, match="names a more than once"):
        AverageConfig(name="twice", metric="acc1", datasets=["a", "a"])


def test_a_group_of_four_images_is_said_beside_the_average():
    """mlfoundations/datacomp#61: one region of FMoW has 4 images, one answer moves the mean of 38 by 0.66 points."""
    sizes = {"group_sizes": {"Asia": 4963, "Other": 4}}
    fmow = result(
        "wilds/fmow",
        0.0,
        metric="worst_group_acc1",
        details=sizes,
        metrics={"worst_group_acc1": wilson(0, 4)},
    )
    members = [fmow, *(result(f"set {i}", 0.5) for i in range(37))]
    assert noise_notes(members) == [
        "wilds/fmow: worst_group_acc1 hangs on groups, and group 'Other' has 4 samples, so one answer moves this "
        "average by up to 0.66 points"
    ]
    (average,) = averages_of(AverageConfig(name="mean", metric=DECLARED), members)
    assert average.notes == noise_notes(members)


def test_the_weakest_place_of_a_headline():
    assert smallest_unit(result("a", 0.5)) == (10_000, "10000 samples")
    one = result("a", 0.5, metrics={"acc1": wilson(1, 1)})
    assert smallest_unit(one) == (1, "1 sample")
    few = result("a", 0.5, task="few_shot", metrics={"acc1": estimate(0.5, num=3, interval="seed_spread")})
    assert smallest_unit(few)[0] == 10_000  # three seeds, but as many images as ever
    assert noise_notes([few]) == []
    mean = "mean_retrieval_recall@1"
    sides = {
        f"{side}_retrieval_recall@1": wilson(num // 2, num) for side, num in (("image", 150), ("text", 30))
    }
    both = result("r", 0.5, metric=mean, metrics={mean: wilson(90, 180), **sides})
    assert smallest_unit(both) == (60, "30 queries in one direction")
    assert noise_notes([both]) == [
        "r: mean_retrieval_recall@1 hangs on 30 queries in one direction, so one answer moves this average by about "
        "1.67 points"
    ]
