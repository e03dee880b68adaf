"""What the report shows, gathered from a run's folders shard by shard: counts, histograms, and a few examples.

Histograms have fixed bins and examples are the pairs with the smallest uids, which are hashes: so one pass over the
shards is enough, memory does not grow with the run, and the same run gives the same report.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from crawl2clip.errors import DataError
from crawl2clip.files import read_json
from crawl2clip.shards import ShardFault, index_shard
from data_pipeline import storage
from data_pipeline.funnel import FUNNEL
from data_pipeline.select import DECISIONS_NAME
from data_pipeline.stage import Counts, finished_shards, is_finished
from data_pipeline.stored_images import decode_image, image_extension
from data_pipeline.tables import read_table

if TYPE_CHECKING:
    from PIL.Image import Image

SIMILARITY_BINS = np.linspace(-1, 1, 201)
SIDE_BINS = np.concatenate([[0], np.geomspace(16, 16_384, 41)])  # pixels
ASPECT_BINS = np.linspace(1, 6, 51)
LENGTH_BINS = np.linspace(0, 300, 61)  # characters


@dataclass(frozen=True)
class StageRow:
    """What one stage did, over all its complete shards."""

    stage: str
    shards: int
    counts: Counts
    worker_seconds: float  # summed over its workers
    wall_seconds: float  # of the last run that did anything for it


@dataclass(frozen=True)
class ExamplePair:
    """A pair to be shown."""

    uid: str
    shard: str  # raw shard
    text: str
    reason: str | None  # null: kept
    clip_score: float | None
    image: "Image | None" = None


@dataclass
class Histogram:
    """Counts in fixed bins, kept and dropped apart; what lies outside is counted in the first or last bin."""

    bins: np.ndarray
    kept: np.ndarray = field(init=False)
    dropped: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.kept = np.zeros(len(self.bins) - 1, dtype=np.int64)
        self.dropped = np.zeros(len(self.bins) - 1, dtype=np.int64)

    def add(self, values: pl.Series, kept: pl.Series) -> None:
        """Adds the values that are not null."""
        usable = values.is_not_null() & values.cast(pl.Float64).is_not_nan()
        for counts, chosen in ((self.kept, usable & kept), (self.dropped, usable & ~kept)):
            inside = np.clip(values.filter(chosen).cast(pl.Float64).to_numpy(), self.bins[0], self.bins[-1])
            counts += np.histogram(inside, self.bins)[0]

    @property
    def total(self) -> int:
        """All values."""
        return int(self.kept.sum() + self.dropped.sum())


@dataclass
class Gathered:
    """Everything the report shows about the pairs of a run."""

    similarity: dict[str, Histogram] = field(
        default_factory=lambda: defaultdict(lambda: Histogram(SIMILARITY_BINS))
    )
    short_side: Histogram = field(default_factory=lambda: Histogram(SIDE_BINS))
    aspect_ratio: Histogram = field(default_factory=lambda: Histogram(ASPECT_BINS))
    text_length: Histogram = field(default_factory=lambda: Histogram(LENGTH_BINS))
    languages: Counter[str] = field(default_factory=Counter)
    examples: dict[str | None, list[ExamplePair]] = field(default_factory=dict)  # by reason; None: kept


def read_stage_rows(output_dir: Path) -> list[StageRow]:
    """What every stage of a run has done so far, in order, from the run's funnel; none when it has no funnel yet."""
    path = output_dir / FUNNEL
    storage.fetch_newest(path)
    if not path.is_file():
        return []
    return [
        StageRow(
            row["stage"], row["shards"], Counts.from_json(row), row["worker_seconds"], row["wall_seconds"]
        )
        for row in read_json(path)["stages"]
    ]


def gather(output_dir: Path, *, examples_per_reason: int) -> Gathered:
    """One pass over the raw shards of a run that has been selected.

    Raises:
        DataError: the run has no selection yet, or a table is damaged.
    """
    decisions_path = output_dir / "subset" / DECISIONS_NAME
    if not storage.exists(decisions_path):
        raise DataError(f"{decisions_path} is missing; run stage=select before stage=report")
    storage.fetch(decisions_path)
    decisions = pl.scan_parquet(decisions_path).with_columns(pl.col("shard", "reason").cast(pl.String))
    gathered = Gathered()
    for name in finished_shards(output_dir / "raw"):
        frame = _read_shard(output_dir, name)
        verdicts = decisions.filter(pl.col("shard") == name).select("uid", "kept", "reason").collect()
        frame = frame.join(verdicts, on="uid", how="inner", maintain_order="left")
        _add(gathered, frame)
        _add_examples(gathered, frame, name, examples_per_reason)
    for reason, examples in gathered.examples.items():
        gathered.examples[reason] = _with_images(output_dir / "raw", examples)
    return gathered


def _read_shard(output_dir: Path, name: str) -> pl.DataFrame:
    """A shard's stored pairs with whatever tags there are; a column of a tagger that did not run is null."""
    stored = ["uid", "text", "original_width", "original_height"]
    frame = read_table(output_dir / "raw" / f"{name}.parquet", stored, stored_only=True)
    for tagger, columns in (("language", ["language", "language_bucket"]), ("clip", ["clip_score"])):
        folder = output_dir / "tags" / tagger
        if is_finished(folder, name):
            tags = read_table(folder / f"{name}.parquet", ["uid", *columns])
            frame = frame.join(tags, on="uid", how="left", maintain_order="left")
        else:
            frame = frame.with_columns(pl.lit(None).alias(column) for column in columns)
    return frame


def _add(gathered: Gathered, frame: pl.DataFrame) -> None:
    sides = frame.select(
        short=pl.min_horizontal("original_width", "original_height"),
        long=pl.max_horizontal("original_width", "original_height"),
    )
    gathered.short_side.add(sides["short"], frame["kept"])
    gathered.aspect_ratio.add(sides["long"] / sides["short"], frame["kept"])
    gathered.text_length.add(frame["text"].str.len_chars(), frame["kept"])
    gathered.languages.update(dict(frame["language"].cast(pl.String).drop_nulls().value_counts().iter_rows()))
    buckets = frame["language_bucket"].cast(pl.String).fill_null("all")
    for bucket in sorted(buckets.unique()):
        rows = frame.filter(buckets == bucket)
        gathered.similarity[bucket].add(rows["clip_score"].cast(pl.Float64), rows["kept"])


def _add_examples(gathered: Gathered, frame: pl.DataFrame, shard: str, number: int) -> None:
    for (reason,), rows in frame.sort("uid").group_by("reason", maintain_order=True):
        found = [
            ExamplePair(row["uid"], shard, row["text"], row["reason"], row["clip_score"])
            for row in rows.head(number).iter_rows(named=True)
        ]
        key = None if reason is None else str(reason)
        best = sorted([*gathered.examples.get(key, []), *found], key=lambda pair: pair.uid)
        gathered.examples[key] = best[:number]


def _with_images(raw: Path, examples: Sequence[ExamplePair]) -> list[ExamplePair]:
    images: dict[str, Image | None] = {}
    for shard in sorted({example.shard for example in examples}):
        wanted = {example.uid for example in examples if example.shard == shard}
        images |= read_images(raw / f"{shard}.tar", wanted)
    return [
        ExamplePair(pair.uid, pair.shard, pair.text, pair.reason, pair.clip_score, images.get(pair.uid))
        for pair in examples
    ]


def read_images(tar: Path, uids: set[str]) -> "dict[str, Image | None]":
    """The images of some samples of a raw shard, by uid; None for one that does not decode.

    Samples the tar lacks are left out: a report is made from whatever is there.
    """
    images: dict[str, Image | None] = {}
    storage.fetch(tar)
    for sample in index_shard(tar, _counted_before):
        extension = image_extension(sample.fields)
        if sample.key in uids and extension is not None:
            offset, size = sample.fields[extension]
            with open(tar, "rb") as file:
                file.seek(offset)
                images[sample.key] = decode_image(file.read(size), extension)
    return images


def _counted_before(fault: ShardFault) -> None:
    """A damaged raw shard is news in the stages that work on it; the report shows what is left."""
