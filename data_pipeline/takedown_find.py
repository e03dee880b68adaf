"""The first step of a takedown: the rows that blocklists name, in tables of pairs and documents and in tars."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from crawl2clip.errors import DataError
from data_pipeline.blocked import Blocked, sort_blocklists
from data_pipeline.blocklist import HASH_DIGITS, OF_CONTENT, BlockKind
from data_pipeline.stage import Counts, Shard, Stage, finished_shards
from data_pipeline.taggers.hamming import HammingIndex
from data_pipeline.takedown_documents import images_of, is_documents
from data_pipeline.takedown_files import describe_tar
from data_pipeline.urls import page_base

REMOVED = pl.Schema({"uid": pl.String, "key": pl.String, "kind": pl.String, "shard": pl.String})
"""A row that goes: its uid (null where a sample has none), its key, the kind of entry that named it, and where it was
found. Nothing of its content."""
FILE_MARK = "file:"
"""Starts the name of an input, so that the frame does not hold it against the manifest of its folder: that of training
shards changes in the last step, and a takedown that is killed after it must go on."""
_NO_URL = "http://nothing.invalid/"
_NO_UID = "0" * 32
_UID = r"^[0-9a-f]{32}$"


class _Lists(NamedTuple):
    blocked: Blocked
    near: HammingIndex
    folder: ExitStack  # keeps the sorted lists


@dataclass
class FindStage(Stage):
    """Finds the rows that the lists name, in one table or tar at a time."""

    name: str
    folder: Path
    settings: dict[str, Any]
    sources: list[tuple[str, str]]  # (shard name, table of a raw shard or tar of training samples)
    blocklist: tuple[str, ...]
    phash_distance: int

    def shards(self) -> Iterator[Shard]:
        """One for each source."""
        for name, path in self.sources:
            yield Shard(name, (f"{FILE_MARK}{path}",))

    def setup(self) -> _Lists:
        """The lists, sorted."""
        stack = ExitStack()
        folder = stack.enter_context(TemporaryDirectory())
        blocked = sort_blocklists(self.blocklist, Path(folder))
        return _Lists(blocked, blocked.near(self.phash_distance), stack)

    def run(self, context: _Lists, shard: Shard, temporary: Path) -> Counts:
        """Writes the rows found."""
        source, counts = shard.inputs[0].removeprefix(FILE_MARK), Counts()
        columns = context.blocked.columns
        if source.endswith(".tar"):
            frame = describe_tar(Path(source), [*columns, "uid"] if "uid" not in columns else columns)
            counts.extra["samples_without_metadata"] = int((~frame["read"]).sum())
            judged = _cleaned(frame, columns)
        else:
            frame = _read_table(source, columns)
            judged = frame
        kinds = context.blocked.kinds(judged, context.near)
        hits = np.flatnonzero(kinds >= 0)
        names = [kind.value for kind in BlockKind]
        found = frame.select(
            pl.when(pl.col("uid").str.contains(_UID)).then("uid"),
            key=pl.col("key") if "key" in frame else "uid",
        )[hits]
        found = found.with_columns(
            kind=pl.Series([names[kind] for kind in kinds[hits]], dtype=pl.String), shard=pl.lit(shard.name)
        )
        found.cast(dict(REMOVED)).write_parquet(temporary / f"{shard.name}.parquet")  # pyright: ignore[reportArgumentType]
        counts.rows_in, counts.rows_out = len(frame), len(frame) - len(hits)
        for kind in kinds[hits]:
            counts.dropped[f"blocked_{names[kind]}"] += 1
        return counts


def _read_table(path: str, columns: list[str]) -> pl.DataFrame:
    """uid and columns of a table of pairs, or of the images of documents, and of the documents themselves."""
    try:
        scan = pl.scan_parquet(path)
        names = scan.collect_schema().names()
        if is_documents(names):
            documents = scan.select("uid", "images", url=pl.lit(_NO_URL)).collect()
            frame = pl.concat([images_of(documents), documents.select("uid", "url")])
            names = frame.columns
        else:
            frame = scan
        if "status" not in names:  # what was never fetched has no hashes
            frame = frame.with_columns(
                pl.lit(None, pl.String).alias(name) for name in columns if name not in names
            )
        return frame.lazy().select("uid", *columns).collect()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"{path} cannot be read with the columns uid, {', '.join(columns)} ({str(error).splitlines()[0]}); a "
            "takedown needs every table: restore the file, or remove its whole shard, and run it again"
        ) from error


def _cleaned(frame: pl.DataFrame, columns: list[str]) -> pl.DataFrame:
    """What strangers' metadata say, in the forms that lists are compared with."""
    cleaned = frame.with_columns(
        pl.when(pl.col("uid").str.contains(_UID)).then("uid").otherwise(pl.lit(_NO_UID)).alias("uid"),
        *[
            pl.when(pl.col(kind.value).str.contains(rf"^[0-9a-fA-F]{{{HASH_DIGITS[kind]}}}$")).then(
                pl.col(kind.value).str.to_lowercase()
            )
            for kind in OF_CONTENT
            if kind.value in columns
        ],
    )
    if "url" in columns:
        bases = [page_base(url, None) if url else None for url in frame["url"]]
        urls = [_NO_URL if base is None else base.href.partition("#")[0] for base in bases]
        cleaned = cleaned.with_columns(url=pl.Series(urls, dtype=pl.String))
    return cleaned


def read_found(folder: Path) -> pl.DataFrame:
    """All rows that were found, each once: the first kind that named it."""
    frames = [pl.read_parquet(folder / f"{name}.parquet") for name in finished_shards(folder)]
    return pl.concat([REMOVED.to_frame(), *frames]).unique(["uid", "key"], keep="first", maintain_order=True)
