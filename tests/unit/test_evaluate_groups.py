"""Worst group: by hand, sizes beside the score, tiny groups named, groups that do not fit."""

import pytest
import torch

from crawl2clip.errors import DataError
from evaluate.tasks.zero_shot import score_zero_shot


def scored(hits: dict[str, tuple[int, int]], classes: int = 3, groups=None, extra: list[str] | None = None):
    """A score of samples of class 0 in groups of (right, wrong) samples; a wrong one is taken for class 1."""
    columns = [c for right, wrong in hits.values() for c in [0] * right + [1] * wrong]
    names = [name for name, counts in hits.items() for _ in range(sum(counts))]
    columns += [0] * len(extra or [])
    features = torch.eye(classes)[columns]
    labels = torch.zeros(len(columns), dtype=torch.int64)
    return score_zero_shot(
        features, labels, torch.eye(classes), groups or {}, sample_groups=names + (extra or [])
    )


def test_the_worst_group_is_the_one_with_the_lowest_accuracy():
    score = scored({"Asia": (45, 5), "Africa": (30, 20), "Europe": (100, 0)})
    assert score.metrics["worst_group_acc1"] == score.groups["Africa"]["acc1"]
    assert score.metrics["worst_group_acc1"].value == 0.6
    assert score.metrics["worst_group_acc1"].num == 50
    assert score.details["group_sizes"] == {"Africa": 50, "Asia": 50, "Europe": 100}
    assert score.details["worst_group"] == {"acc1": "Africa"}  # three classes have no acc5
    assert "worst_group_acc5" not in score.metrics
    assert not [note for note in score.notes if "group" in note]


def test_acc5_of_the_worst_group_is_its_own():
    # Class 0 ranks first or second, so it is always among five.
    score = scored({"poor": (10, 30), "rich": (40, 0)}, classes=6)
    assert score.metrics["worst_group_acc1"].value == 0.25
    assert score.metrics["worst_group_acc5"].value == 1.0
    assert score.metrics["worst_group_acc5"].chance == pytest.approx(5 / 6)


def test_a_tiny_group_is_named_with_the_worst_of_the_larger_ones():
    # The shape of FMoW: one region has 4 images and decides the score.
    score = scored({"Other": (0, 4), "Africa": (20, 80), "Asia": (90, 10)})
    assert score.metrics["worst_group_acc1"].value == 0.0
    assert score.metrics["worst_group_acc1"].num == 4
    assert "groups with fewer than 30 samples: 'Other' (4)" in score.notes
    assert (
        "worst_group_acc1 is that of 'Other', where one answer moves it by 25.0 points; the worst larger group is "
        "'Africa' with 20.00% of 100 samples"
    ) in score.notes


def test_a_tiny_group_that_is_not_the_worst_is_only_listed():
    score = scored({"Other": (4, 0), "Africa": (20, 80)})
    assert score.details["worst_group"] == {"acc1": "Africa"}
    assert [note for note in score.notes if "group" in note] == [
        "groups with fewer than 30 samples: 'Other' (4)"
    ]


def test_of_equal_groups_the_larger_one_is_the_worst():
    score = scored({"small": (15, 15), "large": (50, 50)})
    assert score.details["worst_group"] == {"acc1": "large"}


def test_samples_without_a_group_count_in_the_whole_alone():
    score = scored({"Africa": (20, 20)}, extra=["", ""])
    assert score.metrics["acc1"].num == 42
    assert score.metrics["worst_group_acc1"].num == 40
    assert "2 of 42 samples belong to no group" in score.notes


def test_groups_of_classes_and_of_samples_stand_side_by_side():
    score = scored({"Africa": (20, 20)}, groups={"animals": [0, 1]})
    assert set(score.groups) == {"animals", "Africa"}


def test_groups_that_do_not_fit_are_refused():
    with pytest.raises(
        DataError, match="'animals' is both a group of classes and a group of samples; rename it"
    ):
        scored({"animals": (1, 1)}, groups={"animals": [0]})
    with pytest.raises(DataError, match="none of the 2 samples has a group; name a metadata field"):
        scored({"": (1, 1)})
    with pytest.raises(
        DataError, match="1 sample groups for 2 samples; give one for each, in the same order"
    ):
        score_zero_shot(torch.eye(2), torch.tensor([0, 1]), torch.eye(2), {}, sample_groups=["a"])
