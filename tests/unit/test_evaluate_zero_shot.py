"""Zero-shot classification: hand-worked cases, ties, groups, scikit-learn's and CLIP_benchmark's numbers, bad input."""

import math

import numpy as np
import pytest
import torch

from crawl2clip.errors import DataError
from evaluate.tasks.classification import (
    classification_metrics,
    linear_predictions,
    true_class_ranks,
)
from evaluate.tasks.macro_f1 import macro_f1
from evaluate.tasks.roc_auc import roc_auc
from evaluate.tasks.zero_shot import score_zero_shot, zero_shot_classifier


def random_case(num: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features [num, 16] that lean towards their class, labels with every class, a classifier."""
    generator = torch.Generator().manual_seed(seed)
    classifier = torch.nn.functional.normalize(torch.randn(classes, 16, generator=generator), dim=-1)
    labels = torch.arange(num) % classes
    noise = torch.randn(num, 16, generator=generator)
    return torch.nn.functional.normalize(classifier[labels] + 0.5 * noise, dim=-1), labels, classifier


def test_a_class_is_the_normalised_mean_of_its_prompts():
    prompts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    classifier = zero_shot_classifier(prompts.split([2, 1]))
    half = math.sqrt(0.5)
    assert torch.allclose(classifier, torch.tensor([[half, half], [0.0, -1.0]]))


def test_a_class_without_prompts_is_refused():
    with pytest.raises(
        DataError, match=r"class 1 has no prompt \(1 of 3 classes have none\); give every class"
    ):
        zero_shot_classifier(torch.eye(3).split([2, 0, 1]))


def test_ranks_by_hand_with_ties_going_to_the_lower_class():
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.7, 0.7, 0.2], [0.7, 0.7, 0.2], [0.3, 0.3, 0.3]])
    labels = torch.tensor([2, 0, 1, 2])
    assert true_class_ranks(scores, labels).tolist() == [1, 0, 1, 2]
    assert (true_class_ranks(scores, labels) == 0).tolist() == (scores.argmax(1) == labels).tolist()


def test_ranks_with_many_ties_are_those_of_a_stable_sort():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 4, (500, 9), generator=generator).float()
    labels = torch.arange(500) % 9
    order = scores.argsort(dim=1, descending=True, stable=True)
    assert torch.equal(true_class_ranks(scores, labels), (order == labels[:, None]).nonzero()[:, 1])


def test_rows_beyond_one_chunk_are_scored_alike():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2500, 8, generator=generator)
    weight = torch.randn(11, 8, generator=generator)
    bias = torch.randn(11, generator=generator)
    labels = torch.arange(2500) % 11
    order = (features @ weight.T).argsort(dim=1, descending=True)
    ranks = linear_predictions(features, labels, weight).ranks
    assert torch.equal(ranks, (order == labels[:, None]).nonzero()[:, 1])
    found = linear_predictions(features, labels, weight, bias)
    assert torch.equal(found.predicted, (features @ weight.T + bias).argmax(dim=1))
    assert torch.equal(found.ranks == 0, found.predicted == labels)
    assert (found.margin, found.confidence) == (None, None)


def test_metrics_by_hand():
    # Class 0: ranks 0, 0, 7 (two of three right); class 1: rank 4.
    metrics = classification_metrics(torch.tensor([0, 0, 7, 4]), torch.tensor([0, 0, 0, 1]), num_classes=10)
    assert metrics["acc1"].value == pytest.approx(0.5)
    assert metrics["acc5"].value == pytest.approx(0.75)
    assert metrics["mean_per_class_recall"].value == pytest.approx((2 / 3 + 0) / 2)
    assert (metrics["acc1"].chance, metrics["acc5"].chance) == (0.1, 0.5)
    assert set(metrics) == {"acc1", "acc5", "mean_per_class_recall"}


def test_fewer_than_five_classes_have_no_acc5():
    assert "acc5" not in classification_metrics(torch.tensor([0, 1]), torch.tensor([0, 1]), num_classes=4)


def test_accuracies_equal_clip_benchmarks():
    from sklearn.metrics import balanced_accuracy_score

    features, labels, classifier = random_case(1500, 20)
    labels[labels == 3] = 4  # uneven classes
    score = score_zero_shot(features, labels, classifier, {})
    logits = 100.0 * features @ classifier.T
    # What its accuracy() takes; the function itself fails from numpy 2.4 on, where it makes a float of an array.
    correct = logits.topk(5, 1, True, True)[1] == labels[:, None]
    acc1, acc5 = float(correct[:, 0].double().mean()), float(correct.any(dim=1).double().mean())
    assert 0.2 < acc1 < acc5 < 0.99
    assert score.metrics["acc1"].value == pytest.approx(acc1, abs=1e-6)
    assert score.metrics["acc5"].value == pytest.approx(acc5, abs=1e-6)
    # CLIP_benchmark's mean_per_class_recall is this call.
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        recall = balanced_accuracy_score(labels, logits.argmax(dim=1))
    assert score.metrics["mean_per_class_recall"].value == pytest.approx(recall, abs=1e-6)


def test_predictions_of_each_sample_are_handed_back():
    features, labels, classifier = random_case(300, 7)
    score = score_zero_shot(features, labels, classifier, {})
    found = score.predictions
    assert set(found) == {"predicted", "correct", "rank"}
    assert found["predicted"].tolist() == (features @ classifier.T).argmax(dim=1).tolist()
    assert found["correct"].mean() == score.metrics["acc1"].value
    assert ((found["rank"] == 0) == found["correct"]).all()


def test_macro_f1_equals_scikit_learns_over_the_classes_that_occur():
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 2, 4, 5], 400, p=[0.5, 0.2, 0.15, 0.1, 0.05])  # class 3 has no sample
    predicted = np.where(rng.random(400) < 0.6, labels, rng.integers(0, 5, 400))  # and class 5 is not guessed
    estimate = macro_f1(labels, predicted)
    expected = f1_score(labels, predicted, average="macro", labels=np.unique(labels))
    assert estimate.value == pytest.approx(expected, abs=1e-12)
    assert estimate.low < estimate.value < estimate.high
    values = []
    for _ in range(200):
        picked = rng.integers(0, 400, 400)
        values.append(
            f1_score(labels[picked], predicted[picked], average="macro", labels=np.unique(labels[picked]))
        )
    # A quantile of 200 resamples is off by about 20% of a half-width.
    half = (estimate.high - estimate.low) / 2
    expected = tuple(np.quantile(values, [0.025, 0.975]) - np.mean(values) + estimate.value)
    assert (estimate.low, estimate.high) == pytest.approx(expected, abs=0.5 * half)


def test_macro_f1_of_no_sample_says_nothing():
    assert math.isnan(macro_f1(np.empty(0, np.int64), np.empty(0, np.int64)).value)


def test_roc_auc_equals_scikit_learns_with_and_without_ties():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    positive = rng.random(500) < 0.3
    for scores in (rng.normal(size=500) + positive, rng.integers(0, 5, 500) + 2.0 * positive):
        estimate = roc_auc(scores, positive)
        assert estimate.value == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
        # Hanley & McNeil 1982, equation 1, for the standard error.
        a, p, n = estimate.value, positive.sum(), (~positive).sum()
        q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
        error = math.sqrt((a * (1 - a) + (p - 1) * (q1 - a * a) + (n - 1) * (q2 - a * a)) / (p * n))
        assert (estimate.high - estimate.low) / 2 == pytest.approx(1.96 * error, rel=0.25)
        assert estimate.chance == 0.5


def test_two_classes_have_a_roc_auc_and_more_do_not():
    from sklearn.metrics import roc_auc_score

    features, labels, classifier = random_case(400, 2)
    score = score_zero_shot(features, labels, classifier, {})
    margin = (features.double() @ classifier.double().T).diff(dim=1).squeeze(1)
    # float32 cosines may order two margins within 1e-7 of each other the other way round: 1 / (200 * 200) each.
    assert score.metrics["roc_auc"].value == pytest.approx(roc_auc_score(labels, margin), abs=1e-4)
    assert "roc_auc" not in score_zero_shot(*random_case(400, 3), {}).metrics


def test_roc_auc_with_one_class_alone_has_no_value():
    estimate = score_zero_shot(torch.eye(2)[:1], torch.tensor([0]), torch.eye(2), {}).metrics["roc_auc"]
    assert math.isnan(estimate.value)
    assert (estimate.low, estimate.high) == (0.0, 1.0)


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


def test_features_and_labels_that_give_no_score_are_refused():
    broken = torch.eye(3)
    broken[1, 1] = torch.nan
    # A NaN is not greater than the true class's score, so it would count as right.
    assert linear_predictions(broken[1:2], torch.tensor([0]), torch.eye(3)).ranks.tolist() == [0]
    with pytest.raises(DataError, match=r"1 of 3 image features are not finite \(the first is row 1\).*fp32"):
        score_zero_shot(broken, torch.arange(3), torch.eye(3), {})
    with pytest.raises(DataError, match="1 of 3 class directions are not finite"):
        score_zero_shot(torch.eye(3), torch.arange(3), broken, {})
    with pytest.raises(
        DataError, match="image features have 2 dimensions and are compared with features of 3; both"
    ):
        score_zero_shot(torch.eye(2), torch.arange(2), torch.eye(3), {})
    with pytest.raises(
        DataError, match=r"image features have the shape \[0, 3\]; expected \[N, D\] with at least one"
    ):
        score_zero_shot(torch.empty(0, 3), torch.empty(0, dtype=torch.int64), torch.eye(3), {})
    with pytest.raises(DataError, match="labels run from 0 to 3, but there are 3 class names"):
        score_zero_shot(torch.eye(3), torch.tensor([0, 3, 1]), torch.eye(3), {})
    with pytest.raises(DataError, match="2 labels for 3 images; give one for each"):
        score_zero_shot(torch.eye(3), torch.tensor([0, 1]), torch.eye(3), {})
