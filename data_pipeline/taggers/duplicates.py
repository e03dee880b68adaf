"""The duplicates tagger: which pairs show an image that another pair shows too, for all raw shards together.

Three kinds, each a column: equal original bytes (sha256); perceptual hashes within a Hamming radius; and, where a
clip model is named, image embeddings whose cosine is large enough. Rule of all three: of two duplicates the one with
the smaller uid stays. A pair's column names the smallest uid of all its duplicates of that kind, if that is smaller
than its own, else it is null; so dropping the pairs whose column is set leaves, for each that was dropped, a
duplicate of smaller uid, as SemDeDup does. Being near is not transitive: that duplicate may itself be near a third
one, and be dropped for it.

No machine holds all rows. Raw shards are read into runs of `rows_per_range` rows, whose rows lie in parts by key;
reducers read one part of all runs: of the sha256; of the perceptual hash, which also lays the distinct hashes out by
each choice of bands (`taggers/hamming.py` proves that no near pair is missed); of each choice; of each group of
k-means clusters. They write sorted lookup files, in which each raw shard finds its tags.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from omegaconf import MISSING

from crawl2clip.errors import ConfigError
from data_pipeline.embeddings import ImageEmbeddings
from data_pipeline.stage import Stage
from data_pipeline.taggers.duplicate_steps import (
    BandReducer,
    DuplicatesStage,
    ExactReducer,
    HashReducer,
    HashRuns,
)
from data_pipeline.taggers.hamming import MAX_RADIUS
from data_pipeline.taggers.heads import check_clip_model
from data_pipeline.taggers.semantic_steps import AssignStage, CentroidsStage, ClusterReducer, require_faiss

if TYPE_CHECKING:
    from data_pipeline.config import PipelineConfig
    from data_pipeline.tag import TagConfig

DUPLICATES_COLUMNS: dict[str, Any] = {
    "exact_duplicate_of": pl.String,  # smallest uid with the same original bytes; null: it is this one
    "perceptual_duplicate_of": pl.String,  # smallest uid with a perceptual hash within the radius; null: as above
    "semantic_duplicate_of": pl.String,  # smallest uid in its cluster with a close image embedding; null: as above
}
"""The columns that the tagger adds, with their Polars types."""


@dataclass(kw_only=True, slots=True)
class DuplicatesConfig:
    """What counts as the same image."""

    hamming_radius: int = (
        MISSING  # perceptual hashes that differ in so many bits of 64 or fewer are duplicates
    )
    clip_model: str | None = (
        None  # name in tagger.models whose image embeddings are compared; null: no semantic search
    )
    min_cosine: float = MISSING  # of two images that are semantic duplicates, 0 to 1
    rows_per_cluster: int = (
        MISSING  # images of one k-means cluster on average; they are compared with each other
    )
    rows_per_range: int = (
        MISSING  # rows in memory at once: about 200 bytes each, and an embedding for semantic ones
    )

    def __post_init__(self) -> None:
        if isinstance(self.hamming_radius, int) and not 0 <= self.hamming_radius <= MAX_RADIUS:
            raise ConfigError(
                f"tagger.duplicates.hamming_radius is {self.hamming_radius}; give 0 to {MAX_RADIUS} bits of 64"
            )
        if isinstance(self.min_cosine, float) and not 0.0 < self.min_cosine <= 1.0:
            raise ConfigError(f"tagger.duplicates.min_cosine is {self.min_cosine}; give above 0, at most 1")
        for name in ("rows_per_cluster", "rows_per_range"):
            if isinstance(value := getattr(self, name), int) and value < 1:
                raise ConfigError(f"tagger.duplicates.{name} is {value}; give 1 or more rows")


def check_duplicates(config: "TagConfig") -> None:
    """Checks that the settings have values, and the clip tagger comes before where it is needed.

    Raises:
        ConfigError: not so.
    """
    if config.duplicates.clip_model is not None:
        why = "tagger.duplicates.clip_model names it."
        check_clip_model(config, "duplicates", config.duplicates.clip_model, why)


def make_stages(config: "PipelineConfig") -> list[Stage]:
    """The steps, in order.

    Raises:
        ConfigError: semantic duplicates are asked for without faiss.
    """
    asked, output = config.tagger.duplicates, Path(config.output_dir)
    folder, raw = output / "tags" / "duplicates", output / "raw"
    runs, exact, hashes, bands = (folder / name for name in ("runs", "exact", "hashes", "bands"))
    settings = {"rows_per_range": asked.rows_per_range, "hamming_radius": asked.hamming_radius}
    stages: list[Stage] = [
        HashRuns("tag/duplicates/runs", runs, settings, raw),
        ExactReducer("tag/duplicates/exact", exact, settings, raw, runs),
        HashReducer("tag/duplicates/hashes", hashes, settings, raw, runs),
        BandReducer("tag/duplicates/bands", bands, settings, raw, hashes),
    ]
    semantic = None
    if asked.clip_model is not None:
        require_faiss()
        source = ImageEmbeddings(output / "tags" / "clip", config.tagger.resolved_models(), asked.clip_model)
        close = settings | {
            "embeddings": source.tower,
            "min_cosine": asked.min_cosine,
            "rows_per_cluster": asked.rows_per_cluster,
        }
        centroids, assigned, semantic = (folder / name for name in ("centroids", "assigned", "semantic"))
        stages += [
            CentroidsStage("tag/duplicates/centroids", centroids, close, source),
            AssignStage("tag/duplicates/assigned", assigned, close, source, centroids),
            ClusterReducer("tag/duplicates/semantic", semantic, close, source, assigned),
        ]
        settings = close
    last = DuplicatesStage(
        "tag/duplicates", folder, settings, raw, exact, (hashes, bands), semantic, DUPLICATES_COLUMNS
    )
    return [*stages, last]
