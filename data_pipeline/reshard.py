"""The reshard stage: from a list of uids to training shards of equal size, in one global random order.

Steps, each a stage of the frame. `reshard/weights` and `reshard/captions`, only when such are given, put them in order
(reshard_copies.py, reshard_captions.py). `reshard/index` notes, for each raw shard, where the wanted samples lie.
`reshard/plan` puts all of them in the order of a keyed hash of their uid. `reshard/write` writes the training shards,
each from its slice of the plan, reading the raw tars by position: one sample in memory, a bounded number of open files.
`reshard/publish` makes them the data set `shards/`, tars and manifest, in one rename (reshard_publish.py).

The order depends on the uids and the seed alone, not on how the raw shards were cut or which worker was first, so the
same subset gives the same bytes. The plan sorts PLAN_ROWS samples at a time, about 1 GB, and reads the index once for
each such range of keys.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from omegaconf import MISSING

from crawl2clip import storage
from crawl2clip.errors import ConfigError
from crawl2clip.files import sha256_of
from crawl2clip.shards import (
    ShardFault,
    ShardWriter,
    index_shard,
)
from data_pipeline.open_files import OpenFiles
from data_pipeline.reshard_captions import (
    CaptionMode,
    CaptionsStage,
    CaptionWriter,
    open_captions,
)
from data_pipeline.reshard_copies import (
    WEIGHTS_NAME,
    Copies,
    WeightsStage,
    copy_keys,
    numbered,
    open_copies,
)
from data_pipeline.reshard_publish import PublishStage
from data_pipeline.select import UIDS_NAME
from data_pipeline.stage import Counts, Shard, Stage, finished_shards, stream_finished
from data_pipeline.stored_images import image_extension
from data_pipeline.subset import open_uids, order_keys, uid_halves
from data_pipeline.tables import read_table, require_columns

if TYPE_CHECKING:
    from data_pipeline.config import PipelineConfig

PLAN_NAME = "plan"
PLAN_ROWS = 4_000_000  # 200 bytes each while they are sorted
MAX_OPEN_FILES = 64

INDEX_SCHEMA = pl.Schema(
    {
        "key": pl.UInt64,  # where the sample comes in the global order
        "uid": pl.String,
        "copy": pl.UInt32,  # 0, and more where a weight asks for several
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
    # A DataComp subset file (.npy) in place of what stage=select wrote; a uid that comes twice gives two copies.
    uids: str | None = None
    weights: str | None = None  # parquet with uid and weight, 0 or more: copies of a sample; without a row: 1
    captions: list[str] = field(
        default_factory=list
    )  # parquet with uid and caption, a text or a list of texts
    caption_mode: CaptionMode = CaptionMode.add  # whether the first new caption becomes the .txt

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
    weights: Path | None
    seed: int

    def shards(self) -> Iterator[Shard]:
        """One for each complete raw shard."""
        open_uids(self.uids, repeats=True)
        for name in stream_finished(self.raw):
            files = str(self.raw / f"{name}.tar"), str(self.raw / f"{name}.parquet"), str(self.uids)
            yield Shard(name, files)

    def setup(self) -> Copies:
        """The wanted uids and the weights, mapped from disk."""
        return open_copies(self.uids, self.weights, self.seed)

    def run(self, context: Copies, shard: Shard, temporary: Path) -> Counts:
        """Indexes one raw shard."""
        counts = Counts()

        def count_fault(fault: ShardFault) -> None:
            counts.extra[f"shard_{fault.reason}"] += 1

        tar, table, _ = shard.inputs
        stored = read_table(table, ["uid"], stored_only=True)["uid"]
        copies = context.of(uid_halves(stored))
        wanted = dict(
            zip(stored.filter(pl.Series(copies > 0, dtype=pl.Boolean)), copies[copies > 0], strict=True)
        )
        rows, found = [], []
        for sample in index_shard(tar, count_fault):
            if sample.key not in wanted:
                continue
            image = image_extension(sample.fields)
            if image is None or "txt" not in sample.fields or "json" not in sample.fields:
                counts.dropped["incomplete_sample"] += 1
                continue
            places = [number for name in (image, "txt", "json") for number in sample.fields[name]]
            rows.append((0, sample.key, 0, shard.name, image, *places))
            found.append(wanted[sample.key])
        index = pl.DataFrame(rows, schema=INDEX_SCHEMA, orient="row")
        keys = order_keys(uid_halves(index["uid"]), self.seed)
        chosen, numbers = numbered(np.array(found, np.int64))
        index = index[chosen].with_columns(
            key=pl.Series(copy_keys(keys[chosen], numbers), dtype=pl.UInt64),
            copy=pl.Series(numbers, dtype=pl.UInt32),
        )
        index.write_parquet(temporary / f"{shard.name}.parquet")
        counts.rows_in, counts.rows_out = len(wanted), len(index)
        if len(index) > len(rows):
            counts.extra["further_copies"] = len(index) - len(rows)
        lost = len(wanted) - len(rows) - counts.dropped["incomplete_sample"]
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
                table = part.sort("key", "uid", "copy").collect().to_arrow().cast(writer.schema)
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
    captions: Path | None = None  # where CaptionsStage wrote
    caption_mode: CaptionMode = CaptionMode.add

    def shards(self) -> Iterator[Shard]:
        """As few as hold all samples."""
        storage.fetch(self.plan)
        rows = pq.read_metadata(self.plan).num_rows
        for number in range(-(-rows // self.samples_per_shard)):
            yield Shard(f"{number:08d}", (str(self.plan),))

    def run(self, context: None, shard: Shard, temporary: Path) -> Counts:
        """Writes one training shard."""
        rows = pq.read_metadata(self.plan).num_rows
        num_shards = -(-rows // self.samples_per_shard)
        number = int(shard.name)
        start, stop = number * rows // num_shards, (number + 1) * rows // num_shards
        part = pl.scan_parquet(self.plan).slice(start, stop - start).collect()
        captions = self._captions(part["key"])
        counts = Counts(rows_in=len(part), rows_out=len(part))
        with OpenFiles(MAX_OPEN_FILES) as files, ShardWriter(temporary / f"{shard.name}.tar") as writer:
            for row in part.iter_rows(named=True):
                tar = self.raw / f"{row['shard']}.tar"
                fields = {
                    row["image_extension"]: files.read(tar, row["image_offset"], row["image_size"]),
                    "txt": files.read(tar, row["text_offset"], row["text_size"]),
                    "json": files.read(tar, row["json_offset"], row["json_size"]),
                }
                if captions is not None:
                    fields = captions.apply(row["key"], row["uid"], fields, counts.extra)
                writer.write(f"{row['uid']}-{row['copy']}" if row["copy"] else row["uid"], fields)
        return counts

    def _captions(self, keys: pl.Series) -> CaptionWriter | None:
        if self.captions is None:
            return None
        return open_captions(self.captions, keys[0], keys[-1], self.caption_mode)


def make_stages(config: "PipelineConfig") -> list[Stage]:
    """Index, plan, write and publish, in order."""
    output, reshard = Path(config.output_dir), config.reshard
    uids = Path(reshard.uids) if reshard.uids is not None else output / "subset" / UIDS_NAME
    settings: dict[str, Any] = {"seed": reshard.seed, "samples_per_shard": reshard.samples_per_shard}
    if reshard.uids is not None:
        open_uids(uids, repeats=True)  # a bad list is found before any work
        settings["uids_sha256"] = sha256_of(uids)
    step = {
        name: output / "reshard" / name
        for name in ("weights", "captions", "index", "plan", "write", "publish")
    }
    stages: list[Stage] = []
    weights = captions = None
    if reshard.weights is not None:
        require_columns("reshard.weights", reshard.weights, ("uid", "weight"))
        settings["weights_sha256"] = sha256_of(reshard.weights)
        weights = step["weights"] / f"{WEIGHTS_NAME}.npy"
        stages.append(WeightsStage("reshard/weights", step["weights"], settings, reshard.weights))
    if reshard.captions:
        for path in reshard.captions:
            require_columns("reshard.captions", path, ("uid", "caption"))
        settings["captions_sha256"] = [sha256_of(path) for path in reshard.captions]
        settings["caption_mode"] = reshard.caption_mode.value
        captions = step["captions"]
        sources = tuple(reshard.captions)
        stages.append(
            CaptionsStage("reshard/captions", captions, settings, sources, uids, weights, reshard.seed)
        )
    raw, plan = output / "raw", step["plan"] / f"{PLAN_NAME}.parquet"
    return [
        *stages,
        IndexStage("reshard/index", step["index"], settings, raw, uids, weights, reshard.seed),
        PlanStage("reshard/plan", step["plan"], settings, step["index"], reshard.samples_per_shard),
        WriteStage(
            "reshard/write", step["write"], settings, plan, raw, reshard.samples_per_shard, captions,
            reshard.caption_mode,
        ),
        PublishStage("reshard/publish", step["publish"], settings, step["write"], output / "shards"),
    ]  # fmt: skip
