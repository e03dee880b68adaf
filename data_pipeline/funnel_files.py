"""The funnel file by file: for every step of a stage a table with a row a shard and a column a reason.

`funnel/<step>.parquet` in the run's folder, such as `funnel/extract.parquet`, where a shard is one crawl file. It is
made anew from the completion markers whenever the stage has run, so its sums are the stage's numbers in `funnel.json`,
and the same output gives the same bytes. The surprising part: it lists every shard of the frozen manifest, those that
could not be made too, since a file that is missing from a table of files is what one looks for last.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from crawl2clip import storage
from crawl2clip.errors import DataError
from crawl2clip.files import atomic_path
from data_pipeline.completion import finished_names, listed_shards, read_stats
from data_pipeline.stage import Counts

FILE_FUNNEL = "funnel"
"""The folder of the tables, in the run's folder."""

FIXED_COLUMNS: dict[str, Any] = {
    "shard": pl.String,  # its name
    "input": pl.String,  # the first file it is made from; for extract the crawl file. Null when it has none
    "done": pl.Boolean,  # whether it is complete; if not, all numbers are 0
    "error": pl.String,  # why the last try of the latest run failed; null when it did not, or was not tried
    "rows_in": pl.Int64,
    "rows_out": pl.Int64,
    "seconds": pl.Float64,  # time inside the stage's `run`
}
"""The columns every table has. `dropped/<reason>` and `extra/<name>`, all Int64, come after them, sorted by name."""

_FILE_FAULT = "extra/file_"  # the faults of records.RecordFault that are about a whole file
_ROWS_AT_ONCE = 1000
_NAMED = 5  # files a step that are named in the terminal


def write_file_funnel(
    output_dir: Path, step: str, folder: Path, failed: Mapping[str, str], counts: Counts
) -> Path:
    """Writes the table of one step.

    Holds a thousand rows in memory, however many shards there are.

    Args:
        output_dir: the run's folder.
        step: the step's name, such as `extract` or `deduplicate/runs`.
        folder: where its shards are; its manifest is there.
        failed: shard -> why its last try failed, of the run that has just ended.
        counts: of that run, which say what columns there are.

    Returns:
        Where the table is.

    Raises:
        DataError: the manifest or a shard's stats are missing or broken.
    """
    path = output_dir / FILE_FUNNEL / f"{step}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    expected = {name for name, _ in _columns_of(counts)}
    found = _write_table(path, folder, failed, sorted(expected))
    if not found <= expected:  # another machine finished a shard after the run's last look
        _write_table(path, folder, failed, sorted(expected | found))
    storage.publish(path)
    return path


def _write_table(path: Path, folder: Path, failed: Mapping[str, str], counted: Sequence[str]) -> set[str]:
    """Writes the table with these columns besides the fixed ones; returns those that the shards have."""
    schema = pl.Schema({**FIXED_COLUMNS, **dict.fromkeys(counted, pl.Int64)})
    arrow_schema = schema.to_frame().to_arrow().schema
    found: set[str] = set()
    rows = _rows(folder, failed, counted, found)
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, arrow_schema, compression="zstd") as writer,
    ):
        while piece := list(islice(rows, _ROWS_AT_ONCE)):
            writer.write_table(pl.DataFrame(piece, schema, orient="row").to_arrow().cast(arrow_schema))
    return found


def _rows(
    folder: Path, failed: Mapping[str, str], counted: Sequence[str], found: set[str]
) -> Iterator[tuple[Any, ...]]:
    """The rows of the table; `found` gets the columns that the shards have besides the fixed ones."""
    finished = finished_names(folder)
    for shard in listed_shards(folder, {}):
        name, inputs = shard["name"], shard["inputs"]
        counts, seconds, done = Counts(), 0.0, name in finished
        if done:
            stats = read_stats(folder, name)
            counts, seconds = Counts.from_json(stats["counts"]), stats["seconds"]
        error = None if done else failed.get(name)
        numbers = dict(_columns_of(counts))
        found.update(numbers)
        fixed = name, inputs[0] if inputs else None, done, error, counts.rows_in, counts.rows_out, seconds
        yield *fixed, *(numbers.get(each, 0) for each in counted)


def _columns_of(counts: Counts) -> Iterator[tuple[str, int]]:
    for reason, number in counts.dropped.items():
        yield f"dropped/{reason}", number
    for name, number in counts.extra.items():
        yield f"extra/{name}", number


@dataclass(frozen=True)
class StepFiles:
    """The table of one step, read for a person.

    Attributes:
        step: its name.
        path: where the table is.
        shards: all shards.
        done: those that are complete.
        damaged: (shard, input, what is wrong with it) of those that are not complete and of those whose input was cut
            off or could not be read, in the stage's order.
        most_lost: (shard, rows in, rows dropped, its most frequent reason) of those that lost the largest part of
            their rows, most first; none where no row was dropped.
    """

    step: str
    path: Path
    shards: int
    done: int
    damaged: list[tuple[str, str | None, str]]
    most_lost: list[tuple[str, int, int, str]]


def read_step_files(output_dir: Path, order: Sequence[str], *, most_lost: int = 10) -> list[StepFiles]:
    """What the tables of a run say, stages in the given order; none when there are no tables yet.

    Raises:
        DataError: a table is damaged.
    """
    folder = output_dir / FILE_FUNNEL
    storage.fetch_all(folder)
    steps = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.parquet")}
    stages = {stage: number for number, stage in enumerate(order)}
    known = sorted(steps, key=lambda step: (stages.get(step.partition("/")[0], len(stages)), step))
    return [_read_step(step, steps[step], most_lost) for step in known]


def _read_step(step: str, path: Path, most_lost: int) -> StepFiles:
    try:
        table = pl.read_parquet(path)
        done = int(table["done"].sum())
        return StepFiles(step, path, len(table), done, list(_damaged(table)), _most_lost(table, most_lost))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"{path} cannot be read ({str(error).splitlines()[0]}); delete it and run the stage again: it is made anew "
            "from the shards that are there"
        ) from error


def _damaged(table: pl.DataFrame) -> Iterator[tuple[str, str | None, str]]:
    faults = [name for name in table.columns if name.startswith(_FILE_FAULT)]
    wrong = table.filter(
        ~pl.col("done") | pl.any_horizontal(pl.lit(False), *(pl.col(name) > 0 for name in faults))
    )
    for row in wrong.iter_rows(named=True):
        found = [name.removeprefix("extra/") for name in faults if row[name]]
        if not row["done"]:
            found = [f"not made: {row['error'] or 'not tried in the latest run'}"]
        yield row["shard"], row["input"], ", ".join(found)


def _most_lost(table: pl.DataFrame, number: int) -> list[tuple[str, int, int, str]]:
    reasons = [name for name in table.columns if name.startswith("dropped/")]
    if not reasons:
        return []
    lost = table.with_columns(lost=pl.sum_horizontal(reasons)).filter(pl.col("lost") > 0)
    part = pl.col("lost") / pl.col("rows_in").clip(1)
    worst = lost.sort(part, "lost", "shard", descending=[True, True, False]).head(number)
    return [
        (
            row["shard"],
            row["rows_in"],
            row["lost"],
            max(reasons, key=lambda name: row[name]).removeprefix("dropped/"),
        )
        for row in worst.iter_rows(named=True)
    ]


def file_summary(steps: Sequence[StepFiles]) -> str:
    """Where the tables are, and which files are damaged or missing, for the terminal; empty without tables."""
    if not steps:
        return ""
    lines = ["Funnel of every file, a row a shard and a column a reason:"]
    for each in steps:
        lines.append(f"  {each.path}  {each.done:,} of {each.shards:,} shards")
        for shard, source, wrong in each.damaged[:_NAMED]:
            lines.append(f"    {source or shard}: {wrong}")
        if len(each.damaged) > _NAMED:
            lines.append(
                f"    and {len(each.damaged) - _NAMED:,} more files that were cut off, unreadable or not made"
            )
    return "\n".join(lines)
