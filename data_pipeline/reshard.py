"""The reshard stage: from a list of uids to training shards of equal size, in one global random order.

Four steps, each a stage of the frame. `reshard/index` notes, for each raw shard, where the wanted samples lie.
`reshard/plan` puts all of them in the order of a keyed hash of their uid. `reshard/write` writes the training
shards, each from its slice of the plan, reading the raw tars by position: one sample in memory, a bounded number of
open files. `reshard/publish` makes them the data set `shards/`, tars and manifest, in one rename.

The order depends on the uids and the seed alone, not on how the raw shards were cut or which worker was first, so the
same subset gives the same bytes. The plan sorts PLAN_ROWS samples at a time, about 1 GB, and reads the index once for
each such range of keys.
"""

import os
import shutil
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from omegaconf import MISSING

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import atomic_path, sha256_of
from crawl2clip.logs import provenance
from crawl2clip.shards import (
    MANIFEST_NAME,
    ShardEntry,
    ShardFault,
    ShardWriter,
    index_shard,
    read_manifest,
    write_manifest,
)
from data_pipeline import storage
from data_pipeline.select import UIDS_NAME
from data_pipeline.stage import Counts, Shard, Stage, finished_shards, is_finished, read_stats
from data_pipeline.stored_images import image_extension
from data_pipeline.subset import is_in_subset, open_uids, order_keys, uid_halves
from data_pipeline.tables import read_table

if TYPE_CHECKING:
    from data_pipeline.config import PipelineConfig

PLAN_NAME = "plan"
PUBLISHED_NAME = "publish"
PLAN_ROWS = 4_000_000  # 200 bytes each while they are sorted
MAX_OPEN_FILES = 64

INDEX_SCHEMA = pl.Schema(
    {
        "key": pl.UInt64,  # where the sample comes in the global order
        "uid": pl.String,
        "shard": pl.String,  # raw shard
        "image_extension": pl.String,
        "image_offset": pl.UInt64,  # bytes from the start of the raw tar
        "image_size": pl.UInt32,  # bytes
        "text_offset": pl.UInt64,
        "text_size": pl.UInt32,
        "json_offset": pl.UInt64,
        "json_size": pl.UInt32,
    }
)
"""Where a wanted sample lies. The plan has the same columns, all shards together, in the global order."""


@dataclass(kw_only=True, slots=True)
class ReshardConfig:
    """Training shards."""

    samples_per_shard: int = MISSING  # at most; shards are equal to within one sample
    seed: int = MISSING  # of the global order
    uids: str | None = None  # a DataComp subset file (.npy) in place of what stage=select wrote

    def __post_init__(self) -> None:
        if isinstance(self.samples_per_shard, int) and self.samples_per_shard < 1:
            raise ConfigError(
                f"reshard.samples_per_shard is {self.samples_per_shard}; give 1 or more samples"
            )


@dataclass
class IndexStage(Stage):
    """Notes where the wanted samples of each raw shard lie."""

    name: str
    folder: Path
    settings: dict[str, Any]
    raw: Path
    uids: Path
    seed: int

    def shards(self) -> list[Shard]:
        """One for each complete raw shard."""
        open_uids(self.uids)
        return [
            Shard(name, (str(self.raw / f"{name}.tar"), str(self.raw / f"{name}.parquet"), str(self.uids)))
            for name in finished_shards(self.raw)
        ]

    def setup(self) -> np.ndarray:
        """The wanted uids, mapped from disk."""
        return open_uids(self.uids)

    def run(self, context: np.ndarray, shard: Shard, temporary: Path) -> Counts:
        """Indexes one raw shard."""
        counts = Counts()

        def count_fault(fault: ShardFault) -> None:
            counts.extra[f"shard_{fault.reason}"] += 1

        tar, table, _ = shard.inputs
        stored = read_table(table, ["uid"], stored_only=True)["uid"]
        wanted = set(stored.filter(pl.Series(is_in_subset(uid_halves(stored), context), dtype=pl.Boolean)))
        rows = []
        for sample in index_shard(tar, count_fault):
            if sample.key not in wanted:
                continue
            image = image_extension(sample.fields)
            if image is None or "txt" not in sample.fields or "json" not in sample.fields:
                counts.dropped["incomplete_sample"] += 1
                continue
            places = [number for name in (image, "txt", "json") for number in sample.fields[name]]
            rows.append((0, sample.key, shard.name, image, *places))
        index = pl.DataFrame(rows, schema=INDEX_SCHEMA, orient="row")
        keys = pl.Series("key", order_keys(uid_halves(index["uid"]), self.seed), dtype=pl.UInt64)
        index.with_columns(keys).write_parquet(temporary / f"{shard.name}.parquet")
        counts.rows_in, counts.rows_out = len(wanted), len(index)
        lost = len(wanted) - len(index) - counts.dropped["incomplete_sample"]
        if lost:
            counts.dropped["not_in_tar"] += lost
        return counts


@dataclass
class PlanStage(Stage):
    """Puts the wanted samples of all raw shards in the global order."""

    name: str
    folder: Path
    settings: dict[str, Any]
    index: Path
    samples_per_shard: int
    max_workers: int | None = 1

    def shards(self) -> list[Shard]:
        """One: the order is global."""
        names = finished_shards(self.index)
        return (
            [Shard(PLAN_NAME, tuple(str(self.index / f"{name}.parquet") for name in names))] if names else []
        )

    def run(self, context: None, shard: Shard, temporary: Path) -> Counts:
        """Sorts the index."""
        index = pl.scan_parquet(list(shard.inputs), schema=INDEX_SCHEMA)
        rows = sum(pq.read_metadata(path).num_rows for path in shard.inputs)
        path = temporary / f"{PLAN_NAME}.parquet"
        with pq.ParquetWriter(path, INDEX_SCHEMA.to_frame().to_arrow().schema, compression="zstd") as writer:
            for low, high in key_ranges(-(-rows // PLAN_ROWS)):
                part = index.filter(pl.col("key").is_between(pl.lit(low, pl.UInt64), pl.lit(high, pl.UInt64)))
                table = part.sort("key", "uid").collect().to_arrow().cast(writer.schema)
                writer.write_table(table, row_group_size=self.samples_per_shard)
        return Counts(rows_in=rows, rows_out=rows)


def key_ranges(count: int) -> list[tuple[int, int]]:
    """All 64-bit keys as `count` ranges of equal width, (first, last), in order."""
    bounds = [number * 2**64 // count for number in range(count + 1)] if count else []
    return [(low, high - 1) for low, high in pairwise(bounds)]


@dataclass
class WriteStage(Stage):
    """Writes the training shards. Samples are read where they lie: in a store, each is a few requests for ranges."""

    shares_inputs = True  # the plan

    name: str
    folder: Path
    settings: dict[str, Any]
    plan: Path
    raw: Path
    samples_per_shard: int

    def shards(self) -> list[Shard]:
        """As few as hold all samples."""
        storage.fetch(self.plan)
        rows = pq.read_metadata(self.plan).num_rows
        return [
            Shard(f"{number:08d}", (str(self.plan),)) for number in range(-(-rows // self.samples_per_shard))
        ]

    def run(self, context: None, shard: Shard, temporary: Path) -> Counts:
        """Writes one training shard."""
        rows = pq.read_metadata(self.plan).num_rows
        num_shards = -(-rows // self.samples_per_shard)
        number = int(shard.name)
        start, stop = number * rows // num_shards, (number + 1) * rows // num_shards
        part = pl.scan_parquet(self.plan).slice(start, stop - start).collect()
        with OpenFiles(MAX_OPEN_FILES) as files, ShardWriter(temporary / f"{shard.name}.tar") as writer:
            for row in part.iter_rows(named=True):
                tar = self.raw / f"{row['shard']}.tar"
                fields = {
                    row["image_extension"]: files.read(tar, row["image_offset"], row["image_size"]),
                    "txt": files.read(tar, row["text_offset"], row["text_size"]),
                    "json": files.read(tar, row["json_offset"], row["json_size"]),
                }
                writer.write(row["uid"], fields)
        return Counts(rows_in=len(part), rows_out=len(part))


@dataclass
class PublishStage(Stage):
    """Makes the written shards a data set: a folder that holds the tars and their manifest, whole or not at all.

    In a store the tars are copied there, and the manifest, which makes them a data set, comes last.

    The one stage that writes outside its own folder: a reader of the data set must never meet half of it. The tars are
    hard links to those of `reshard/write`, or copies where the file system has no links.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    written: Path
    target: Path
    max_workers: int | None = 1

    def inputs_to_fetch(self, shard: Shard) -> list[str]:
        """None: what is known of the tars is in their stats."""
        return []

    def shards(self) -> list[Shard]:
        """One.

        Raises:
            DataError: the data set was published and is gone.
        """
        if is_finished(self.folder, PUBLISHED_NAME) and not storage.exists(self.target / MANIFEST_NAME):
            raise DataError(
                f"{self.target} was written by an earlier run and is gone or has lost its {MANIFEST_NAME}; delete "
                f"{self.folder} and run stage=reshard again to make it from {self.written}"
            )
        tars = [str(self.written / f"{name}.tar") for name in finished_shards(self.written)]
        return [Shard(PUBLISHED_NAME, tuple(tars))] if tars else []

    def run(self, context: None, shard: Shard, temporary: Path) -> Counts:
        """Publishes all shards at once."""
        entries = [self._entry(Path(tar)) for tar in shard.inputs]
        rows = sum(entry.samples for entry in entries)
        counts = Counts(rows_in=rows, rows_out=rows)
        if storage.address_of(self.target):
            self._publish_in_store(shard.inputs, entries)
            return counts
        if self.target.exists():
            if (self.target / MANIFEST_NAME).is_file() and read_manifest(self.target) == entries:
                return counts  # an earlier try was killed after the rename
            raise DataError(
                f"{self.target} exists and holds something else; move it away and run stage=reshard again"
            )
        with atomic_path(self.target) as folder:
            folder.mkdir()
            for tar in shard.inputs:
                _link_or_copy(Path(tar), folder / Path(tar).name)
            write_manifest(folder, entries, {**provenance(), **self.settings})
        return counts

    def _publish_in_store(self, tars: Sequence[str], entries: list[ShardEntry]) -> None:
        manifest = self.target / MANIFEST_NAME
        storage.fetch_newest(manifest)
        if manifest.exists() and read_manifest(self.target) != entries:
            raise DataError(
                f"{storage.address_of(self.target)} holds another data set; move it away and run stage=reshard again"
            )
        for tar in tars:
            storage.copy(Path(tar), self.target / Path(tar).name)
        self.target.mkdir(parents=True, exist_ok=True)
        write_manifest(self.target, entries, {**provenance(), **self.settings})
        storage.publish(manifest)

    def _entry(self, tar: Path) -> ShardEntry:
        stats = read_stats(self.written, tar.stem)
        file = stats["files"][tar.name]
        return ShardEntry(tar.name, stats["counts"]["rows_out"], file["bytes"], file["sha256"])


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


class OpenFiles:
    """Reads byte ranges of many files with at most `limit` of them open, the last used ones."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._files: OrderedDict[Path, tuple[BinaryIO, ExitStack]] = OrderedDict()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """The bytes.

        Raises:
            DataError: the file is missing or ends before them.
        """
        if path not in self._files:
            stack = ExitStack()  # closed in __exit__ or when its turn is over
            try:
                self._files[path] = stack.enter_context(storage.reading(path)), stack
            except OSError as error:
                raise DataError(
                    f"{path} cannot be opened ({error}); it was there when stage=reshard began"
                ) from error
            if len(self._files) > self._limit:
                self._files.popitem(last=False)[1][1].close()
        self._files.move_to_end(path)
        file = self._files[path][0]
        file.seek(offset)
        data = file.read(size)
        if len(data) < size:
            raise DataError(
                f"{path} ends before byte {offset + size}; it has changed since it was indexed: delete the folder "
                "reshard of this run and run stage=reshard again"
            )
        return data

    def __enter__(self) -> "OpenFiles":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, stack in self._files.values():
            stack.close()


def make_stages(config: "PipelineConfig") -> list[Stage]:
    """Index, plan, write and publish, in order."""
    output, reshard = Path(config.output_dir), config.reshard
    uids = Path(reshard.uids) if reshard.uids is not None else output / "subset" / UIDS_NAME
    settings: dict[str, Any] = {"seed": reshard.seed, "samples_per_shard": reshard.samples_per_shard}
    if reshard.uids is not None:
        open_uids(uids)  # a bad list is found before any work
        settings["uids_sha256"] = sha256_of(uids)
    index, plan, write = (output / "reshard" / step for step in ("index", "plan", "write"))
    raw = output / "raw"
    return [
        IndexStage("reshard/index", index, settings, raw, uids, reshard.seed),
        PlanStage("reshard/plan", plan, settings, index, reshard.samples_per_shard),
        WriteStage(
            "reshard/write", write, settings, plan / f"{PLAN_NAME}.parquet", raw, reshard.samples_per_shard
        ),
        PublishStage("reshard/publish", output / "reshard" / "publish", settings, write, output / "shards"),
    ]
