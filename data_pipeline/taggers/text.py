"""The text tagger: personal data and unsafe words in captions.

Unsafe words come from a list, ours or the user's: a word or phrase a line, found as whole words whatever their case.
Language is a tagger of its own; the number of characters and of words need no tag (`text_length`, `word_count` of
data_pipeline/recipe.py).
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from crawl2clip.errors import DataError
from crawl2clip.files import sha256_of
from data_pipeline.caption_stage import CaptionStage
from data_pipeline.stage import Stage
from data_pipeline.taggers.phrases import Phrases, require_ahocorasick
from data_pipeline.taggers.pii import pii_kinds

if TYPE_CHECKING:
    from data_pipeline.config import PipelineConfig

TEXT_COLUMNS: dict[str, Any] = {
    "pii": pl.Boolean,  # something of `pii_kinds` was found
    "pii_kinds": pl.List(
        pl.String
    ),  # kinds found (pii.PII_KINDS), sorted; the data themselves are not stored
    "unsafe_keywords": pl.Int32,  # occurrences of words of the list
}
"""The columns that the tagger adds, with their Polars types."""

OUR_KEYWORDS = Path(__file__).parents[1] / "word_lists" / "unsafe_keywords.txt"
_BETWEEN_WORDS = re.compile(r"[\W_]+")


@dataclass(kw_only=True, slots=True)
class TextConfig:
    """What is looked for."""

    unsafe_keywords: str | None = (
        None  # UTF-8 file, a word or phrase a line; null: the short list that comes with us
    )


def spaced_words(text: str) -> str:
    """The text's words, folded to one case, with one space around each."""
    return f" {_BETWEEN_WORDS.sub(' ', text.casefold()).strip()} "


def read_keywords(path: Path) -> list[str]:
    """Words and phrases of a list, as they stand in `spaced_words`; lines that start with # are comments.

    Raises:
        DataError: the file is missing, not UTF-8, empty, or a line has no word in it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as a list of words ({error}); give UTF-8, a word or phrase a line"
        ) from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        words = spaced_words(line).strip()
        if not words:
            raise DataError(f"line {number} of {path} is {line[:40]!r}, without a letter or digit; remove it")
        found.append(words)
    if not found:
        raise DataError(f"{path} has no word in it; give a word or phrase a line")
    return found


@dataclass
class TextStage(CaptionStage):
    """Tags raw shards with what stands in their captions."""

    keywords: Path
    columns = TEXT_COLUMNS

    def setup(self) -> Phrases:
        """Loads the words."""
        return Phrases(read_keywords(self.keywords))

    def tag(self, context: Phrases, texts: list[str]) -> tuple[dict[str, Sequence[Any]], Counter[str]]:
        """The columns; pairs are counted by the kinds of personal data, and those with unsafe words."""
        kinds = [pii_kinds(text) for text in texts]
        keywords = [len(context.find(spaced_words(text))) for text in texts]
        extra = Counter(f"pii_{kind}" for found in kinds for kind in found)
        if unsafe := sum(number > 0 for number in keywords):
            extra["unsafe_keywords"] = unsafe
        return {
            "pii": [bool(found) for found in kinds],
            "pii_kinds": kinds,
            "unsafe_keywords": keywords,
        }, extra


def make_stages(config: "PipelineConfig") -> list[Stage]:
    """The stage.

    Raises:
        DataError: the list of words cannot be used.
    """
    require_ahocorasick()
    asked, output = config.tagger.text, Path(config.output_dir)
    keywords = OUR_KEYWORDS if asked.unsafe_keywords is None else Path(asked.unsafe_keywords)
    read_keywords(keywords)
    stage = TextStage(
        name="tag/text",
        folder=output / "tags" / "text",
        settings={"unsafe_keywords": sha256_of(keywords)},
        raw=output / "raw",
        keywords=keywords,
    )
    return [stage]
