"""The duplicates tagger: which pairs show an image that another pair shows too, for all raw shards together."""

from dataclasses import dataclass
from typing import Any

import polars as pl
from omegaconf import MISSING

from crawl2clip.errors import ConfigError

DUPLICATES_COLUMNS: dict[str, Any] = {
    "exact_duplicate_of": pl.String,  # uid of the kept pair with the same original bytes; null: this one is kept
    "perceptual_duplicate_of": pl.String,  # uid of the kept pair with a perceptual hash within the radius
    "semantic_duplicate_of": pl.String,  # uid of the kept pair with an image embedding that is close enough
}
"""The columns that the tagger adds, with their Polars types."""

MAX_RADIUS = 15  # of 64 bits; with more, bands are of 4 bits and everything is compared with everything


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
    rows_per_range: int = MISSING  # hashes in memory at once, at about 100 bytes each

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
