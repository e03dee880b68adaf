"""The language tagger: which language each stored caption is in, and which of LAION's three buckets that makes.

For each raw shard it writes `NAME.parquet`, one row for each stored pair in the order of the raw parquet.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from data_pipeline.language import Detector, LanguageDetector, bucket, make_detector
from data_pipeline.stage import Counts, Shard, Stage, finished_shards
from data_pipeline.tables import read_table

LANGUAGE_COLUMNS: dict[str, Any] = {
    "language": pl.String,  # ISO 639 code of the best guess; null for a text without letters
    "language_probability": pl.Float32,  # 0 to 1, of the best guess; 0 without one
    "language_reliable": pl.Boolean,  # the detector's own flag: CLD3's is_reliable; null with fastText, which has none
    "language_bucket": pl.String,  # en, other or unknown: a LanguageBucket
}
"""The columns that the tagger adds, with their Polars types."""


@dataclass
class LanguageStage(Stage):
    """Tags raw shards with the language of their captions."""

    name: str
    folder: Path
    settings: dict[str, Any]
    raw: Path  # the download stage's folder
    detector: LanguageDetector
    min_probability: float  # 0 to 1; below it a text is in the bucket `unknown`

    def shards(self) -> list[Shard]:
        """One for each complete raw shard."""
        return [Shard(name, (str(self.raw / f"{name}.parquet"),)) for name in finished_shards(self.raw)]

    def setup(self) -> Detector:
        """Loads the language model."""
        return make_detector(self.detector)

    def run(self, context: Detector, shard: Shard, temporary: Path) -> Counts:
        """Tags one raw shard."""
        pairs = read_table(shard.inputs[0], ["uid", "text"], stored_only=True)
        found = context.detect(pairs["text"].to_list())
        buckets = [bucket(detection, self.min_probability).value for detection in found]
        tags = pl.DataFrame(
            {
                "uid": pairs["uid"],
                "language": [detection.language for detection in found],
                "language_probability": [detection.probability for detection in found],
                "language_reliable": [detection.is_reliable for detection in found],
                "language_bucket": buckets,
            },
            schema={"uid": pl.String, **LANGUAGE_COLUMNS},
        )
        tags.write_parquet(temporary / f"{shard.name}.parquet")
        counts = Counts(rows_in=len(pairs), rows_out=len(tags))
        for name in buckets:
            counts.extra[f"language_{name}"] += 1
        return counts
