"""Effective robustness: accuracy on a shifted ImageNet above what models trained on ImageNet have there.

Taori et al. 2020 (arXiv:2007.00644): the accuracies of standard ImageNet models on ImageNet and on a shift of it
lie on a line, drawn on logit axes. How far a model is above that line at its own ImageNet accuracy is its effective
robustness; a better model moves along the line, a more robust one leaves it.

`robustness_baseline.csv` holds 85 models from the paper's testbed and the line is fitted on them here, with the
testbed's own choice of models: type "standard training", at least 55% on ImageNet, none of its retrained variants
(names with aws, batch64 or subsample). The horizontal axis is accuracy on all 1,000 classes, one of the two the
testbed draws; the other, ImageNet restricted to the classes of A, R or ObjectNet, is no result of a suite here.
ImageNet-A was chosen to defeat a ResNet-50 of 76.13%, so its trend has two pieces, as in the testbed.
"""

import csv
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crawl2clip.errors import DataError, unknown_name
from evaluate.results import Result

SOURCE = (
    "github.com/modestyachts/imagenet-testbed robustness_top1s.csv at 0170eec (2023-08-05), MIT licence; "
    "Taori et al. 2020"
)
IMAGENET = "imagenet1k"
SHIFTS = ("imagenetv2", "imagenet_sketch", "imagenet-a", "imagenet-r", "objectnet")
BEND_PERCENT = {"imagenet-a": 76.13}  # ImageNet accuracy of the ResNet-50 that ImageNet-A was filtered with
_TABLE = Path(__file__).with_name("robustness_baseline.csv")


@dataclass(frozen=True)
class BaselinePoint:
    """A standard ImageNet model of the testbed, accuracies in percent."""

    model: str
    imagenet: float
    shift: float


@dataclass(frozen=True)
class Piece:
    """A straight line on logit axes, for ImageNet accuracies of one range."""

    slope: float
    intercept: float
    low: float  # percent of ImageNet accuracy of the models it is fitted on
    high: float
    num: int  # models
    r2: float  # share of the variance on the logit axis that the line explains


@dataclass(frozen=True)
class Baseline:
    """What a standard model of some ImageNet accuracy has on a shift."""

    shift: str
    pieces: tuple[Piece, ...]  # in order of ImageNet accuracy
    bend: float | None  # percent; where one piece ends and the other begins

    def piece_at(self, imagenet: float) -> Piece:
        """The line that is used at an ImageNet accuracy in percent."""
        return self.pieces[0] if self.bend is None or imagenet <= self.bend else self.pieces[-1]

    def at(self, imagenet: float) -> float:
        """Accuracy on the shift, percent, of a standard model with this ImageNet accuracy, percent.

        Raises:
            DataError: 0 or 100%, where a logit is infinite.
        """
        piece = self.piece_at(imagenet)
        return 100 / (1 + math.exp(-(piece.intercept + piece.slope * logit(imagenet))))

    def extrapolates(self, imagenet: float) -> bool:
        """Whether no standard model of the table is as low or as high as this."""
        return not self.pieces[0].low <= imagenet <= self.pieces[-1].high


@dataclass(frozen=True)
class EffectiveRobustness:
    """One model on one shift; percent and points of percent."""

    model: str
    pretrained: str | None
    precision: str
    weights_sha256: str | None
    shift: str
    imagenet: float
    accuracy: float  # on the shift
    expected: float  # of a standard model with the same ImageNet accuracy
    effective: float  # accuracy - expected
    notes: tuple[str, ...] = ()  # what makes the figure weak


def logit(percent: float) -> float:
    """log(p / (1 - p)) of a percentage.

    Raises:
        DataError: 0 or 100%, or outside of them.
    """
    if not 0 < percent < 100:
        raise DataError(
            f"an accuracy of {percent}% has no logit, so it has no place beside the robustness baseline; accuracies "
            "strictly between 0 and 100% have one"
        )
    return math.log(percent / (100 - percent))


@functools.cache
def baseline_points(shift: str) -> tuple[BaselinePoint, ...]:
    """The testbed's standard models on a shift, for a fit or a scatter.

    Raises:
        DataError: no shift of SHIFTS.
    """
    if shift not in SHIFTS:
        raise DataError(unknown_name("ImageNet shift with a baseline", shift, SHIFTS))
    with _TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return tuple(
        BaselinePoint(row["model"], float(row[IMAGENET]), float(row[shift])) for row in rows if row[shift]
    )


@functools.cache
def baseline(shift: str) -> Baseline:
    """The line of standard ImageNet models on a shift, by least squares on logit axes.

    Models at 0% have no logit and are left out: the ResNet-50 that ImageNet-A was filtered with.

    Raises:
        DataError: no shift of SHIFTS.
    """
    points = [point for point in baseline_points(shift) if point.shift > 0]
    bend = BEND_PERCENT.get(shift)
    if bend is None:
        return Baseline(shift, (_fit(points),), None)
    below, above = (
        [p for p in points if p.imagenet < bend],
        [p for p in points if p.imagenet > bend],
    )
    return Baseline(shift, (_fit(below), _fit(above)), bend)


def _fit(points: Sequence[BaselinePoint]) -> Piece:
    x = _logits([p.imagenet for p in points])
    y = _logits([p.shift for p in points])
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    intercept = float(y.mean() - slope * x.mean())
    left = y - intercept - slope * x
    r2 = 1 - float(left @ left) / float(((y - y.mean()) ** 2).sum())
    return Piece(
        slope, intercept, min(p.imagenet for p in points), max(p.imagenet for p in points), len(points), r2
    )


def _logits(percents: Sequence[float]) -> NDArray[np.float64]:
    return np.array([logit(percent) for percent in percents])


def effective_robustness(results: Sequence[Result]) -> list[EffectiveRobustness]:
    """Of every model that was scored on ImageNet and on a shift of it, zero-shot, by acc1.

    Args:
        results: any; others are passed over. A model without ImageNet gets none, since the line needs it.

    Returns:
        One entry a model and shift, models in the order they come in, shifts in the order of SHIFTS.
    """
    accuracies: dict[tuple[str | None, ...], dict[str, float]] = {}
    for result in results:
        if result.task == "zero_shot" and result.dataset in (IMAGENET, *SHIFTS) and "acc1" in result.metrics:
            key = (result.model, result.pretrained, result.precision, result.weights_sha256)
            accuracies.setdefault(key, {})[result.dataset] = 100 * result.metrics["acc1"].value
    found = []
    for (model, pretrained, precision, sha), of_model in accuracies.items():
        imagenet = of_model.get(IMAGENET)
        if imagenet is None or not 0 < imagenet < 100:
            continue
        for shift in SHIFTS:
            if shift in of_model:
                expected = baseline(shift).at(imagenet)
                found.append(
                    EffectiveRobustness(
                        model or "", pretrained, precision or "", sha, shift, imagenet, of_model[shift], expected,
                        of_model[shift] - expected, tuple(_notes(baseline(shift), imagenet)),
                    )
                )  # fmt: skip
    return found


def _notes(line: Baseline, imagenet: float) -> list[str]:
    notes = []
    if line.extrapolates(imagenet):
        notes.append(
            f"no standard model of the baseline has {imagenet:.1f}% on ImageNet (they have {line.pieces[0].low:.1f} to "
            f"{line.pieces[-1].high:.1f}%), so the line is extended"
        )
    piece = line.piece_at(imagenet)
    if piece.r2 < 0.8:
        notes.append(
            f"the line explains {100 * piece.r2:.0f}% of the variance of {piece.num} standard models on {line.shift}"
        )
    return notes
