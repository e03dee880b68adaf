"""What a row of the index can be filtered by: columns of the download table, of every tagger, and verdicts of recipes.

There are two kinds: numbers, and categories (texts, booleans, and lists of words). A column that names another pair,
such as `exact_duplicate_of`, becomes a yes or no: nobody filters by a uid.
"""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from data_pipeline.stage import is_finished, progress_of

BASE = {
    "domain": pl.col("url").str.extract(r"^https?://(?:[^/?#@]*@)?([^/:?#]+)", 1).str.to_lowercase(),
    "license": pl.col("license"),
    "page_language": pl.col("page_language").str.to_lowercase(),
    "crawl_month": pl.col("page_date").str.slice(0, 7),
    "text_source": pl.col("text_source"),
    "format": pl.col("format"),
    "short_side": pl.min_horizontal("original_width", "original_height"),
    "aspect_ratio": pl.max_horizontal("original_width", "original_height")
    / pl.min_horizontal("original_width", "original_height"),
    "text_length": pl.col("text").str.len_chars(),
    "bytes": pl.col("bytes"),
}
"""Columns made of the download table: name -> what each is."""

BASE_READ = (
    *("uid", "url", "text", "text_source", "license", "page_language", "page_date", "format", "bytes"),
    *("original_width", "original_height"),
)
"""What of the download table they are made of."""

DECISION = "decision_"
"""Starts the name of a recipe's verdict: `kept`, or the reason of the rule that a pair failed."""

KEPT = "kept"
_OTHER_PAIR = "_duplicate_of"


def taggers_of(tags: Path) -> list[str]:
    """The taggers that have tagged any shard, by name; a shard that one could not do has no values of it."""
    if not tags.is_dir():
        return []
    return sorted(path.name for path in tags.iterdir() if path.is_dir() and progress_of(path)[0])


def tag_tables(tags: Path, taggers: Sequence[str], shard: str) -> list[Path]:
    """The tables that taggers wrote for a shard."""
    return [tags / name / f"{shard}.parquet" for name in taggers if is_finished(tags / name, shard)]


def filter_columns(frame: pl.DataFrame) -> pl.DataFrame:
    """A tag table's columns in the form in which they are filtered by; `uid` stays.

    Float32 for numbers, text for categories; others (structures, binary) are left out.
    """
    columns = [pl.col("uid")]
    for name, kind in frame.schema.items():
        column = pl.col(name)
        if name == "uid":
            continue
        if name.endswith(_OTHER_PAIR):
            yes_or_no = pl.when(column.is_null()).then(pl.lit("no")).otherwise(pl.lit("yes"))
            columns.append(yes_or_no.alias(name.removesuffix("_of")))
        elif name == "contaminated_by":  # "<set>:<key of the image in it>"
            columns.append(column.str.split(":").list.first().alias(name))
        elif kind == pl.Boolean:
            columns.append(
                pl.when(column).then(pl.lit("true")).when(~column).then(pl.lit("false")).alias(name)
            )
        elif kind.is_numeric():
            columns.append(column.cast(pl.Float32, strict=False).fill_nan(None))
        elif isinstance(kind, pl.List) and kind.inner == pl.String:
            columns.append(column.list.sort().list.join(", ").alias(name))
        elif kind in (pl.String, pl.Categorical, pl.Enum):
            columns.append(column.cast(pl.String))
    return frame.select(columns)
