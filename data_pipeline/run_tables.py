"""The rows of a run: every stored pair with the columns asked for, from the download tables and the tags.

Rows are joined by uid, some raw shards at a time. Taggers write their rows in the order of the raw shard, so a join is
most often a comparison of two equal lists of uids; where they differ it is a real join, with nulls for what a tagger
has no row for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from crawl2clip import storage
from crawl2clip.errors import DataError
from data_pipeline.stage import finished_shards, is_finished
from data_pipeline.tables import read_table, read_tables

SHARDS_AT_ONCE = 32
BYTES_AT_ONCE = 64_000_000  # of download tables on disk


@dataclass(frozen=True)
class Batch:
    """The stored pairs of some raw shards, in their order."""

    frame: pl.DataFrame
    shards: list[tuple[str, int]]  # (raw shard, its number of rows)

    def parts(self, frame: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
        """(raw shard, its rows) of a frame with a row for each of this batch's."""
        start = 0
        for name, rows in self.shards:
            yield name, frame.slice(start, rows)
            start += rows


@dataclass
class RunTables:
    """What to read of a run."""

    raw: Path  # the download stage's folder
    tags: Path  # holds a folder for each tagger
    stored: Sequence[str]  # columns of the download table, without uid
    tagged: dict[str, list[str]] = field(default_factory=dict)  # tagger -> its columns to read, at least one
    _checked: bool = False  # uids were looked at in an earlier pass

    def inputs(self, asked_by: str) -> tuple[list[str], list[str]]:
        """(raw shards, every file that is read).

        Args:
            asked_by: who needs the tags, for the message.

        Raises:
            DataError: a tagger has not tagged every raw shard.
        """
        names = finished_shards(self.raw)
        inputs = [str(self.raw / f"{name}.parquet") for name in names]
        for tagger in self.tagged:
            missing = [name for name in names if not is_finished(self.tags / tagger, name)]
            if missing:
                raise DataError(
                    f"{asked_by} needs the columns of the {tagger} tagger, but {len(missing)} of "
                    f"{len(names)} raw shards have no {self.tags / tagger}/NAME.parquet (the first: {missing[0]}); run "
                    "stage=tag with the same settings"
                )
            inputs += [str(self.tags / tagger / f"{name}.parquet") for name in names]
        return names, inputs

    def batches(self) -> Iterator[Batch]:
        """All rows.

        Raises:
            DataError: a table is missing, damaged, lacks a column, or holds a uid twice.
        """
        for names in self._groups():
            frame, lengths = read_tables(
                self._paths(self.raw, names), ["uid", *self.stored], stored_only=True
            )
            for tagger, columns in self.tagged.items():
                frame = _joined(frame, lengths, self._paths(self.tags / tagger, names), columns)
            yield Batch(frame, list(zip(names, lengths, strict=True)))
        self._checked = True

    def _groups(self) -> Iterator[list[str]]:
        group: list[str] = []
        size = 0
        for name in finished_shards(self.raw):
            group.append(name)
            storage.fetch(self.raw / f"{name}.parquet")
            size += (self.raw / f"{name}.parquet").stat().st_size
            if len(group) == SHARDS_AT_ONCE or size > BYTES_AT_ONCE:
                yield group
                group, size = [], 0
        if group:
            yield group

    @staticmethod
    def _paths(folder: Path, names: Sequence[str]) -> list[Path]:
        return [folder / f"{name}.parquet" for name in names]


def _joined(frame: pl.DataFrame, lengths: list[int], paths: list[Path], columns: list[str]) -> pl.DataFrame:
    """The frame with the tags' columns, joined by uid, shard by shard."""
    tags, _ = read_tables(paths, ["uid", *columns], check_uids=False)
    if len(tags) == len(frame) and tags["uid"].equals(frame["uid"]):  # the frame's uids were checked
        return frame.hstack(tags.drop("uid"))
    parts, start = [], 0
    for path, rows in zip(paths, lengths, strict=True):
        tagged = read_table(path, ["uid", *columns])
        parts.append(frame.slice(start, rows).join(tagged, on="uid", how="left", maintain_order="left"))
        start += rows
    return pl.concat(parts)
