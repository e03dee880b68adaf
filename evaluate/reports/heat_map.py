"""The first thing to look at: every model on every data set, as a table that is coloured and still a table.

Colour runs from the chance level (or 0 where there is none) to 100 percent, so a pale cell has learnt little, on
two classes as on a thousand. Marks for PASS, WARN and FAIL are letters with their words behind, not colour alone.
"""

import math
from collections.abc import Mapping, Sequence

from evaluate.reports.markup import Html, element, join, scrolling
from evaluate.reports.names import ModelKey, model_key, natural
from evaluate.reports.rows import Row

_TASKS = (
    "average",
    "zero_shot",
    "multi_label",
    "retrieval",
    "selection",
    "winogavil",
    "linear_probe",
    "knn",
    "few_shot",
)
_FULL = 90  # percent of the heat colour at 100 percent, so that text keeps its contrast
_LYING_NAMES = 4  # more models than these have their names written upwards
CellKey = tuple[str, str, str]  # data set, task, metric


def heat_map(scored: Sequence[Row], names: Mapping[ModelKey, str]) -> Html:
    """A table with a row for each headline and a column for each model.

    Args:
        scored: rows of any number of models; the headlines among them are shown.
        names: of the models, in the order of the columns.
    """
    cells = {
        ((row.result.dataset, row.result.task, row.metric), model_key(row.result)): row
        for row in scored
        if row.metric == row.result.metric and not row.group
    }
    rows = sorted({cell for cell, _ in cells}, key=_order)
    style = "upright" if len(names) > _LYING_NAMES else "lying"
    head = element(
        "tr",
        element("th", "data set", scope="col"),
        element("th", "task, metric", scope="col"),
        *(
            element("th", element("span", name), scope="col", class_=style, title=name)
            for name in names.values()
        ),
    )
    body = [
        element(
            "tr",
            element("th", row[0], scope="row", title=row[0]),
            element("td", f"{row[1]}, {row[2]}", class_="none", style="text-align:left"),
            *_cells([cells.get((row, key)) for key in names], list(names.values())),
        )
        for row in rows
    ]
    best = "; the best of a row is underlined" if len(names) > 1 else ""
    caption = f"Headline of every data set, in percent{best}."
    grid = element(
        "table", element("caption", caption), element("thead", head), element("tbody", *body), class_="heat"
    )
    scale = element("div", "chance level", element("i", aria_hidden="true"), "100 percent", class_="scale")
    return join(scale, scrolling(grid, caption))


def _order(cell: CellKey) -> tuple[object, ...]:
    dataset, task, metric = cell
    place = _TASKS.index(task) if task in _TASKS else len(_TASKS)
    return place, natural(dataset), task, metric


def _cells(row: Sequence[Row | None], models: Sequence[str]) -> list[Html]:
    headlines = [scored.estimate for scored in row if scored is not None]
    values = [e.value for e in headlines if math.isfinite(e.value)]
    lower_is_better = any(e.unit == "rank" for e in headlines)
    best = (min(values) if lower_is_better else max(values)) if len(values) > 1 else None
    return [_cell(scored, model, best) for scored, model in zip(row, models, strict=True)]


def _cell(scored: Row | None, model: str, best: float | None) -> Html:
    if scored is None:
        return element("td", "–", class_="none", title=f"{model}: not scored")
    estimate, verdict = scored.estimate, scored.verdict
    if not math.isfinite(estimate.value):
        return element("td", "not a number", class_="none", title=f"{model}: the score is not a number")
    if estimate.unit == "rank":
        return element("td", f"{estimate.value:.1f}", class_="none", title=f"{model}: rank")
    chance = estimate.chance if estimate.chance is not None and estimate.chance < 1 else 0.0
    heat = _FULL * min(1.0, max(0.0, (estimate.value - chance) / (1 - chance)))
    note = f"{model}: {100 * estimate.low:.2f} to {100 * estimate.high:.2f}, n = {estimate.num}"
    mark = join()
    if verdict is not None:
        published, status = verdict.published, verdict.status.value
        note += (
            f"; published {published.percent:.2f} ({published.source}), {verdict.difference:+.2f}: {status}"
        )
        mark = join(element("abbr", status[0], class_=status, title=status))
    return element(
        "td",
        element("span", f"{100 * estimate.value:.1f}"),
        mark,
        class_="best" if estimate.value == best else None,
        style=f"--v:{heat:.1f}",
        title=note,
    )
