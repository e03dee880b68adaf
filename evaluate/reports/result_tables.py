"""The parts of the page that hold values beside published ones: what is off, and each model's tables."""

from collections.abc import Sequence

from evaluate.reports.markup import Html, element, join, table
from evaluate.reports.names import ModelKey, model_key
from evaluate.reports.page import counted, folded, listing, paragraph
from evaluate.reports.published import SOURCES
from evaluate.reports.rows import Row, shown_chance, shown_interval, shown_value
from evaluate.reports.verdicts import Status, Verdict

OPEN_TABLES = 3  # tables of more models than these are folded away
_HEADER = (
    "data set",
    "task",
    "metric",
    "value",
    "interval",
    "verdict",
    "difference",
    "published",
    "chance",
    "n",
)


def verdict_blocks(rows: Sequence[Row], names: dict[ModelKey, str]) -> list[Html]:
    """How many values agree with published ones, and what to check for those that do not."""
    found = [row for row in rows if row.verdict is not None]
    if not found:
        return [
            paragraph("The tables that ship here hold no published value for these models and data sets.")
        ]
    counts = {
        status: sum(r.verdict is not None and r.verdict.status is status for r in found) for status in Status
    }
    parts = [
        join(element("span", status.value, class_=status.value), f" {number}")
        for status, number in counts.items()
    ]
    text = paragraph(
        f"Of {counted(len(found), 'value')} with a published one beside: ",
        join(*(join(part, ", " if number + 1 < len(parts) else ".") for number, part in enumerate(parts))),
        " P, W and F in the table above stand for these.",
    )
    blocks = [text]
    for status in (Status.FAIL, Status.WARN):
        off = [
            (row, row.verdict) for row in found if row.verdict is not None and row.verdict.status is status
        ]
        if off:
            blocks.append(_what_is_off(off, names, status))
    return blocks


def _what_is_off(off: Sequence[tuple[Row, Verdict]], names: dict[ModelKey, str], status: Status) -> Html:
    """The values of one verdict with what to check; failures lie open, warnings are folded away."""
    rows = [
        (
            names[model_key(row.result)],
            v.dataset,
            f"{v.task}, {v.metric}",
            f"{v.value:.2f}",
            f"{v.published.percent:.2f}",
            element("span", f"{v.difference:+.2f}", class_=status.value),
            f"{v.tolerance.passes:.2f} / {v.tolerance.warns:.2f}",
            folded(
                "what to check",
                listing([*v.traps, *v.notes, f"Tolerance: {v.tolerance.source}."]),
            ),
        )
        for row, v in off
    ]
    header = ("model", "data set", "metric", "value", "published", "points off", "PASS / WARN up to", "")
    caption = f"{counted(len(off), 'value')} with {status.value}."
    grid = table(header, rows, caption=caption, numeric=range(3, 7))
    return grid if status is Status.FAIL else folded(caption, grid)


def result_tables(rows: Sequence[Row], names: dict[ModelKey, str]) -> list[Html]:
    """A table a model: the short one open, every metric and group folded away."""
    blocks = []
    for key, name in names.items():
        of_model = [row for row in rows if model_key(row.result) == key]
        short = _table([row for row in of_model if row.shown and not row.group], f"Headlines of {name}.")
        whole = _table(of_model, f"Every metric and group of {name}.")
        inside = join(short, folded(f"Every metric and group ({len(of_model)} rows)", whole))
        several = len(names) > OPEN_TABLES
        blocks.append(folded(name, inside) if several else join(element("h3", name), inside))
    sources = sorted({row.verdict.published.source for row in rows if row.verdict is not None})
    if sources:
        blocks.append(element("h3", "Sources of published values"))
        blocks.append(listing([join(element("strong", name), ": ", SOURCES[name]) for name in sources]))
    return blocks


def _table(rows: Sequence[Row], caption: str) -> Html:
    return table(_HEADER, [_line(row) for row in rows], caption=caption, numeric=(3, 4, 6, 7, 8, 9))


def _line(row: Row) -> tuple[object, ...]:
    r, e, v = row.result, row.estimate, row.verdict
    dataset = f"{r.dataset} [{row.group}]" if row.group else r.dataset
    metric = f"{row.metric} (rank)" if e.unit == "rank" else row.metric
    first = (dataset, r.task, metric, shown_value(e), shown_interval(e))
    last = (shown_chance(e), f"{e.num:,}")
    if v is None:
        return (*first, "", "", "", *last)
    status = element("span", v.status.value, class_=v.status.value)
    return (
        *first,
        status,
        f"{v.difference:+.2f}",
        f"{v.published.percent:.2f} ({v.published.source})",
        *last,
    )
