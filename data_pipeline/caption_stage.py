"""The frame of the taggers that read captions alone: a table for each raw shard, its rows in the raw shard's order."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import polars as pl

from data_pipeline.stage import Counts, Shard, Stage, stream_finished
from data_pipeline.tables import read_table


@dataclass
class CaptionStage(Stage):
    """Tags raw shards by their captions; writes `NAME.parquet`, one row for each stored pair."""

    name: str
    folder: Path
    settings: dict[str, Any]
    raw: Path  # the download stage's folder
    columns: ClassVar[dict[str, Any]]  # that are added, with their Polars types

    def shards(self) -> Iterator[Shard]:
        """One for each complete raw shard."""
        for name in stream_finished(self.raw):
            yield Shard(name, (str(self.raw / f"{name}.parquet"),))

    @abstractmethod
    def tag(self, context: Any, texts: list[str]) -> tuple[dict[str, Sequence[Any]], Counter[str]]:
        """The columns, a value for each caption, and what is worth counting.

        Args:
            context: what `setup` returned.
            texts: captions.
        """

    def run(self, context: Any, shard: Shard, temporary: Path) -> Counts:
        """Tags one raw shard."""
        pairs = read_table(shard.inputs[0], ["uid", "text"], stored_only=True)
        values, extra = self.tag(context, pairs["text"].to_list())
        table = pl.DataFrame({"uid": pairs["uid"], **values}, schema={"uid": pl.String, **self.columns})
        table.write_parquet(temporary / f"{shard.name}.parquet")
        return Counts(rows_in=len(pairs), rows_out=len(table), extra=extra)
