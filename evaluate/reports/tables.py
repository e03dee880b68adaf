"""The tables people read: Markdown for the terminal and results.md, CSV with a fixed order of columns and rows.

Both are made from `Result` objects alone, so a table can always be made again from the JSON files. Names come
from whoever made the model or the data: in Markdown they cannot open a cell or a tag, in CSV they cannot become
a formula of a spreadsheet.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from crawl2clip.files import atomic_path
from evaluate.reports.markup import clean
from evaluate.reports.names import model_key
from evaluate.reports.published import SOURCES
from evaluate.reports.rows import Row, in_order, rows_of, shown_chance, shown_interval, shown_value
from evaluate.reports.verdicts import Status
from evaluate.results import Result

CSV_COLUMNS = (
    "model", "pretrained", "precision", "dataset", "split", "task", "metric", "group", "value", "low", "high",
    "interval", "unit", "num", "chance", "published", "published_source", "difference_points", "pass_points",
    "warn_points", "verdict", "num_samples", "num_bad_images", "weights_sha256", "data_sha256", "prompts_sha256",
)  # fmt: skip
_FORMULA_STARTS = ("=", "+", "-", "@")
_MARKDOWN = str.maketrans({"\\": "\\\\", "|": "\\|", "`": "\\`", "<": "&lt;", "[": "\\[", "]": "\\]"})


def markdown_table(results: Sequence[Result]) -> str:
    """The short table, in percent: value, interval, chance, published value and verdict of each headline."""
    rows = rows_of(results)
    header = [
        "dataset",
        "task",
        "metric",
        "n",
        "value",
        "interval",
        "chance",
        "published",
        "difference",
        "verdict",
    ]
    if len({model_key(r) for r in results}) > 1:
        header.insert(0, "model")
    lines = [[_cell(row, name) for name in header] for row in rows if row.shown]
    return markdown_grid(header, lines) + _footnotes(results, rows)


def markdown_grid(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in a terminal, too; cells are escaped already."""
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]

    def joined(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "| " + " | ".join("-" * width for width in widths) + " |"
    return "\n".join([joined(header), rule, *map(joined, lines)]) + "\n"


def markdown_text(text: str) -> str:
    """A foreign text as Markdown that shows it and does nothing else."""
    return clean(text).translate(_MARKDOWN)


def _cell(row: Row, name: str) -> str:
    result, estimate, verdict = row.result, row.estimate, row.verdict
    if name == "model":
        return markdown_text(
            f"{result.model} {result.pretrained or ''} {result.precision}".replace("  ", " ")
        )
    if name == "dataset":
        group = f" [{markdown_text(row.group)}]" if row.group else ""
        return f"{markdown_text(result.dataset)}{group}"
    if name == "task":
        return markdown_text(result.task)
    if name == "metric":
        return markdown_text(row.metric)
    if name == "n":
        return str(estimate.num)
    if name == "value":
        return shown_value(estimate)
    if name == "interval":
        return shown_interval(estimate)
    if name == "chance":
        return shown_chance(estimate)
    if verdict is None:
        return ""
    if name == "published":
        return f"{verdict.published.percent:.2f} ({verdict.published.source})"
    return f"{verdict.difference:+.2f}" if name == "difference" else verdict.status.value


def _footnotes(results: Sequence[Result], rows: Sequence[Row]) -> str:
    judged = [row.verdict for row in rows if row.shown and row.verdict is not None]
    notes = [v.message for v in judged if v.status is not Status.PASS]
    notes += [f"{r.dataset} {r.task}: {note}" for r in results for note in r.notes]
    notes += [
        f"{r.dataset} {r.task}: {r.num_bad_images} images could not be decoded and are left out"
        for r in results
        if r.num_bad_images
    ]
    sources = sorted({verdict.published.source for verdict in judged})
    notes += [f"published, {name}: {SOURCES[name]}" for name in sources]
    kinds = "Values in percent; intervals are 95%, few-shot shows one standard deviation over its n seeds."
    if any(row.estimate.unit == "rank" for row in rows if row.shown):
        kinds += " Ranks count from 1, lower is better."
    return "\n" + "\n".join([kinds, *(f"- {markdown_text(note)}" for note in dict.fromkeys(notes))]) + "\n"


def csv_table(results: Sequence[Result]) -> str:
    """Every metric of every result as CSV, fractions in full precision.

    The same results give the same bytes in whatever order they come: rows are sorted by model, data set, task,
    metric and group.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in rows_of(in_order(results)):
        r, e, v = row.result, row.estimate, row.verdict
        names = (r.model, r.pretrained, r.precision, r.dataset, r.split, r.task, row.metric, row.group)
        published = (
            (v.published.percent, v.published.source, round(v.difference, 6), v.tolerance.passes, v.tolerance.warns,
             v.status.value)
            if v is not None
            else (None,) * 6
        )  # fmt: skip
        writer.writerow([
            *map(csv_text, names), e.value, e.low, e.high, e.interval, e.unit, e.num, e.chance, *published,
            r.num_samples, r.num_bad_images, r.weights_sha256, r.data_sha256, r.prompts_sha256,
        ])  # fmt: skip
    return out.getvalue()


def csv_text(text: str | None) -> str | None:
    """A name for a CSV cell: one line, and behind an apostrophe where a spreadsheet would run it as a formula."""
    if text is None:
        return None
    line = clean(text)
    return f"'{line}" if line.lstrip().startswith(_FORMULA_STARTS) else line


def write_tables(results: Sequence[Result], output_dir: Path) -> None:
    """Writes `<output_dir>/results.md` and `results.csv`."""
    for name, text in (("results.md", markdown_table(results)), ("results.csv", csv_table(results))):
        with atomic_path(output_dir / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
