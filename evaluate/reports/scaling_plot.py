"""Scaling-law figures: error of several checkpoints against training compute, with the published grid beside."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evaluate.reports.axes import Spacing, make_axis
from evaluate.reports.drawing import BOTTOM, LEFT, RIGHT, TOP, Drawing
from evaluate.reports.markup import Html, table
from evaluate.reports.names import ModelKey, Models, model_key
from evaluate.reports.page import figure, paragraph, side_by_side
from evaluate.reports.scaling import MIN_POINTS, PowerLaw, fit_power_law, pareto_frontier
from evaluate.reports.training_compute import GRID_SOURCE, published_grid, training_of
from evaluate.results import Result

MAX_FIGURES = 6  # further data sets are in the table of exponents only
# Column of scaling.csv -> data set, task and metric of our result.
GRID_CELLS = {
    "imagenet1k_acc1": ("imagenet1k", "zero_shot", "acc1"),
    "imagenet_robustness_acc1": ("imagenet_robustness", "average", "acc1"),
    "vtab_plus_acc1": ("vtab_plus", "average", "acc1"),
    "mscoco_image_retrieval_recall@5": ("mscoco_captions", "retrieval", "image_retrieval_recall@5"),
}  # fmt: skip
_TASKS = ("zero_shot", "average", "retrieval")


@dataclass(frozen=True)
class Checkpoint:
    """One point of a scaling figure."""

    key: ModelKey
    compute: float
    error: float


@dataclass(frozen=True)
class Cell:
    """A metric on a data set and the checkpoints that have it."""

    dataset: str
    task: str
    metric: str
    axis: str  # what `compute` counts
    points: list[Checkpoint]
    grid: str | None  # column of the published grid; None when it has none, or the axes differ

    @property
    def front(self) -> list[tuple[float, float]]:
        """The points that a line is fitted to."""
        return pareto_frontier([(p.compute, p.error) for p in self.points])

    def law(self) -> PowerLaw | None:
        """The fit; None where there are too few points on the frontier."""
        front = self.front
        if len(front) < MIN_POINTS:
            return None
        return fit_power_law([c for c, _ in front], [e for _, e in front])


def scaling_cells(results: Sequence[Result]) -> list[Cell]:
    """Every metric that at least two checkpoints of known compute have; those of the published grid first.

    Where the size of a model is not known, checkpoints are compared by samples seen, which is the same up to a
    factor as long as they are of one architecture; others are left out.
    """
    wanted = {(r.dataset, r.task, r.metric) for r in results if r.task in _TASKS} | {
        cell for cell in GRID_CELLS.values() if any((r.dataset, r.task) == cell[:2] for r in results)
    }
    columns = {cell: column for column, cell in GRID_CELLS.items()}
    found = []
    for dataset, task, metric in sorted(
        wanted, key=lambda cell: (cell not in columns, cell[1] != "average", cell)
    ):
        own = [r for r in results if (r.dataset, r.task) == (dataset, task) and metric in r.metrics]
        axis, points = _points(own, metric)
        if len(points) >= 2:
            grid = columns.get((dataset, task, metric)) if axis == "GMACs" else None
            found.append(Cell(dataset, task, metric, axis, points, grid))
    return found


def _points(results: Sequence[Result], metric: str) -> tuple[str, list[Checkpoint]]:
    trained = [(r, training) for r in results if (training := training_of(r)) is not None]
    sized = all(training.gmacs is not None for _, training in trained)
    axis = "GMACs" if sized else "samples seen"
    if not sized and len({r.model for r, _ in trained}) > 1:
        axis, trained = "GMACs", [(r, t) for r, t in trained if t.gmacs is not None]
    points = []
    for result, training in trained:
        estimate = result.metrics[metric]
        compute = training.compute if axis == "GMACs" else training.samples_seen
        if compute is not None and estimate.unit == "fraction" and 0 <= estimate.value < 1:
            points.append(Checkpoint(model_key(result), compute, 1 - estimate.value))
    return axis, points


def scaling_blocks(results: Sequence[Result], models: Models) -> list[Html]:
    """Figures of the first cells and a table of all exponents; empty without two checkpoints to compare."""
    cells = scaling_cells(results)
    if not cells:
        return []
    text = paragraph(
        "Error = a × compute^b, fitted on the logarithms to the checkpoints that none beats with as little compute "
        "(the Pareto frontier, as in Cherti et al. 2023). Compute is samples seen × multiply-adds a sample (GMACs), "
        "forward passes only. The interval of b takes the points as independent and the frontier as given; "
        "checkpoints of one run are not independent, and a frontier picks lucky points, so the truth is less sure. "
        "A law without a floor says nothing far beyond the points it was fitted to."
    )
    figures = [_figure(cell, models) for cell in cells[:MAX_FIGURES]]
    rows = [_exponent_row(cell) for cell in cells]
    header = ("data set", "metric", "checkpoints", "on the frontier", "a", "b", "95% of b", "R²", "scatter")
    exponents = table(
        header,
        rows,
        caption="Fitted laws. Scatter: how far the frontier's errors are from the line (standard deviation, percent).",
        numeric=range(2, len(header)),
    )
    return [text, side_by_side(figures), exponents]


def _exponent_row(cell: Cell) -> tuple[object, ...]:
    law, counts = cell.law(), (len(cell.points), len(cell.front))
    if law is None:
        return (cell.dataset, cell.metric, *counts, "", "", f"no fit below {MIN_POINTS}", "", "")
    interval = f"{law.b_low:.3f} to {law.b_high:.3f}"
    scatter = f"{100 * math.expm1(law.residual):.1f}%"
    return (
        cell.dataset,
        cell.metric,
        *counts,
        f"{law.a:.3g}",
        f"{law.b:.3f}",
        interval,
        f"{law.r2:.3f}",
        scatter,
    )


def _figure(cell: Cell, models: Models) -> Html:
    grid = (
        [(g.name, g.compute, 1 - g.percents[cell.grid] / 100) for g in published_grid()] if cell.grid else []
    )
    law = cell.law()
    errors = [p.error for p in cell.points] + [e for _, _, e in grid]
    computes = [p.compute for p in cell.points] + [c for _, c, _ in grid]
    unit = "training compute, GMACs" if cell.axis == "GMACs" else "samples seen in training"
    drawn = Drawing(
        make_axis(unit, computes, LEFT, RIGHT, spacing=Spacing.log),
        make_axis(
            f"error of {cell.metric}, percent", errors, BOTTOM, TOP, spacing=Spacing.log, percent=True,
            bounds=(0.0, 1.0),
        ),
    )  # fmt: skip
    for name, compute, error in grid:
        drawn.mark(compute, error, series=None, note=f"published, {name}: {100 * error:.2f}")
    if law is not None:
        within = [law.lowest, *(c for c in drawn.x.steps(60) if law.lowest < c < law.highest), law.highest]
        drawn.band([(c, *law.band(c)) for c in within])
        drawn.line([(c, law.at(c)) for c in within], note=f"b = {law.b:.3f}")
    for point in cell.points:
        note = f"{models.names[point.key]}: error {100 * point.error:.2f} at {point.compute:.3g}"
        number, tag = models.series(point.key), models.tag(point.key)
        drawn.mark(point.compute, point.error, series=number, note=note, label=tag)
    ordered = sorted(cell.points, key=lambda point: point.compute)
    return figure(
        drawn,
        heading=f"{cell.dataset}: scaling",
        caption=_caption(cell, law, bool(grid)),
        keys=[],
        header=("model", cell.axis, "error, percent"),
        rows=[(models.names[p.key], f"{p.compute:.3g}", f"{100 * p.error:.2f}") for p in ordered],
    )


def _caption(cell: Cell, law: PowerLaw | None, grid: bool) -> str:
    if law is None:
        text = (
            f"{len(cell.front)} of {len(cell.points)} checkpoints are on the frontier; a line and its error need "
            f"{MIN_POINTS}, so none is drawn."
        )
    else:
        text = (
            f"b = {law.b:.3f} (95% {law.b_low:.3f} to {law.b_high:.3f}) from {law.num} of {len(cell.points)} "
            "checkpoints; the area is the 95% prediction for one more."
        )
    return f"{text} Grey rings: {GRID_SOURCE}." if grid else text
