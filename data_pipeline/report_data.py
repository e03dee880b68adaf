"""What the report shows, gathered from a run's folders shard by shard: counts, histograms, and a few examples.

Histograms have fixed bins and examples are the pairs with the smallest uids, which are hashes: so one pass over the
shards is enough, memory does not grow with the run, and the same run gives the same report.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from crawl2clip import storage
from crawl2clip.files import read_json
from crawl2clip.shards import ShardFault, index_shard
from data_pipeline.funnel import FUNNEL
from data_pipeline.judge import BLOCKED
from data_pipeline.safety_blur import SAFETY_COLUMNS, blurred, may_be_unsafe
from data_pipeline.select import iter_decisions
from data_pipeline.stage import MANIFEST, Counts, is_finished
from data_pipeline.stored_images import decode_image, image_extension
from data_pipeline.tables import read_table

if TYPE_CHECKING:
    from PIL.Image import Image

SIMILARITY_BINS = np.linspace(-1, 1, 201)
SIDE_BINS = np.concatenate([[0], np.geomspace(16, 16_384, 41)])  # pixels
ASPECT_BINS = np.linspace(1, 6, 51)
LENGTH_BINS = np.linspace(0, 300, 61)  # characters
PIXEL_BINS = np.concatenate([[0], np.geomspace(1e-4, 1e2, 49)])  # millions
MAX_VALUES = 1_000_000  # of a tally
NO_LICENSE = "none found"


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
    unsafe: bool | None  # whether its picture is shown blurred; null when no safety tagger was asked
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


class Tally:
    """How many kept and dropped pairs have each value of a text column, with bounded memory.

    Counts are exact as long as there are no more than MAX_VALUES values; beyond that the rarest are let go, and
    `approximate` says so: counts of the frequent ones are then a little low.
    """

    def __init__(self) -> None:
        self.kept: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.approximate = False

    def add(self, values: pl.Series, kept: pl.Series) -> None:
        """Adds the values that are not null."""
        counted = (
            pl.DataFrame({"value": values.cast(pl.String), "kept": kept})
            .drop_nulls()
            .group_by("value", "kept")
            .len()
        )
        for value, is_kept, rows in counted.iter_rows():
            (self.kept if is_kept else self.dropped)[value] += rows
        if len(self.kept.keys() | self.dropped.keys()) > MAX_VALUES:
            self.approximate = True
            frequent = dict((self.kept + self.dropped).most_common(MAX_VALUES // 2))
            for counts in (self.kept, self.dropped):
                for value in counts.keys() - frequent.keys():
                    del counts[value]

    def most_common(self, number: int) -> list[tuple[str, int, int]]:
        """(value, kept, dropped) of the most frequent values; equal ones by name."""
        both = self.kept + self.dropped
        ranked = sorted(both, key=lambda value: (-both[value], value))[:number]
        return [(value, self.kept[value], self.dropped[value]) for value in ranked]

    @property
    def values(self) -> int:
        """How many values there are."""
        return len(self.kept.keys() | self.dropped.keys())

    @property
    def total(self) -> int:
        """All pairs."""
        return self.kept.total() + self.dropped.total()


@dataclass
class Gathered:
    """Everything the report shows about the pairs of a run."""

    similarity: dict[str, Histogram] = field(
        default_factory=lambda: defaultdict(lambda: Histogram(SIMILARITY_BINS))
    )
    short_side: Histogram = field(default_factory=lambda: Histogram(SIDE_BINS))
    aspect_ratio: Histogram = field(default_factory=lambda: Histogram(ASPECT_BINS))
    text_length: Histogram = field(default_factory=lambda: Histogram(LENGTH_BINS))
    pixels: Histogram = field(default_factory=lambda: Histogram(PIXEL_BINS))
    languages: Tally = field(default_factory=Tally)
    domains: Tally = field(default_factory=Tally)
    licenses: Tally = field(default_factory=Tally)
    taggers: list[str] = field(default_factory=list)  # that have tagged this run
    unsafe_judged: bool = False  # a safety tagger has
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
    gathered = Gathered(taggers=_taggers(output_dir))
    for name, verdicts in iter_decisions(output_dir):
        frame = _read_shard(output_dir, name, gathered.taggers)
        frame = frame.join(verdicts, on="uid", how="inner", maintain_order="left")
        _add(gathered, frame)
        _add_examples(gathered, frame, name, examples_per_reason)
    for reason, examples in gathered.examples.items():
        gathered.examples[reason] = _with_images(output_dir / "raw", examples)
    return gathered


def _taggers(output_dir: Path) -> list[str]:
    return sorted(path.parent.name for path in (output_dir / "tags").glob(f"*/{MANIFEST}"))


_SHOWN_TAGS = ("language", "language_bucket", "clip_score", *SAFETY_COLUMNS)


def _read_shard(output_dir: Path, name: str, taggers: list[str]) -> pl.DataFrame:
    """A shard's stored pairs with whatever tags there are; a column of a tagger that did not run is null."""
    stored = ["uid", "url", "text", "license", "original_width", "original_height"]
    frame = read_table(output_dir / "raw" / f"{name}.parquet", stored, stored_only=True)
    unsafe_from = []
    for tagger in taggers:
        path = output_dir / "tags" / tagger / f"{name}.parquet"
        if not is_finished(path.parent, name) or not path.is_file():
            continue
        columns = [column for column in pl.read_parquet_schema(path) if column in _SHOWN_TAGS]
        if columns:
            tags = read_table(path, ["uid", *columns])
            frame = frame.join(tags, on="uid", how="left", maintain_order="left")
            unsafe_from += [column for column in columns if column in SAFETY_COLUMNS]
    lacking = [column for column in _SHOWN_TAGS if column not in frame.columns]
    frame = frame.with_columns(pl.lit(None).alias(column) for column in lacking)
    return frame.with_columns(unsafe=may_be_unsafe(unsafe_from))


def _add(gathered: Gathered, frame: pl.DataFrame) -> None:
    kept = frame["kept"]
    sides = frame.select(
        short=pl.min_horizontal("original_width", "original_height"),
        long=pl.max_horizontal("original_width", "original_height"),
        millions=pl.col("original_width").cast(pl.Float64) * pl.col("original_height") / 1e6,
        domain=pl.col("url").str.extract(r"^[a-zA-Z]+://(?:[^/@?#]*@)?([^/:?#]+)"),
    )
    gathered.short_side.add(sides["short"], kept)
    gathered.aspect_ratio.add(sides["long"] / sides["short"], kept)
    gathered.pixels.add(sides["millions"], kept)
    gathered.text_length.add(frame["text"].str.len_chars(), kept)
    gathered.languages.add(frame["language"], kept)
    gathered.domains.add(sides["domain"].str.to_lowercase(), kept)
    gathered.licenses.add(frame["license"].fill_null(NO_LICENSE), kept)
    gathered.unsafe_judged |= frame["unsafe"].is_not_null().any()
    buckets = frame["language_bucket"].cast(pl.String).fill_null("all")
    for bucket in sorted(buckets.unique()):
        rows = frame.filter(buckets == bucket)
        gathered.similarity[bucket].add(rows["clip_score"].cast(pl.Float64), rows["kept"])


def _add_examples(gathered: Gathered, frame: pl.DataFrame, shard: str, number: int) -> None:
    # What a blocklist names is counted and never shown.
    shown = frame.filter(~pl.col("reason").fill_null("").str.starts_with(BLOCKED))
    for (reason,), rows in shown.sort("uid").group_by("reason", maintain_order=True):
        found = [
            ExamplePair(row["uid"], shard, row["text"], row["reason"], row["clip_score"], row["unsafe"])
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
    pairs = []
    for pair in examples:
        image = images.get(pair.uid)
        pairs.append(replace(pair, image=blurred(image) if image is not None and pair.unsafe else image))
    return pairs


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
