"""The contamination tagger: pairs whose image is (nearly) one of an evaluation set."""

from dataclasses import dataclass, field
from typing import Any

import polars as pl
from omegaconf import MISSING

from crawl2clip.errors import ConfigError

CONTAMINATION_COLUMNS: dict[str, Any] = {
    "contaminated_by": pl.String,  # "<set>:<key of the image in it>"; null: none is near, as far as could be judged
    "contamination_error": pl.String,  # why the image could not be judged in full: no_hash, no_embedding; else null
}
"""The columns that the tagger adds, with their Polars types."""


@dataclass(kw_only=True, slots=True)
class ContaminationConfig:
    """The evaluation sets, and what is near."""

    sets: dict[str, str] = field(default_factory=dict)  # name -> folder of images, or of WebDataset tars
    hamming_radius: int = MISSING  # see tagger.duplicates
    clip_model: str | None = (
        None  # name in tagger.models whose image embeddings are compared; null: hashes only
    )
    min_cosine: float = MISSING  # 0 to 1

    def __post_init__(self) -> None:
        if isinstance(self.hamming_radius, int) and not 0 <= self.hamming_radius <= 15:
            raise ConfigError(
                f"tagger.contamination.hamming_radius is {self.hamming_radius}; give 0 to 15 bits of 64"
            )
        if isinstance(self.min_cosine, float) and not 0.0 < self.min_cosine <= 1.0:
            raise ConfigError(
                f"tagger.contamination.min_cosine is {self.min_cosine}; give above 0, at most 1"
            )
