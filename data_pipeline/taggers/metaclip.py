"""The metaclip tagger: which entries of MetaCLIP's metadata stand in a caption.

Matching as the paper's code does it (Xu et al. 2023, arXiv 2309.16671, section 3.2): an entry stands in a caption
when it does so as whole words, case counts, and , . ; : ? ! ` are words of their own. The entries are a list in a
JSON file, 500,000 of WordNet and Wikipedia in MetaCLIP; an entry's number is its place in it. Balancing is the
recipe's.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import sha256_of
from data_pipeline.caption_stage import CaptionStage
from data_pipeline.stage import Stage
from data_pipeline.taggers.phrases import Phrases, require_ahocorasick

if TYPE_CHECKING:
    from data_pipeline.config import PipelineConfig
    from data_pipeline.tag import TagConfig

METACLIP_COLUMNS: dict[str, Any] = {
    "metaclip_entries": pl.List(pl.Int32),  # places in the metadata of the entries found, rising; often empty
}
"""The columns that the tagger adds, with their Polars types."""

_SPACED = str.maketrans(
    {**{mark: f" {mark} " for mark in ",.;:?!`"}, **dict.fromkeys("\t\n\r", " ")},
)


@dataclass(kw_only=True, slots=True)
class MetaclipConfig:
    """The metadata."""

    metadata: str | None = None  # JSON list of entries (MetaCLIP's metadata.json has 500,000)


def check_metaclip(config: "TagConfig") -> None:
    """Checks that the metadata are named.

    Raises:
        ConfigError: they are not.
    """
    if config.metaclip.metadata is None:
        raise ConfigError(
            "the metaclip tagger needs tagger.metaclip.metadata: a JSON list of entries, for instance metadata.json of "
            "github.com/facebookresearch/MetaCLIP"
        )


def spaced(text: str) -> str:
    """The caption as entries are looked for in it."""
    return f" {text} ".translate(_SPACED)


def read_metadata(path: str) -> list[str]:
    """The entries.

    Raises:
        DataError: the file is missing, or is not a list of texts.
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); give a list of entries") from error
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, str) for entry in entries):
        raise DataError(
            f"{path} holds {type(entries).__name__}, not a list of texts with one or more entries; MetaCLIP's "
            "metadata.json is one"
        )
    return entries


@dataclass
class MetaclipStage(CaptionStage):
    """Finds the metadata's entries in the captions of raw shards."""

    metadata: str
    columns = METACLIP_COLUMNS

    def setup(self) -> Phrases:
        """Loads the metadata."""
        return Phrases(read_metadata(self.metadata))

    def tag(self, context: Phrases, texts: list[str]) -> tuple[dict[str, Sequence[Any]], Counter[str]]:
        """The entries of each caption."""
        found = [sorted(set(context.find(spaced(text)))) for text in texts]
        return {"metaclip_entries": found}, Counter(metaclip_without_entry=sum(not each for each in found))


def make_stages(config: "PipelineConfig") -> list[Stage]:
    """The stage.

    Raises:
        DataError: the metadata cannot be read.
    """
    require_ahocorasick()
    metadata, output = str(config.tagger.metaclip.metadata), Path(config.output_dir)
    read_metadata(metadata)
    stage = MetaclipStage(
        name="tag/metaclip",
        folder=output / "tags" / "metaclip",
        settings={"metadata": sha256_of(metadata)},
        raw=output / "raw",
        metadata=metadata,
    )
    return [stage]
