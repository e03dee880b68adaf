"""The tables people read: Markdown for the terminal and results.md, CSV with a fixed column order.

Both are made from `Result` objects alone, so a table can always be made again from the JSON files.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from crawl2clip.files import atomic_path
from evaluate.intervals import Estimate
from evaluate.reports.published import SOURCES, published_values
from evaluate.results import Result

CSV_COLUMNS = (
    "model", "pretrained", "precision", "dataset", "split", "task", "metric", "group", "value", "low", "high",
    "interval", "num", "chance", "published", "published_source", "num_samples", "num_bad_images",
    "weights_sha256", "data_sha256", "prompts_sha256",
)  # fmt: skip


@dataclass(frozen=True)
class _Row:
    result: Result
    metric: str
    group: str  # "" for all samples
    estimate: Estimate

    @property
    def published(self) -> tuple[float, str] | None:
        """Percent and source, for all samples only."""
        if self.group:
            return None
        r = self.result
        found = published_values(r.model, r.pretrained, r.dataset, r.task, self.metric)
        return (found[0].percent, found[0].source) if found else None

    @property
    def shown(self) -> bool:
        """Whether the row belongs in the short table: headlines, retrieval and few-shot whole, what was published."""
        headline = self.metric == self.result.metric
        return headline or self.result.task in ("retrieval", "few_shot") or self.published is not None


def _rows(results: Sequence[Result]) -> Iterator[_Row]:
    for result in results:
        for metric, estimate in result.metrics.items():
            yield _Row(result, metric, "", estimate)
            for group in sorted(result.groups):
                if metric in result.groups[group]:
                    yield _Row(result, metric, group, result.groups[group][metric])


def markdown_table(results: Sequence[Result]) -> str:
    """The short table, in percent: value, interval, chance and published value of each headline."""
    several = len({(r.model, r.pretrained, r.precision) for r in results}) > 1
    header = ["dataset", "task", "metric", "n", "value", "interval", "chance", "published", "difference"]
    if several:
        header.insert(0, "model")
    lines = [[_cell(row, name) for name in header] for row in _rows(results) if row.shown]
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]

    def joined(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "| " + " | ".join("-" * width for width in widths) + " |"
    return "\n".join([joined(header), rule, *map(joined, lines)]) + "\n" + _footnotes(results)


def _cell(row: _Row, name: str) -> str:
    result, estimate, published = row.result, row.estimate, row.published
    if name == "model":
        return f"{result.model} {result.pretrained or ''} {result.precision}".replace("  ", " ")
    if name == "dataset":
        return f"{result.dataset} [{row.group}]" if row.group else result.dataset
    if name == "task":
        return result.task
    if name == "metric":
        return row.metric
    if name == "n":
        return str(estimate.num)
    if name == "value":
        return f"{100 * estimate.value:.2f}"
    if name == "interval":
        if estimate.interval == "seed_spread":
            return f"+-{100 * (estimate.high - estimate.value):.2f} sd"
        return f"{100 * estimate.low:.2f} to {100 * estimate.high:.2f}"
    if name == "chance":
        return "" if estimate.chance is None else f"{100 * estimate.chance:.2f}"
    if published is None:
        return ""
    if name == "published":
        return f"{published[0]:.2f} ({published[1]})"
    return f"{100 * estimate.value - published[0]:+.2f}"


def _footnotes(results: Sequence[Result]) -> str:
    notes = [f"{r.dataset} {r.task}: {note}" for r in results for note in r.notes]
    notes += [
        f"{r.dataset} {r.task}: {r.num_bad_images} images could not be decoded and are left out"
        for r in results
        if r.num_bad_images
    ]
    sources = sorted({row.published[1] for row in _rows(results) if row.shown and row.published})
    notes += [f"published, {name}: {SOURCES[name]}" for name in sources]
    kinds = "Values in percent; intervals are 95%, few-shot shows one standard deviation over its n seeds."
    return "\n" + "\n".join([kinds, *(f"- {note}" for note in dict.fromkeys(notes))]) + "\n"


def csv_table(results: Sequence[Result]) -> str:
    """Every metric of every result as CSV, fractions in full precision, rows in the order given."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in _rows(results):
        r, e, published = row.result, row.estimate, row.published
        writer.writerow([
            r.model, r.pretrained, r.precision, r.dataset, r.split, r.task, row.metric, row.group, e.value, e.low,
            e.high, e.interval, e.num, e.chance, *(published or (None, None)), r.num_samples, r.num_bad_images,
            r.weights_sha256, r.data_sha256, r.prompts_sha256,
        ])  # fmt: skip
    return out.getvalue()


def write_tables(results: Sequence[Result], output_dir: Path) -> None:
    """Writes `<output_dir>/results.md` and `results.csv`."""
    for name, text in (("results.md", markdown_table(results)), ("results.csv", csv_table(results))):
        with atomic_path(output_dir / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
