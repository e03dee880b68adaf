"""Expected calibration error: bins by hand, against a plain loop, its interval, and through zero-shot."""

import numpy as np
import pytest
import torch

from evaluate.tasks.calibration import bin_of, expected_calibration_error
from evaluate.tasks.zero_shot import score_zero_shot


def plain_ece(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Guo et al. 2017, equation 3, as it is written: 15 bins, open below and closed above."""
    total = 0.0
    for m in range(1, 16):
        members = (confidence > (m - 1) / 15) & (confidence <= m / 15)
        if members.any():
            total += members.mean() * abs(correct[members].mean() - confidence[members].mean())
    return total


def test_bins_are_open_below_and_closed_above():
    values = np.array([0.0, 1e-9, 1 / 15, 1 / 15 + 1e-9, 0.5, 14 / 15, 14 / 15 + 1e-9, 1.0])
    assert bin_of(values).tolist() == [0, 0, 0, 1, 7, 13, 14, 14]


def test_two_bins_by_hand():
    # Bin (0.6, 0.667]: confidence 0.65, one of two right, gap 0.15; bin (0.933, 1]: confidence 1, right, gap 0.
    estimate, bins = expected_calibration_error(
        np.array([0.64, 0.66, 1.0, 1.0]), np.array([1, 0, 1, 1], bool)
    )
    assert estimate.value == pytest.approx(0.5 * 0.15)
    assert [entry["num"] for entry in bins] == [2, 2]
    assert bins[0] == pytest.approx(
        {"above": 0.6, "upto": 2 / 3, "num": 2, "accuracy": 0.5, "confidence": 0.65}
    )


def test_it_equals_the_plain_loop():
    rng = np.random.default_rng(0)
    confidence = rng.random(3000)
    correct = rng.random(3000) < confidence**1.5  # overconfident
    estimate, bins = expected_calibration_error(confidence, correct)
    assert estimate.value == pytest.approx(plain_ece(confidence, correct), abs=1e-12)
    assert sum(entry["num"] for entry in bins) == 3000
    assert 0 < estimate.low < estimate.value < estimate.high


def test_the_interval_lies_around_the_value_even_for_a_calibrated_model():
    rng = np.random.default_rng(0)
    confidence = rng.random(2000)
    estimate, _ = expected_calibration_error(confidence, rng.random(2000) < confidence)
    # Resamples of a calibrated model all lie above its error; the interval must not.
    assert estimate.low < estimate.value - 0.001
    assert estimate.high > estimate.value + 0.001


def test_a_model_that_is_sure_and_right_is_calibrated():
    estimate, _ = expected_calibration_error(np.ones(10), np.ones(10, bool))
    assert (estimate.value, estimate.low, estimate.high) == (0.0, 0.0, 0.0)


def test_zero_shot_takes_its_confidence_from_the_models_logit_scale():
    generator = torch.Generator().manual_seed(0)
    classifier = torch.nn.functional.normalize(torch.randn(7, 16, generator=generator), dim=-1)
    features = torch.nn.functional.normalize(torch.randn(1500, 16, generator=generator), dim=-1)
    labels = torch.arange(1500) % 7
    score = score_zero_shot(features, labels, classifier, {}, logit_scale=20.0)
    confidence, predicted = (20.0 * features.double() @ classifier.double().T).softmax(dim=1).max(dim=1)
    # float32 cosines at a scale of 20: 20 * 1e-7 on a logit.
    assert score.predictions["confidence"] == pytest.approx(confidence.numpy(), abs=1e-5)
    expected = plain_ece(score.predictions["confidence"].astype(float), (predicted == labels).numpy())
    assert score.metrics["ece"].value == pytest.approx(expected, abs=1e-9)
    assert score.details["calibration"]["logit_scale"] == 20.0
    assert "Guo et al. 2017" in score.details["calibration"]["measure"]
    assert "ece" not in score_zero_shot(features, labels, classifier, {}).metrics
