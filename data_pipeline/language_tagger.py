"""The language tagger: which language each stored caption is in, and which of LAION's three buckets that makes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from data_pipeline.caption_stage import CaptionStage
from data_pipeline.language import Detector, LanguageDetector, bucket, make_detector

LANGUAGE_COLUMNS: dict[str, Any] = {
    "language": pl.String,  # ISO 639 code of the best guess; null for a text without letters
    "language_probability": pl.Float32,  # 0 to 1, of the best guess; 0 without one
    "language_reliable": pl.Boolean,  # the detector's own flag: CLD3's is_reliable; null with fastText, which has none
    "language_bucket": pl.String,  # en, other or unknown: a LanguageBucket
}
"""The columns that the tagger adds, with their Polars types."""


@dataclass
class LanguageStage(CaptionStage):
    """Tags raw shards with the language of their captions."""

    detector: LanguageDetector
    min_probability: float  # 0 to 1; below it a text is in the bucket `unknown`
    columns = LANGUAGE_COLUMNS

    def setup(self) -> Detector:
        """Loads the language model."""
        return make_detector(self.detector)

    def tag(self, context: Detector, texts: list[str]) -> tuple[dict[str, Sequence[Any]], Counter[str]]:
        """The columns; pairs are counted by bucket."""
        found = context.detect(texts)
        buckets = [bucket(detection, self.min_probability).value for detection in found]
        values = {
            "language": [detection.language for detection in found],
            "language_probability": [detection.probability for detection in found],
            "language_reliable": [detection.is_reliable for detection in found],
            "language_bucket": buckets,
        }
        return values, Counter(f"language_{name}" for name in buckets)
