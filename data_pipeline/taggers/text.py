"""The text tagger: personal data and unsafe words in captions."""

from dataclasses import dataclass
from typing import Any

import polars as pl

TEXT_COLUMNS: dict[str, Any] = {
    "pii": pl.Boolean,  # something of `pii_kinds` was found
    "pii_kinds": pl.List(pl.String),  # kinds found, sorted; the data themselves are not stored
    "unsafe_keywords": pl.Int32,  # occurrences of words of the list
}
"""The columns that the tagger adds, with their Polars types."""


@dataclass(kw_only=True, slots=True)
class TextConfig:
    """What is looked for."""

    unsafe_keywords: str | None = (
        None  # UTF-8 file, a word or phrase a line; null: the short list that comes with us
    )
