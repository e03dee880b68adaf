"""Mean average precision: by hand, against scikit-learn, CLIP_benchmark and VOC's own formula, ties, bad input."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve

from crawl2clip.errors import DataError
from evaluate.tasks.multi_label import score_multi_label


def scored(scores: torch.Tensor, targets: torch.Tensor):
    """With the identity for a classifier the features are the scores."""
    return score_multi_label(scores, targets, torch.eye(scores.shape[1]))


def random_case(num: int = 200, classes: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    targets = torch.rand(num, classes, generator=generator) < torch.linspace(0.05, 0.6, classes)
    return torch.randn(num, classes, generator=generator) + targets, targets


def eleven_points(scores: np.ndarray, targets: np.ndarray) -> float:
    """The VOC development kit's loop over recall levels, on scikit-learn's curve."""
    precision, recall, _ = precision_recall_curve(targets, scores)
    precision, recall = (
        precision[:-1],
        recall[:-1],
    )  # the last point is no threshold but precision 1 at recall 0
    return float(np.mean([precision[recall >= level - 1e-12].max() for level in np.arange(11) / 10]))


def test_one_class_by_hand():
    # By falling score: shown, not, shown, not. Precision 1/1 at the first, 2/3 at the second.
    score = scored(torch.tensor([[0.9], [0.8], [0.7], [0.6]]), torch.tensor([[1], [0], [1], [0]]).bool())
    assert score.metrics["mean_average_precision"].value == pytest.approx((1 + 2 / 3) / 2)
    # Recall 0 to 0.5 (six levels) reaches precision 1, the other five 2/3.
    assert score.metrics["mean_average_precision_11_point"].value == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert score.metrics["mean_average_precision"].chance == 0.5
    assert score.metrics["mean_average_precision"].num == 4
    assert score.predictions["scores"].shape == (4, 1)


def test_full_precision_equals_scikit_learns_and_clip_benchmarks():
    from clip_benchmark.metrics.zeroshot_classification import average_precision_per_class

    scores, targets = random_case()
    found = scored(scores, targets)
    by_class = [average_precision_score(targets[:, c], scores[:, c]) for c in range(6)]
    assert list(found.details["average_precision_by_class"].values()) == pytest.approx(by_class, abs=1e-12)
    value = found.metrics["mean_average_precision"].value
    assert value == pytest.approx(np.mean(by_class), abs=1e-12)
    assert value == pytest.approx(
        float(average_precision_per_class(scores, targets).mean()), abs=1e-6
    )  # float32


def test_eleven_points_equal_those_of_the_curve():
    scores, targets = random_case()
    expected = np.mean([eleven_points(scores[:, c].numpy(), targets[:, c].numpy()) for c in range(6)])
    assert scored(scores, targets).metrics["mean_average_precision_11_point"].value == pytest.approx(
        expected, abs=1e-12
    )


def test_ties_share_the_last_rank_whatever_the_order_of_the_images():
    scores, targets = random_case()
    coarse = (scores * 2).round() / 2  # about ten levels for 200 images
    forward, backward = scored(coarse, targets), scored(coarse.flip(0), targets.flip(0))
    expected = np.mean([average_precision_score(targets[:, c], coarse[:, c]) for c in range(6)])
    points = np.mean([eleven_points(coarse[:, c].numpy(), targets[:, c].numpy()) for c in range(6)])
    for found in (forward, backward):
        assert found.metrics["mean_average_precision"].value == pytest.approx(expected, abs=1e-12)
        assert found.metrics["mean_average_precision_11_point"].value == pytest.approx(points, abs=1e-12)


def test_a_model_that_scores_all_alike_gets_the_share_of_images():
    targets = random_case()[1]
    found = scored(torch.ones(200, 6), targets).metrics["mean_average_precision"]
    assert found.value == pytest.approx(float(targets.float().mean()), abs=1e-6)
    assert found.value == pytest.approx(found.chance, abs=1e-12)


def test_the_interval_is_that_of_drawn_images():
    scores, targets = random_case(100, 2)
    found = scored(scores, targets).metrics
    rng = np.random.default_rng(1)
    full, points = [], []
    for _ in range(200):
        picked = rng.integers(0, 100, 100)
        pairs = [(scores[picked, c].numpy(), targets[picked, c].numpy()) for c in range(2)]
        pairs = [(s, t) for s, t in pairs if t.any()]
        full.append(np.mean([average_precision_score(t, s) for s, t in pairs]))
        points.append(np.mean([eleven_points(s, t) for s, t in pairs]))
    for name, values in (("", full), ("_11_point", points)):
        estimate = found[f"mean_average_precision{name}"]
        half = (estimate.high - estimate.low) / 2
        # A quantile of 200 resamples is off by about 20% of a half-width.
        expected = tuple(np.quantile(values, [0.025, 0.975]) - np.mean(values) + estimate.value)
        assert (estimate.low, estimate.high) == pytest.approx(expected, abs=0.4 * half)


def test_classes_that_no_image_shows_are_left_out_and_noted():
    scores, targets = random_case(50, 3)
    targets[:, 1] = False
    found = scored(scores, targets)
    expected = np.mean([average_precision_score(targets[:, c], scores[:, c]) for c in (0, 2)])
    assert found.metrics["mean_average_precision"].value == pytest.approx(expected)
    assert found.notes == ["1 of 3 classes are shown by no image and left out of the mean"]
    assert list(found.details["average_precision_by_class"]) == ["0", "2"]


def test_targets_that_do_not_fit_are_refused():
    with pytest.raises(
        DataError, match=r"shape \[2, 3\]; expected \[2, 2\], one row an image.*check the class names"
    ):
        score_multi_label(torch.eye(2), torch.ones(2, 3).bool(), torch.eye(2))
    with pytest.raises(DataError, match="none of the 2 images shows any of the 2 classes; check the targets"):
        score_multi_label(torch.eye(2), torch.zeros(2, 2).bool(), torch.eye(2))
    with pytest.raises(DataError, match="1 of 2 class directions are not finite"):
        score_multi_label(torch.eye(2), torch.eye(2).bool(), torch.tensor([[1.0, 0.0], [torch.inf, 0.0]]))
