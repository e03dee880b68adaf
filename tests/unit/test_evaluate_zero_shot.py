"""Zero-shot classification: hand-worked cases, ties, groups."""

import math

import pytest
import torch

from evaluate.tasks.classification import classification_metrics, linear_ranks, true_class_ranks
from evaluate.tasks.zero_shot import score_zero_shot, zero_shot_classifier


def test_a_class_is_the_normalised_mean_of_its_prompts():
    prompts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    classifier = zero_shot_classifier(prompts, [2, 1])
    half = math.sqrt(0.5)
    assert torch.allclose(classifier, torch.tensor([[half, half], [0.0, -1.0]]))


def test_ranks_by_hand_with_ties_going_to_the_lower_class():
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.7, 0.7, 0.2], [0.7, 0.7, 0.2], [0.3, 0.3, 0.3]])
    labels = torch.tensor([2, 0, 1, 2])
    assert true_class_ranks(scores, labels).tolist() == [1, 0, 1, 2]
    assert (true_class_ranks(scores, labels) == 0).tolist() == (scores.argmax(1) == labels).tolist()


def test_rows_beyond_one_chunk_are_scored_alike():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2500, 8, generator=generator)
    weight = torch.randn(11, 8, generator=generator)
    labels = torch.arange(2500) % 11
    ranks = linear_ranks(features, labels, weight)
    order = (features @ weight.T).argsort(dim=1, descending=True)
    assert torch.equal(ranks, (order == labels[:, None]).nonzero()[:, 1])


def test_metrics_by_hand():
    # Class 0: ranks 0, 0, 7 (two of three right); class 1: rank 4.
    metrics = classification_metrics(torch.tensor([0, 0, 7, 4]), torch.tensor([0, 0, 0, 1]), num_classes=10)
    assert metrics["acc1"].value == pytest.approx(0.5)
    assert metrics["acc5"].value == pytest.approx(0.75)
    assert metrics["mean_per_class_recall"].value == pytest.approx((2 / 3 + 0) / 2)
    assert (metrics["acc1"].chance, metrics["acc5"].chance) == (0.1, 0.5)


def test_fewer_than_five_classes_have_no_acc5():
    assert "acc5" not in classification_metrics(torch.tensor([0, 1]), torch.tensor([0, 1]), num_classes=4)


def test_a_group_is_its_samples_told_apart_from_all_classes():
    classifier = torch.eye(3)
    features = torch.eye(3)[[0, 1, 2, 0]]
    labels = torch.tensor([0, 1, 2, 2])  # the last one is taken for class 0, which is outside the group
    score = score_zero_shot(features, labels, classifier, {"rare": [1, 2], "first": [0]})
    assert score.metrics["acc1"].value == 0.75
    assert score.groups["rare"]["acc1"].value == pytest.approx(2 / 3)
    assert score.groups["rare"]["acc1"].num == 3
    assert score.groups["rare"]["acc1"].chance == pytest.approx(1 / 3)
    assert score.groups["first"]["acc1"].value == 1.0


def test_classes_and_groups_without_samples_are_said():
    score = score_zero_shot(torch.eye(3)[:1], torch.tensor([0]), torch.eye(3), {"unseen": [1, 2]})
    assert "2 of 3 classes have no sample" in score.notes
    assert "group unseen has no sample" in score.notes
    assert score.groups == {}
