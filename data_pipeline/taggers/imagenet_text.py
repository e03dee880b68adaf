"""The imagenet_text tagger: whether a word of the caption is an ImageNet class: DataComp's text-based filter."""

from dataclasses import dataclass
from typing import Any

import polars as pl

IMAGENET_TEXT_COLUMNS: dict[str, Any] = {
    "imagenet_text_match": pl.Boolean,  # a word's first WordNet synset is on the list
}
"""The columns that the tagger adds, with their Polars types."""


@dataclass(kw_only=True, slots=True)
class ImagenetTextConfig:
    """WordNet and the classes; neither can come with us."""

    wordnet: str | None = None  # folder with WordNet 3.0's index.noun, data.noun ... (NLTK's corpora/wordnet)
    synsets: str | None = (
        None  # UTF-8 file with one WordNet id a line, as n01440764: ImageNet-21k's, or -1k's
    )
