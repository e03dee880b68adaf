"""The rows of a part of the index: a table on disk, sorted by uid, mapped and never loaded whole.

`NAME.rows.arrow` holds, for each pair, its uid in two halves, what a result shows (url, text), where its embedding and
its image lie (shard, row, byte offset), and the columns it can be filtered by: numbers as they are, categories as
codes into `NAME.values.<column>.arrow`, which has each value once, sorted. A row's number in the whole index is the
part's base plus its place here; a uid is found by binary search.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from crawl2clip.errors import DataError
from data_pipeline.subset import uid_halves

PLACES = {
    "shard": pl.UInt32,  # number in the part's list of shards
    "embedding_row": pl.UInt32,  # in the shard's embeddings
    "image_offset": pl.Int64,  # bytes from the start of the tar; null: no image is there
    "image_bytes": pl.Int64,
    "image_extension": pl.UInt8,  # number in stored_images.IMAGE_FORMATS
}
"""Where the rest of a pair is."""

_SHOWN = ("url", "text")
_FIXED = ("uid_high", "uid_low", *_SHOWN, *PLACES)


def write_rows(frame: pl.DataFrame, stem: Path) -> None:
    """Writes `<stem>.rows.arrow` and `<stem>.values.<column>.arrow`.

    Args:
        frame: uid, url, text, the columns of PLACES, and those to filter by; any order, each uid once.
        stem: folder and name of the part.
    """
    halves = uid_halves(frame["uid"])
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    frame, halves = frame[order], halves[order]
    columns: dict[str, pa.Array] = {
        "uid_high": pa.array(halves[:, 0]),
        "uid_low": pa.array(halves[:, 1]),
        **{name: frame[name].to_arrow().cast(pa.large_string()) for name in _SHOWN},
        **{name: frame[name].cast(kind).to_arrow() for name, kind in PLACES.items()},
    }
    for name in frame.columns:
        if name in ("uid", *_FIXED):
            continue
        if frame.schema[name] == pl.String:
            columns[name] = _coded(frame[name], stem)
        else:
            columns[name] = frame[name].cast(pl.Float32).to_arrow()
    _write(pa.table(columns), Path(f"{stem}.rows.arrow"))


def _coded(values: pl.Series, stem: Path) -> pa.Array:
    """The codes of a column's values, which get a file of their own."""
    distinct = values.drop_nulls().unique().sort()
    path = Path(f"{stem}.values.{values.name}.arrow")
    _write(pa.table({"value": distinct.to_arrow().cast(pa.large_string())}), path)
    codes = pl.DataFrame({"value": distinct, "code": np.arange(len(distinct), dtype=np.uint32)})
    joined = values.to_frame("value").join(codes, on="value", how="left", maintain_order="left")
    return joined["code"].to_arrow()


def _write(table: pa.Table, path: Path) -> None:
    """One record batch, uncompressed, so that a column is one piece of the file and can be mapped."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=max(len(table), 1))


def _map(path: Path) -> pa.Table:
    try:
        with pa.memory_map(str(path)) as file:  # the mapping stays, without a file descriptor
            return pa.ipc.open_file(file).read_all()
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read ({str(error).splitlines()[0]}); delete the folder index/ and run stage=index again"
        ) from error


@dataclass(frozen=True)
class PartRows:
    """A part's rows, open."""

    folder: Path
    name: str
    base: int  # number of its first row in the whole index
    shards: list[str]

    @cached_property
    def table(self) -> pa.Table:
        """Every column, mapped."""
        return _map(self.folder / f"{self.name}.rows.arrow")

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def names(self) -> frozenset[str]:
        """Of all its columns."""
        return frozenset(self.table.column_names)

    @cached_property
    def categories(self) -> frozenset[str]:
        """The columns to filter by that have codes; the others have numbers."""
        return frozenset(name for name, kind in self.numbers.schema.items() if kind == pl.UInt32)

    @cached_property
    def numbers(self) -> pl.DataFrame:
        """The columns to filter by, codes for categories; it points into the mapped file."""
        frame = pl.from_arrow(self.table.drop_columns(list(_FIXED)), rechunk=False)
        assert isinstance(frame, pl.DataFrame)
        return frame

    def is_category(self, column: str) -> bool:
        """Whether a column to filter by has codes; else it has numbers."""
        return column in self.categories

    def values(self, column: str) -> pa.Array:
        """The values of a category, sorted; a code is a position here."""
        cached = self._values.get(column)
        if cached is None:
            chunks = _map(self.folder / f"{self.name}.values.{column}.arrow")["value"].chunks
            cached = chunks[0] if chunks else pa.array([], pa.large_string())
            self._values[column] = cached
        return cached

    @cached_property
    def _values(self) -> dict[str, pa.Array]:
        return {}

    @cached_property
    def _highs(self) -> np.ndarray:
        return self.column("uid_high").to_numpy()

    def column(self, name: str) -> pa.Array:
        """A column in one piece."""
        chunks = self.table[name].chunks
        return chunks[0] if chunks else pa.array([], self.table.schema.field(name).type)

    def find(self, high: int, low: int) -> int | None:
        """The place of a uid in this part; None when it is not here."""
        lows = self.column("uid_low")
        place = int(np.searchsorted(self._highs, np.uint64(high)))
        while place < len(self) and int(self._highs[place]) == high:
            if lows[place].as_py() == low:
                return place
            place += 1
        return None

    def take(self, places: np.ndarray, columns: Sequence[str]) -> dict[str, list[Any]]:
        """Some rows, by column: `uid`, and the columns named, categories as their values.

        Plain lists: a page has forty rows, and starting a query engine for them costs more than reading them.
        """
        where = pa.array(np.asarray(places, np.int64))
        taken: dict[str, list[Any]] = {"uid": self.uids(places)}
        for name in columns:
            values = self.column(name).take(where)
            if name in self.categories:
                values = self.values(name).take(values)
            taken[name] = values.to_pylist()
        return taken

    def uids(self, places: np.ndarray) -> list[str]:
        """The uids of some rows, 32 hex digits each."""
        where = pa.array(np.asarray(places, np.int64))
        highs, lows = self.column("uid_high").take(where), self.column("uid_low").take(where)
        return [
            f"{high:016x}{low:016x}" for high, low in zip(highs.to_pylist(), lows.to_pylist(), strict=True)
        ]
