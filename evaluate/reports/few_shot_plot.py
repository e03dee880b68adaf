"""Few-shot curves: accuracy against training samples a class, with the spread over the draws of samples."""

import math
import re
from collections.abc import Mapping, Sequence

from evaluate.intervals import Estimate
from evaluate.reports.axes import Spacing, make_axis
from evaluate.reports.drawing import BOTTOM, LEFT, RIGHT, TOP, Drawing
from evaluate.reports.markup import Html
from evaluate.reports.names import ModelKey, Models, model_key
from evaluate.reports.page import figure
from evaluate.results import Result

_SHOTS = re.compile(r"acc1@([0-9]+)_shot")
Curve = list[tuple[int, Estimate]]


def few_shot_curve(result: Result) -> Curve:
    """(k, accuracy) of a few-shot result by growing k; values that are not finite are left out."""
    found = [(_SHOTS.fullmatch(metric), estimate) for metric, estimate in result.metrics.items()]
    curve = [(int(match[1]), e) for match, e in found if match and math.isfinite(e.value)]
    return sorted(curve, key=lambda point: point[0])


def few_shot_figures(results: Sequence[Result], models: Models) -> list[Html]:
    """One figure a data set with few-shot results."""
    datasets = sorted({r.dataset for r in results if r.task == "few_shot"})
    figures = []
    for dataset in datasets:
        of_dataset = [r for r in results if r.dataset == dataset]
        curves = {model_key(r): few_shot_curve(r) for r in of_dataset if r.task == "few_shot"}
        curves = {key: curve for key, curve in curves.items() if curve}
        zero = {
            model_key(r): r.metrics["acc1"].value
            for r in of_dataset
            if r.task == "zero_shot" and "acc1" in r.metrics and math.isfinite(r.metrics["acc1"].value)
        }
        if curves:
            figures.append(_figure(dataset, curves, zero, models))
    return figures


def _figure(
    dataset: str,
    curves: Mapping[ModelKey, Curve],
    zero: Mapping[ModelKey, float],
    models: Models,
) -> Html:
    shots = sorted({k for curve in curves.values() for k, _ in curve})
    zero = {key: value for key, value in zero.items() if key in curves}
    ends = [end for curve in curves.values() for _, e in curve for end in (e.low, e.value, e.high)]
    ends = [end for end in ends if math.isfinite(end)]
    drawn = Drawing(
        make_axis("training samples a class (k)", shots, LEFT, RIGHT, spacing=Spacing.log, ticks=shots),
        make_axis(
            "top-1 accuracy, percent", [*ends, *zero.values()], BOTTOM, TOP, percent=True, bounds=(0.0, 1.0)
        ),
    )
    last: list[tuple[float, str]] = []
    for key, curve in curves.items():
        number, name = models.series(key), models.names[key]
        edges = [(k, max(0.0, e.low), min(1.0, e.high)) for k, e in curve if math.isfinite(e.low + e.high)]
        drawn.line([(k, e.value) for k, e in curve], series=number, note=name)
        if not models.numbered and len(edges) > 1:
            drawn.band(edges, series=number)
        for k, low, high in edges if models.numbered or len(edges) == 1 else ():
            drawn.whisker(k, low, high, series=number)
        # Many curves are told apart by the numbers at their ends; marks on each of their points would hide them.
        for k, e in (curve[0], curve[-1]) if models.numbered else curve:
            drawn.mark(k, e.value, series=number, note=f"{name}, k = {k}: {_percent(e)}")
        last.append((curve[-1][1].value, models.tag(key)))
        if key in zero:
            note = f"{name}, zero-shot: {100 * zero[key]:.2f}"
            drawn.line(
                [(drawn.x.low, zero[key]), (drawn.x.steps(12)[1], zero[key])], series=number, note=note
            )
    drawn.ends(last if models.numbered else [])
    seeds = sorted({e.num for curve in curves.values() for _, e in curve})
    spread = "bars" if models.numbered else "areas"
    caption = (
        f"Mean over {' or '.join(map(str, seeds))} draws of the training samples; {spread} show one standard deviation "
        "over the draws, which says nothing about the size of the test set."
    )
    if zero:
        caption += " The short lines on the left are zero-shot scores of the same models."
    rows = [
        (models.names[key], *(_percent(dict(curve)[k]) if k in dict(curve) else "" for k in shots))
        for key, curve in curves.items()
    ]
    return figure(
        drawn,
        heading=f"{dataset}: few-shot",
        caption=caption,
        keys=[],
        header=("model", *(f"k = {k}" for k in shots)),
        rows=rows,
    )


def _percent(estimate: Estimate) -> str:
    if not math.isfinite(estimate.high):
        return f"{100 * estimate.value:.2f}"
    return f"{100 * estimate.value:.2f} ± {100 * (estimate.high - estimate.value):.2f}"
