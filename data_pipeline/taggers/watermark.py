"""The watermark tagger: LAION-5B's classifier of visible watermarks, on the pixels.

timm's efficientnet_b3a at 256 px with a head of 1536-625-256-2; output 0 is "watermark". When the clip tagger starts
together with it, both see the same decoded image.
"""

import re
from dataclasses import dataclass
from typing import Any

import polars as pl

from crawl2clip.errors import ConfigError

WATERMARK_COLUMNS: dict[str, Any] = {
    "pwatermark": pl.Float32,  # probability of a visible watermark, 0 to 1
    "watermark_error": pl.String,  # why it is null: missing_image, undecodable or not_finite
}


@dataclass(kw_only=True, slots=True)
class WatermarkConfig:
    """The published weights, or one's own of the same network."""

    weights: str | None = None  # path or http(s) address of watermark_model_v1.pt
    sha256: str | None = None  # of that file, 64 hex digits

    def __post_init__(self) -> None:
        if self.sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ConfigError(
                f"tagger.watermark.sha256 is {self.sha256!r}; give the 64 hex digits, lower case, that `sha256sum` "
                "prints for the file"
            )
