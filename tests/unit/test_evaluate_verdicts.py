"""Verdicts: the tolerance each cell gets, the status at both sides of it, and the traps a deviation points at."""

import math

import pytest

from evaluate.intervals import Estimate, wilson
from evaluate.reports.published import _agreements, _table, expected_split, published_values
from evaluate.reports.tolerances import tolerance
from evaluate.reports.trap_messages import Evidence, likely_traps
from evaluate.reports.verdicts import Status, verdict, verdicts
from evaluate.results import Result


def result(percent: float, dataset: str = "imagenet1k", **changes) -> Result:
    """ViT-B-32 by OpenAI unless said otherwise, with as many samples as the published split."""
    split = expected_split(dataset)
    num = changes.pop("num_samples", split.num_samples if split else 1000)
    metric = changes.pop("metric", "acc1")
    value = wilson(round(percent / 100 * num), num, 0.001)
    settings = {
        "model": "ViT-B-32", "pretrained": "openai", "weights_sha256": "ab" * 32, "precision": "fp32", "split": "test",
        "task": "zero_shot",
        "metrics": {metric: Estimate(percent / 100, value.low, value.high, "wilson_95", num, 0.001)},
        "num_classes": split.num_classes if split else None,
    }  # fmt: skip
    return Result(dataset=dataset, metric=metric, num_samples=num, **{**settings, **changes})


def found(one: Result):
    seen = verdict(one)
    assert seen is not None
    return seen


def traps(one: Result) -> list[str]:
    return [text.split(":")[0] for text in found(one).traps]


@pytest.mark.parametrize(
    ("difference", "status"),
    [
        (0.0, Status.PASS),
        (0.12, Status.PASS),  # the largest difference between two published runs on ImageNet is 0.122
        (-0.12, Status.PASS),
        (0.15, Status.WARN),
        (-0.40, Status.WARN),  # half the 95% interval of 63.33% of 50,000 images is 0.42
        (-0.45, Status.FAIL),
        (2.0, Status.FAIL),
    ],
)
def test_imagenet_against_two_independent_runs(difference, status):
    seen = found(result(63.33 + difference))
    assert seen.status is status
    assert seen.difference == pytest.approx(difference)
    assert seen.published.percent == 63.33
    assert bool(seen.traps) == (status is not Status.PASS)


def test_a_message_has_numbers_source_tolerance_and_what_to_check():
    text = found(result(60.64)).message
    assert text.startswith(
        "FAIL imagenet1k zero_shot acc1: 60.64 against 63.33 (clip_benchmark), -2.69 points; PASS up to 0.13, WARN up "
        "to 0.44 (13 checkpoints scored by two suites differ by 0.04 in the median and 0.12 at most). Check: (1) "
        "quickgelu:"
    )
    assert found(result(63.33)).message.endswith("0.12 at most)")


def test_sets_whose_published_values_differ_by_protocol_are_held_to_the_nearest():
    """SVHN of OpenAI's B/32 is 12.37 in one table and 31.59 in the other."""
    low, high = found(result(12.4, "vtab/svhn")), found(result(31.5, "vtab/svhn"))
    assert [(v.published.percent, v.status) for v in (low, high)] == [
        (12.37, Status.PASS), (31.59, Status.PASS)
    ]  # fmt: skip
    assert found(result(20.0, "vtab/svhn")).status is Status.WARN
    assert found(result(60.0, "vtab/svhn")).status is Status.FAIL
    assert "so their prompts or class names differ" in low.tolerance.source


def test_a_set_without_two_published_runs_gets_the_sampling_interval():
    (published,) = published_values("ViT-B-32", "openai", "food101", "zero_shot", "acc1")
    one = result(published.percent, "food101")
    allowed = tolerance(one, "acc1")
    half = 50 * (one.headline.high - one.headline.low)
    assert allowed.passes == pytest.approx(half + 0.01)
    assert allowed.warns == pytest.approx(3 * half + 0.01)
    assert "no two published runs" in allowed.source
    inside, outside = (result(published.percent - factor * half, "food101") for factor in (0.9, 3.2))
    assert found(inside).status is Status.PASS
    assert found(outside).status is Status.FAIL


def test_the_default_rule_covers_what_published_runs_do():
    """The ground for the default: 26 of 30 largest differences lie within half the interval, all within 3 of it."""
    ratios = []
    for (dataset, task), entries in _agreements().items():
        for entry in entries:
            published = published_values("ViT-B-32", "openai", dataset, task, entry.metric)[0].percent
            split = expected_split(dataset)
            assert split is not None
            captions = 5 if entry.metric.startswith("image_retrieval") else 1  # each caption is a query
            num = split.num_samples * captions
            interval = wilson(round(published / 100 * num), num)
            if entry.same_protocol:
                ratios.append(entry.max_points / (50 * (interval.high - interval.low)))
    assert len(ratios) == 30
    assert sum(ratio <= 1 for ratio in ratios) == 26
    assert 2.5 < max(ratios) < 3


def test_probes_are_held_to_what_published_probes_differ_by():
    for difference, status in ((1.9, Status.PASS), (-3.0, Status.WARN), (-4.5, Status.FAIL)):
        seen = found(result(75.61 + difference, task="linear_probe"))
        assert seen.status is status
        assert seen.published.source == "clip_benchmark_probe"
    assert traps(result(70.0, task="linear_probe"))[0] == "probe"


def test_a_small_set_moves_in_steps_of_one_answer():
    """40 images of a set: one answer is 2.5 points, more than two runs of the whole set ever differed by."""
    allowed = tolerance(result(50.0, "vtab/pets", num_samples=40), "acc1")
    assert allowed.passes == pytest.approx(2.51)
    assert allowed.warns > allowed.passes


def test_what_has_no_published_value_has_no_verdict():
    assert verdict(result(63.3, pretrained="runs/ours/export")) is None
    assert verdict(result(63.3, pretrained=None)) is None
    assert verdict(result(63.3), "acc5") is None
    nan = result(63.3, metrics={"acc1": Estimate(math.nan, 0.0, 1.0, "wilson_95", 0)})
    assert verdict(nan) is None


def test_weights_trained_with_quickgelu_are_held_against_the_values_with_it_under_either_name():
    """laion400m_e32 has 62.93 with QuickGELU, which both names run with here, and 60.24 without."""
    for model in ("ViT-B-32", "ViT-B-32-quickgelu"):
        assert found(result(62.93, model=model, pretrained="laion400m_e32")).status is Status.PASS
        lost = result(60.24, model=model, pretrained="laion400m_e32")
        assert found(lost).status is Status.FAIL
        assert traps(lost)[0] == "quickgelu"
        assert "compare with model=ViT-B-32, published at 60.24" in found(lost).traps[0]
    # OpenAI's weights are published alike under both names, so nothing is held against them.
    assert found(result(63.33)).status is Status.PASS


def test_a_score_near_chance_points_at_the_label_order():
    near_chance = result(9.9, "vtab/pets", metric="mean_per_class_recall")
    near_chance.metrics["mean_per_class_recall"] = Estimate(0.099, 0.09, 0.11, "bootstrap_95", 3669, 1 / 37)
    assert found(near_chance).status is Status.FAIL
    assert traps(near_chance)[0] == "label order"


def test_another_number_of_images_points_at_the_split():
    whole = result(30.0, "flickr30k", task="retrieval", metric="image_retrieval_recall@5", num_samples=31_783)
    first = found(whole).traps[0]
    assert first.startswith("split: 31783 images are in this split, 1000 in the published one")


def test_another_number_of_classes_points_at_the_class_list():
    assert traps(result(60.0, num_classes=998))[0] == "class list"


def test_far_off_retrieval_points_at_split_and_captions():
    far = {"task": "retrieval", "metric": "image_retrieval_recall@5"}
    assert traps(result(95.0, "flickr30k", **far, num_samples=1014))[:2] == ["split", "captions"]
    assert (
        traps(result(95.0, "flickr30k", **far))[0] == "captions"
    )  # as many images as the published split has


def test_a_single_template_is_likeliest_three_points_below():
    assert likely_traps(evidence(63.3 - 3.5))[0].startswith("prompt")
    assert likely_traps(evidence(63.3 - 2.0))[0].startswith("quickgelu")
    assert likely_traps(evidence(63.3 - 0.3, precision="bf16"))[0].startswith("precision: this ran in bf16")
    assert likely_traps(evidence(63.3 - 0.3))[0].startswith("mean/std")
    assert likely_traps(evidence(63.3 + 4.0))[0].startswith("split")
    assert likely_traps(evidence(63.3 - 30.0))[0].startswith("label order")


def evidence(value: float, **changes) -> Evidence:
    settings = {"model": "ViT-B-32", "task": "zero_shot", "published": 63.3, "chance": 0.1}
    return Evidence(value=value, **{**settings, **changes})


def test_what_is_off_everywhere_is_the_model_and_what_is_off_once_the_set():
    everywhere = [
        result(61.0),
        result(53.0, "imagenetv2"),
        result(40.0, "imagenet_sketch"),
        result(66.0, "imagenet-r"),
    ]
    seen = verdicts(everywhere)
    assert [v.status for v in seen] == [Status.FAIL] * 4
    assert all(v.traps[0].startswith(("mean/std", "quickgelu")) for v in seen)
    once = [
        result(61.0),
        result(55.9, "imagenetv2"),
        result(42.3, "imagenet_sketch"),
        result(69.3, "imagenet-r"),
    ]
    seen = verdicts(once)
    assert [v.status for v in seen] == [Status.FAIL, Status.PASS, Status.PASS, Status.PASS]
    assert seen[0].traps[0].startswith("prompt")


def test_other_weights_say_nothing_about_these():
    others = [
        result(1.0, name, pretrained="laion400m_e32")
        for name in ("imagenetv2", "imagenet_sketch", "imagenet-r")
    ]
    alone, together = verdict(result(61.0)), verdicts([result(61.0), *others])[0]
    assert alone == together


def test_every_published_metric_of_a_result_gets_a_verdict():
    both = result(87.0, "vtab/pets", metric="mean_per_class_recall")
    both.metrics["acc1"] = wilson(3200, 3669)
    both.metrics["acc5"] = wilson(3600, 3669)
    assert [v.metric for v in verdicts([both])] == ["mean_per_class_recall", "acc1"]


def test_tiny_groups_and_lost_images_are_said():
    fmow = result(25.0, "wilds/fmow", metric="worst_group_acc1", num_bad_images=3)
    fmow.metrics["worst_group_acc1"] = wilson(1, 4)
    fmow.details = {"group_sizes": {"Other": 4, "Asia": 4963}}
    assert found(fmow).notes == (
        "worst_group_acc1 hangs on groups, and group 'Other' has 4 samples: one answer moves it by up to 25.0 points",
        "3 images could not be decoded and are left out",
    )
    assert "up to 25.0 points. 3 images" in found(fmow).message


def test_averages_get_verdicts_too():
    average = result(44.85, "vtab_plus", task="average")
    average.metrics = {"acc1": Estimate(0.4485, 0.447, 0.45, "combined_95", 35, 0.1)}
    seen = found(average)
    assert (seen.status, seen.published.percent, seen.notes) == (Status.PASS, 44.89, ())
    average.metrics = {"acc1": Estimate(0.4485, 0.447, 0.45, "combined_95", 34, 0.1)}
    assert verdict(average) is None  # a set was taken out of the suite


def cells_of(scored_as: tuple[str, str], named: tuple[str, str], source: str = "open_clip") -> list[Result]:
    """Published values of some weights as if they had been measured under another name."""
    cells = []
    for (model, pretrained, dataset, task, metric), values in _table().items():
        percent = [value.percent for value in values if value.source == source]
        if (model, pretrained) == scored_as and task == "zero_shot" and percent:
            cells.append(result(percent[0], dataset, metric=metric, model=named[0], pretrained=named[1]))
    return cells


def test_an_independent_run_of_the_same_weights_passes_everywhere():
    seen = verdicts(cells_of(("ViT-B-32", "openai"), ("ViT-B-32", "openai")))
    assert len(seen) == 35
    assert {v.status for v in seen} == {Status.PASS}


def test_a_run_without_quickgelu_is_caught_and_named():
    """laion400m_e32 measured without its activation, as open_clip published it, against the values with it."""
    for named in ("ViT-B-32-quickgelu", "ViT-B-32"):
        seen = verdicts(cells_of(("ViT-B-32", "laion400m_e32"), (named, "laion400m_e32")))
        off = [v for v in seen if v.status is not Status.PASS]
        assert len(off) > len(seen) * 2 / 3
        assert {v.traps[0].split(":")[0] for v in off} == {"quickgelu"}


def test_better_here_and_worse_there_is_another_checkpoint():
    seen = verdicts(cells_of(("ViT-L-14-quickgelu", "metaclip_400m"), ("ViT-L-14", "laion2b_s32b_b82k")))
    off = [v for v in seen if v.status is not Status.PASS]
    assert len(off) > len(seen) / 2
    named = [v.traps[0].startswith("weights: another checkpoint") for v in off]
    assert sum(named) > len(off) * 2 / 3
