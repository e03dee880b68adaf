"""Reliability diagrams: how often predictions are right, against how sure they were (Guo et al. 2017, figure 1)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from evaluate.reports.axes import make_axis
from evaluate.reports.drawing import BOTTOM, LEFT, RIGHT, TOP, Drawing, Key
from evaluate.reports.markup import Html
from evaluate.reports.names import Models, model_key
from evaluate.reports.page import figure
from evaluate.results import Result

_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_FIELDS = ("confidence", "accuracy", "num")
Bin = tuple[float, float, int]  # mean confidence, accuracy, samples


def reliability_bins(result: Result) -> list[Bin]:
    """The bins that a result has in its details, empty when it has none or they are not readable."""
    calibration = result.details.get("calibration")
    bins = calibration.get("bins") if isinstance(calibration, dict) else None
    return sorted(_bin(entry) for entry in bins if _is_bin(entry)) if isinstance(bins, list) else []


def _is_bin(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    values = [entry.get(name) for name in _FIELDS]
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
        return False
    return all(0 <= entry[name] <= 1 for name in ("confidence", "accuracy"))


def _bin(entry: Mapping[str, Any]) -> Bin:
    return float(entry["confidence"]), float(entry["accuracy"]), int(entry["num"])


def reliability_figures(results: Sequence[Result], models: Models) -> list[Html]:
    """One figure a data set and task with calibration details."""
    cells: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if reliability_bins(result):
            cells.setdefault((result.dataset, result.task), []).append(result)
    return [_figure(dataset, task, cells[dataset, task], models) for dataset, task in sorted(cells)]


def _figure(dataset: str, task: str, results: Sequence[Result], models: Models) -> Html:
    drawn = Drawing(
        make_axis("confidence, percent", (0.0, 1.0), LEFT, RIGHT, percent=True, bounds=(0.0, 1.0), ticks=_TICKS),
        make_axis("accuracy, percent", (0.0, 1.0), BOTTOM, TOP, percent=True, bounds=(0.0, 1.0), ticks=_TICKS),
    )  # fmt: skip
    drawn.line([(0.0, 0.0), (1.0, 1.0)], note="confidence and accuracy agree")
    keys, rows, ends = [], [], []
    for result in results:
        key = model_key(result)
        number, name, bins = models.series(key), models.names[key], reliability_bins(result)
        drawn.line([(sure, right) for sure, right, _ in bins], series=number, note=name)
        for sure, right, num in bins:
            note = f"{name}: right {100 * right:.1f} at confidence {100 * sure:.1f}, {num} samples"
            drawn.mark(sure, right, series=number, note=note)
            rows.append((name, f"{100 * sure:.1f}", f"{100 * right:.1f}", str(num)))
        ece = result.metrics.get("ece")
        known = f", ECE {100 * ece.value:.1f}" if ece is not None and math.isfinite(ece.value) else ""
        keys.append(Key(number, models.legend_name(key) + known))
        ends.append((bins[-1][1], models.tag(key)))
    if models.numbered:
        drawn.ends(ends)
    return figure(
        drawn,
        heading=f"{dataset}: calibration of {task}",
        caption="Below the dashed line a model is surer than it is right. Bins with few samples jump by chance.",
        keys=keys,
        header=("model", "confidence", "accuracy", "samples"),
        rows=rows,
    )
