"""The metaclip tagger: which entries of MetaCLIP's metadata stand in a caption."""

from dataclasses import dataclass
from typing import Any

import polars as pl

METACLIP_COLUMNS: dict[str, Any] = {
    "metaclip_entries": pl.List(pl.Int32),  # places in the metadata of the entries found, rising; often empty
}
"""The columns that the tagger adds, with their Polars types."""


@dataclass(kw_only=True, slots=True)
class MetaclipConfig:
    """The metadata."""

    metadata: str | None = None  # JSON list of entries (MetaCLIP's metadata.json has 500,000)
