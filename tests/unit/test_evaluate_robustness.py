"""Effective robustness against lines that the test fits for itself, and the notes of weak figures."""

import csv
from pathlib import Path

import numpy as np
import pytest

from crawl2clip.errors import DataError
from evaluate.intervals import wilson
from evaluate.reports import robustness
from evaluate.reports.robustness import (
    SHIFTS,
    baseline,
    baseline_points,
    effective_robustness,
    logit,
)
from evaluate.results import Result


def result(dataset: str, percent: float, **changes) -> Result:
    settings = {
        "model": "ViT-B-32", "pretrained": "openai", "weights_sha256": None, "precision": "fp32", "split": "test",
        "task": "zero_shot", "metric": "acc1", "metrics": {"acc1": wilson(round(100 * percent), 10_000)},
        "num_samples": 10_000,
    }  # fmt: skip
    return Result(dataset=dataset, **{**settings, **changes})


def table() -> list[dict[str, str]]:
    path = Path(robustness.__file__).with_name("robustness_baseline.csv")
    return list(csv.DictReader(path.open(encoding="utf-8")))


@pytest.mark.parametrize("shift", [shift for shift in SHIFTS if shift != "imagenet-a"])
def test_the_line_is_numpys_least_squares_on_logits(shift):
    rows = [(float(r["imagenet1k"]), float(r[shift])) for r in table() if r[shift]]
    x, y = (np.log(np.array(column) / (100 - np.array(column))) for column in zip(*rows, strict=True))
    slope, intercept = np.polyfit(x, y, 1)
    (piece,) = baseline(shift).pieces
    assert piece.num == len(rows)
    # Two ways to the same normal equations in float64.
    assert (piece.slope, piece.intercept) == (
        pytest.approx(slope, rel=1e-9),
        pytest.approx(intercept, rel=1e-9),
    )
    assert piece.r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2, rel=1e-9)


def test_imagenet_a_bends_at_the_model_it_was_filtered_with():
    line = baseline("imagenet-a")
    assert line.bend == 76.13
    assert [(piece.num, piece.high < 76.13) for piece in line.pieces] == [(33, True), (51, False)]
    assert line.pieces[0].slope < 1 < 5 < line.pieces[1].slope
    assert line.piece_at(70.0) is line.pieces[0]
    assert line.piece_at(80.0) is line.pieces[1]
    # The ResNet-50 itself has 0% by construction and no logit.
    assert ("resnet50", 76.13, 0.0) in {(p.model, p.imagenet, p.shift) for p in baseline_points("imagenet-a")}


def test_a_standard_model_has_no_effective_robustness():
    (resnet,) = (row for row in table() if row["model"] == "resnet101")
    results = [result(name, float(resnet[name])) for name in ("imagenet1k", "imagenetv2", "imagenet-r")]
    assert [abs(entry.effective) < 1.5 for entry in effective_robustness(results)] == [True, True]


def test_clip_is_above_the_line_by_what_the_line_says():
    """OpenAI's ViT-B-32: 63.33 on ImageNet, where standard models have about 50% on V2 and 25% on R."""
    results = [result("imagenet1k", 63.33), result("imagenet-r", 69.33), result("imagenetv2", 55.92)]
    v2, r = effective_robustness(results)
    assert (v2.shift, r.shift) == ("imagenetv2", "imagenet-r")  # in the order of SHIFTS
    assert v2.expected == pytest.approx(50.2, abs=0.1)
    assert v2.effective == pytest.approx(v2.accuracy - v2.expected)
    assert r.effective == pytest.approx(69.33 - 24.94, abs=0.05)
    assert (v2.notes, r.notes) == ((), ())


def test_what_cannot_be_placed_beside_the_line_is_left_out():
    assert effective_robustness([result("imagenetv2", 50.0)]) == []  # no ImageNet
    assert effective_robustness([result("imagenet1k", 0.0), result("imagenetv2", 50.0)]) == []
    probe = result("imagenetv2", 50.0, task="linear_probe")
    assert effective_robustness([result("imagenet1k", 60.0), probe]) == []
    with pytest.raises(DataError, match=r"an accuracy of 100% has no logit.*strictly between 0 and 100%"):
        logit(100)
    with pytest.raises(DataError, match="unknown ImageNet shift with a baseline 'imagenet-o'"):
        baseline("imagenet-o")


def test_models_are_kept_apart_and_weak_figures_say_so():
    results = [
        result("imagenet1k", 30.0, pretrained="ours"), result("imagenetv2", 25.0, pretrained="ours"),
        result("imagenet1k", 63.0), result("imagenet-a", 31.0), result("imagenet-a", 20.0, precision="bf16"),
    ]  # fmt: skip
    ours, openai = effective_robustness(results)
    assert (ours.pretrained, openai.pretrained) == ("ours", "openai")
    assert ours.notes == (
        "no standard model of the baseline has 30.0% on ImageNet (they have 56.5 to 84.7%), so the line is extended",
    )
    assert openai.notes == ("the line explains 39% of the variance of 33 standard models on imagenet-a",)
