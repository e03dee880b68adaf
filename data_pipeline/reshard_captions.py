"""Captions from elsewhere, added to samples or put in the place of theirs, while training shards are written.

They come as parquet files with a uid and a caption, or a list of captions, in any order: of a captioner, a translation,
a person. Each file is put in the global order of the samples once, so that a training shard, which is a range of that
order, reads its own captions and no others.

`add` leaves the .txt as it is, `replace` puts the first new caption there. Either way the new ones stand in the list
`captions` of the .json, and the page's own text stays in its field `text`: training may draw from all of them
(`data.captions=[{field: txt}, {field: "json:captions"}]`).
"""

import json
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import polars as pl

from crawl2clip import storage
from crawl2clip.errors import DataError
from data_pipeline.reshard_copies import copy_keys, numbered, open_copies
from data_pipeline.stage import Counts, Shard, Stage, finished_shards
from data_pipeline.subset import order_keys, uid_halves

FIELD = "captions"  # of the .json
_SCHEMA = pl.Schema({"key": pl.UInt64, "uid": pl.String, "captions": pl.List(pl.String)})
_ROWS_PER_GROUP = 10_000


class CaptionMode(Enum):
    """What becomes of a sample's own caption."""

    add = "add"  # it stays the .txt
    replace = "replace"  # the first new caption becomes the .txt


@dataclass
class CaptionsStage(Stage):
    """Puts each file of captions in the global order."""

    name: str
    folder: Path
    settings: dict[str, Any]
    sources: tuple[str, ...]
    uids: Path
    weights: Path | None
    seed: int

    def shards(self) -> list[Shard]:
        """One for each file."""
        return [Shard(f"{number:05d}", (path,)) for number, path in enumerate(self.sources)]

    def run(self, context: None, shard: Shard, temporary: Path) -> Counts:
        """Sorts one file; what is not wanted is left out."""
        (path,), counts = shard.inputs, Counts()
        table = _read(path)
        counts.rows_in = len(table)
        halves = uid_halves(table["uid"])
        wanted = open_copies(self.uids, self.weights, self.seed).of(halves)
        counts.dropped["not_in_subset"] = int((wanted == 0).sum())
        usable = (table["captions"].list.len() > 0).to_numpy()
        counts.dropped["no_caption"] = int(((wanted > 0) & ~usable).sum())
        rows, copies = numbered(wanted * usable)
        keys = copy_keys(order_keys(halves[rows], self.seed), copies)
        ordered = (
            table[rows].with_columns(key=pl.Series(keys, dtype=pl.UInt64)).select(_SCHEMA.names()).sort("key")
        )
        ordered.write_parquet(temporary / f"{shard.name}.parquet", row_group_size=_ROWS_PER_GROUP)
        counts.dropped = +counts.dropped
        counts.rows_out = counts.rows_in - counts.dropped.total()
        return counts


def _read(path: str) -> pl.DataFrame:
    """uid and the list of usable captions of each row."""
    try:
        table = pl.read_parquet(path, columns=["uid", "caption"])
        column = table["caption"]
        lists = (
            column
            if isinstance(column.dtype, pl.List)
            else column.cast(pl.String).reshape((-1, 1)).arr.to_list()
        )
        lists = lists.list.eval(pl.element().cast(pl.String).str.strip_chars())
        lists = lists.list.eval(pl.element().filter(pl.element().is_not_null() & (pl.element() != "")))
        return pl.DataFrame({"uid": table["uid"], "captions": lists.fill_null([])})
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"{path} cannot be read as captions ({str(error).splitlines()[0]}); give parquet with the columns uid and "
            "caption, a text or a list of texts"
        ) from error


@dataclass
class CaptionWriter:
    """The new captions of one training shard."""

    found: dict[tuple[int, str], list[str]]  # (key, uid) -> captions
    mode: CaptionMode

    def apply(self, key: int, uid: str, fields: dict[str, bytes], seen: Counter[str]) -> dict[str, bytes]:
        """The sample's members with its new captions.

        Args:
            key: of the sample's copy in the global order.
            uid: the sample's.
            fields: image, txt and json.
            seen: counts samples with and without new captions, and .json that was not an object.
        """
        captions = self.found.get((key, uid))
        if not captions:
            seen["without_new_caption"] += 1
            return fields
        seen["with_new_caption"] += 1
        try:
            described = json.loads(fields["json"])
        except (ValueError, RecursionError):
            described = None
        if not isinstance(described, dict):
            seen["json_replaced"] += 1
            described = {}
        before = described.get(FIELD)
        described[FIELD] = [*(before if isinstance(before, list) else []), *captions]
        text = captions[0].encode("utf-8", "replace") if self.mode == CaptionMode.replace else fields["txt"]
        written = json.dumps(described, ensure_ascii=False, sort_keys=True).encode("utf-8", "replace")
        return {**fields, "txt": text, "json": written}


def open_captions(folder: Path, first_key: int, last_key: int, mode: CaptionMode) -> CaptionWriter:
    """The captions of the samples in a range of the global order, files in the order in which they were named."""
    found: dict[tuple[int, str], list[str]] = {}
    low, high = pl.lit(first_key, pl.UInt64), pl.lit(last_key, pl.UInt64)
    for name in finished_shards(folder):
        storage.fetch(folder / f"{name}.parquet")
        rows = (
            pl.scan_parquet(folder / f"{name}.parquet").filter(pl.col("key").is_between(low, high)).collect()
        )
        for key, uid, captions in rows.select(_SCHEMA.names()).iter_rows():
            found.setdefault((key, uid), []).extend(captions)
    return CaptionWriter(found, mode)
