"""The imagenet_text tagger: whether a word of the caption is an ImageNet class: DataComp's text-based filter.

As DataComp's code has it: a word is a run without white space; its first synset in WordNet 3.0 (nouns first, then
verbs, adjectives, adverbs, inflected forms traced back) counts, by the offset in its file alone. So "dog," with its
comma is no word, and a verb whose offset is a noun's of the list counts too. NLTK reads WordNet from a folder that
the user names; nothing is fetched.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import sha256_of
from data_pipeline.caption_stage import CaptionStage
from data_pipeline.stage import Stage

if TYPE_CHECKING:
    from data_pipeline.config import PipelineConfig
    from data_pipeline.tag import TagConfig

IMAGENET_TEXT_COLUMNS: dict[str, Any] = {
    "imagenet_text_match": pl.Boolean,  # a word's first WordNet synset is on the list
}
"""The columns that the tagger adds, with their Polars types."""

_WORDS_REMEMBERED = 1 << 20


@dataclass(kw_only=True, slots=True)
class ImagenetTextConfig:
    """WordNet and the classes; neither can come with us."""

    wordnet: str | None = None  # folder with WordNet 3.0's index.noun, data.noun ... (NLTK's corpora/wordnet)
    synsets: str | None = (
        None  # UTF-8 file with one WordNet id a line, as n01440764: ImageNet-21k's, or -1k's
    )


def check_imagenet_text(config: "TagConfig") -> None:
    """Checks that both are named.

    Raises:
        ConfigError: they are not.
    """
    asked = config.imagenet_text
    if asked.wordnet is None or asked.synsets is None:
        raise ConfigError(
            "the imagenet_text tagger needs tagger.imagenet_text.wordnet (a folder with WordNet 3.0, as NLTK's "
            "corpora/wordnet) and tagger.imagenet_text.synsets (a file with a WordNet id a line, of ImageNet-21k for "
            "DataComp's filter)"
        )


def read_synsets(path: str) -> frozenset[int]:
    """Offsets of the WordNet ids of a file.

    Raises:
        DataError: it is missing, empty, or a line is not a WordNet id.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); give a file with a WordNet id a line") from error
    found = set()
    for number, line in enumerate(lines, 1):
        word = line.strip()
        if word and not re.fullmatch(r"n\d{8}", word):
            raise DataError(
                f"line {number} of {path} is {line[:40]!r}, not a WordNet id such as n01440764; give one a line"
            )
        if word:
            found.add(int(word[1:]))
    if not found:
        raise DataError(f"{path} has no WordNet id; give one a line, such as n01440764")
    return frozenset(found)


class ImagenetWords:
    """Tells captions with a word of the list. Made once a process."""

    def __init__(self, wordnet: str, synsets: frozenset[int]) -> None:
        try:
            self._wordnet: Any = _open_wordnet(wordnet)
        except (OSError, LookupError, ValueError, AssertionError) as error:
            raise DataError(
                f"{wordnet} cannot be read as WordNet ({error}); give the folder with index.noun, data.noun, lexnames"
            ) from error
        self._synsets = synsets
        self._is_class = lru_cache(_WORDS_REMEMBERED)(self._looked_up)

    def matches(self, text: str) -> bool:
        """Whether a word of the caption is a class."""
        return any(self._is_class(word) for word in text.split())

    def _looked_up(self, word: str) -> bool:
        found = self._wordnet.synsets(word)
        return bool(found) and found[0].offset() in self._synsets


def _open_wordnet(folder: str) -> Any:
    import warnings

    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class EnglishWordNet(WordNetCorpusReader):
        """WordNet alone; NLTK would also want its own copy, to map other languages to this version."""

        def map_wn(self, version: str = "wordnet") -> None:
            """Maps nothing."""
            return None

    nltk.data.path.append(str(Path(folder).resolve()))  # it reads from nowhere else
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that other languages are not available
        return EnglishWordNet(folder, None)


@dataclass
class ImagenetTextStage(CaptionStage):
    """Looks for ImageNet classes in the captions of raw shards."""

    wordnet: str
    synsets: str
    columns = IMAGENET_TEXT_COLUMNS

    def setup(self) -> ImagenetWords:
        """Loads WordNet."""
        return ImagenetWords(self.wordnet, read_synsets(self.synsets))

    def tag(self, context: ImagenetWords, texts: list[str]) -> tuple[dict[str, Sequence[Any]], Counter[str]]:
        """Whether each caption has a class in it."""
        found = [context.matches(text) for text in texts]
        return {"imagenet_text_match": found}, Counter(imagenet_text_match=sum(found))


def make_stages(config: "PipelineConfig") -> list[Stage]:
    """The stage.

    Raises:
        ConfigError: NLTK is not installed.
        DataError: WordNet or the list is not there.
    """
    import importlib.util

    if importlib.util.find_spec("nltk") is None:
        raise ConfigError(
            'the imagenet_text tagger needs the package nltk, which is not installed; pip install -e ".[wordnet]"'
        )
    asked, output = config.tagger.imagenet_text, Path(config.output_dir)
    wordnet, synsets = str(asked.wordnet), str(asked.synsets)
    lacking = [
        name for name in ("index.noun", "data.noun", "lexnames") if not (Path(wordnet) / name).is_file()
    ]
    if lacking:
        raise DataError(
            f"tagger.imagenet_text.wordnet={wordnet} has no {', '.join(lacking)}; give the folder of WordNet 3.0's "
            "files (NLTK's corpora/wordnet, unpacked)"
        )
    read_synsets(synsets)
    stage = ImagenetTextStage(
        name="tag/imagenet_text",
        folder=output / "tags" / "imagenet_text",
        settings={
            "wordnet": sha256_of(Path(wordnet) / "data.noun"),
            "synsets": sha256_of(synsets),
        },
        raw=output / "raw",
        wordnet=wordnet,
        synsets=synsets,
    )
    return [stage]
