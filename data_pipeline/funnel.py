"""The funnel of a run: for every stage the rows in, the rows out, and where the others went.

Numbers come from the completion markers of the shards, so they are those of the output that is there,
whether one run made it or ten. Saved as `funnel.json` after every stage, printed as a table at the end.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from crawl2clip import storage
from crawl2clip.files import read_json, write_json
from data_pipeline.stage import Counts, StageReport

FUNNEL = "funnel.json"


@dataclass
class FunnelRow:
    """One stage of the pipeline, its steps together.

    Attributes:
        stage: its name.
        rows_in: rows its first step read.
        rows_out: rows its last step wrote.
        dropped: reason -> rows.
        extra: what else was counted.
        worker_seconds: time its shards took, summed over all workers and runs.
        rows_per_s: rows in for each of these seconds, so of one worker.
        wall_seconds: time that the last run which did anything for it spent in it.
        shards: complete shards.
        failed: shard -> why it could not be made in this run.
    """

    stage: str
    rows_in: int
    rows_out: int
    dropped: dict[str, int] = field(default_factory=dict)
    extra: dict[str, int] = field(default_factory=dict)
    worker_seconds: float = 0.0
    rows_per_s: float = 0.0
    wall_seconds: float = 0.0
    shards: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def funnel_row(stage: str, reports: Sequence[StageReport]) -> FunnelRow:
    """One row from the reports of a stage's steps, in order."""
    total = Counts()
    for report in reports:
        total.merge(report.counts)
    worker_seconds = sum(report.worker_seconds for report in reports)
    # Steps that only prepare, such as the sorting of a blocklist, read no rows.
    rows_in = next((report.counts.rows_in for report in reports if report.counts.rows_in), 0)
    return FunnelRow(
        stage,
        rows_in,
        reports[-1].counts.rows_out,
        dict(total.dropped.most_common()),
        dict(total.extra.most_common()),
        round(worker_seconds, 3),
        round(rows_in / worker_seconds, 1) if worker_seconds else 0.0,
        round(sum(report.seconds for report in reports if report.done or report.failed), 3),
        sum(report.done + report.skipped for report in reports),
        {name: error for report in reports for name, error in report.failed.items()},
    )


def update_funnel(output_dir: Path, order: Sequence[str], row: FunnelRow) -> list[FunnelRow]:
    """Puts a stage's row into the saved funnel, in place of its earlier one.

    Args:
        output_dir: the run's folder.
        order: all stages, as they run.
        row: the stage's row.

    Returns:
        The whole funnel.
    """
    path = output_dir / FUNNEL
    storage.fetch_newest(path)
    rows = {each["stage"]: FunnelRow(**each) for each in (read_json(path)["stages"] if path.exists() else [])}
    if row.wall_seconds == 0 and row.stage in rows:
        row.wall_seconds = rows[row.stage].wall_seconds
    rows[row.stage] = row
    funnel = [rows[name] for name in order if name in rows]
    write_json(path, {"stages": [asdict(each) for each in funnel]})
    storage.publish(path)
    return funnel


def funnel_table(rows: Sequence[FunnelRow]) -> str:
    """The funnel as a table for the terminal, with a line below a stage for each of its reasons."""
    header = ("stage", "rows in", "rows out", "kept", "seconds", "rows/s/worker")
    lines: list[tuple[str, ...]] = [header]
    for row in rows:
        kept = f"{row.rows_out / row.rows_in:.1%}" if row.rows_in else "-"
        numbers = (
            f"{row.rows_in:,}",
            f"{row.rows_out:,}",
            kept,
            f"{row.wall_seconds:,.1f}",
            f"{row.rows_per_s:,.0f}",
        )
        lines.append((row.stage, *numbers))
        lines += [
            (f"  {reason}", f"{-count:,}", "", "", "", "") for reason, count in row.dropped.items() if count
        ]
        lines += [(f"  failed: {name}: {error}", "", "", "", "", "") for name, error in row.failed.items()]
    short = [line for line in lines if any(line[1:])]
    widths = [max(len(line[column]) for line in short) for column in range(len(header))]
    formatted = []
    for line in lines:
        numbers = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        cells = [line[0].ljust(widths[0]), *numbers]
        formatted.append("  ".join(cells).rstrip())
    return "\n".join([formatted[0], "-" * len(formatted[0]), *formatted[1:]])
