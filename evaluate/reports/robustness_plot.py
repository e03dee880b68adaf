"""Robustness scatter: accuracy on a shifted ImageNet against ImageNet, with the line of standard models."""

import math
from collections.abc import Sequence

from evaluate.reports.axes import Spacing, make_axis
from evaluate.reports.drawing import BOTTOM, LEFT, RIGHT, TOP, Drawing
from evaluate.reports.markup import Html, table
from evaluate.reports.names import ModelKey, Models
from evaluate.reports.page import figure, paragraph, side_by_side
from evaluate.reports.robustness import (
    SHIFTS,
    SOURCE,
    EffectiveRobustness,
    baseline,
    baseline_points,
    effective_robustness,
)
from evaluate.results import Result

_EDGE = 1e-4  # fractions nearer to 0 and 1 than this have no place on a logit axis


def robustness_blocks(results: Sequence[Result], models: Models) -> list[Html]:
    """A figure for each shift that a model with an ImageNet score has, and a table; empty without one."""
    found = [e for e in effective_robustness(results) if math.isfinite(e.accuracy)]
    if not found:
        return []
    text = paragraph(
        "Standard ImageNet models (grey rings) lie near a line on these axes. Effective robustness is how far a model "
        "is above that line, in points of percent, at its own ImageNet accuracy (Taori et al. 2020): moving along the "
        f"line is being better, leaving it is being more robust. Lines are fitted here on {SOURCE}."
    )
    shifts = [shift for shift in SHIFTS if any(e.shift == shift for e in found)]
    figures = [_figure(shift, [e for e in found if e.shift == shift], models) for shift in shifts]
    return [text, side_by_side(figures), _table(found, models)]


def key_of(point: EffectiveRobustness) -> ModelKey:
    """The model that a point is of."""
    return (point.model, point.pretrained or "", point.precision, point.weights_sha256 or "")


def _figure(shift: str, points: Sequence[EffectiveRobustness], models: Models) -> Html:
    standard = [(p.imagenet / 100, p.shift / 100, p.model) for p in baseline_points(shift) if p.shift > 0]
    across = [p.imagenet / 100 for p in points] + [x for x, _, _ in standard]
    upwards = [_inside(p.accuracy / 100) for p in points] + [y for _, y, _ in standard]
    bounds = (_EDGE, 1 - _EDGE)
    drawn = Drawing(
        make_axis(
            "ImageNet top-1, percent", [_inside(x) for x in across], LEFT, RIGHT, spacing=Spacing.logit,
            percent=True, bounds=bounds,
        ),
        make_axis(
            f"{shift} top-1, percent", upwards, BOTTOM, TOP, spacing=Spacing.logit, percent=True, bounds=bounds
        ),
    )  # fmt: skip
    for x, y, model in standard:
        drawn.mark(x, y, series=None, note=f"standard model {model}: {100 * y:.1f}")
    line = baseline(shift)
    for low, high in _pieces(line.bend, drawn.x.low, drawn.x.high):
        ends = [low + (high - low) * step / 40 for step in range(41)]
        on_line = [(x, line.at(100 * x) / 100) for x in ends]
        drawn.line([(x, y) for x, y in on_line if drawn.y.low <= y <= drawn.y.high], note="standard models")
    for point in points:
        key = key_of(point)
        name = models.names[key]
        drawn.mark(
            _inside(point.imagenet / 100),
            _inside(point.accuracy / 100),
            series=models.series(key),
            note=f"{name}: {point.accuracy:.2f} at {point.imagenet:.2f}, effective robustness {point.effective:+.2f}",
            label=models.tag(key),
        )
    bend = f" The trend bends at {line.bend:g}%." if line.bend is not None else ""
    extended = any(line.extrapolates(p.imagenet) for p in points)
    return figure(
        drawn,
        heading=shift,
        caption=f"Dashed: the line of {len(standard)} standard models.{bend}"
        + (" Beyond the grey rings it is extended, and says less." if extended else ""),
        keys=[],
        header=("model", "ImageNet", shift, "standard model", "effective robustness"),
        rows=[
            (
                models.names[key_of(p)],
                f"{p.imagenet:.2f}",
                f"{p.accuracy:.2f}",
                f"{p.expected:.2f}",
                f"{p.effective:+.2f}",
            )
            for p in points
        ],
    )


def _inside(fraction: float) -> float:
    return min(max(fraction, _EDGE), 1 - _EDGE)


def _pieces(bend: float | None, low: float, high: float) -> list[tuple[float, float]]:
    """Where each straight piece of the line begins and ends; fractions."""
    if bend is None or not low < bend / 100 < high:
        return [(low, high)]
    return [(low, bend / 100), (bend / 100 + 1e-6, high)]


def _table(found: Sequence[EffectiveRobustness], models: Models) -> Html:
    shifts = [shift for shift in SHIFTS if any(e.shift == shift for e in found)]
    of_model: dict[ModelKey, dict[str, float]] = {}
    for point in found:
        of_model.setdefault(key_of(point), {})[point.shift] = point.effective
    rows = []
    for key, effective in of_model.items():
        whole = len(effective) == len(SHIFTS)
        mean = f"{sum(effective.values()) / len(effective):+.2f}" if whole else ""
        rows.append(
            (models.names[key], *(f"{effective[s]:+.2f}" if s in effective else "" for s in shifts), mean)
        )
    return table(
        ("model", *shifts, "mean of five"),
        rows,
        caption="Effective robustness in points of percent.",
        numeric=range(1, len(shifts) + 2),
    )
