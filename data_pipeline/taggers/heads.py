"""Heads on image embeddings: the taggers `aesthetic`, `unsafe` and `head`, which read what the clip tagger wrote.

A head is a small network from a CLIP image embedding to one number. Those that LAION published are in the catalogue
`tagger.heads` (configs/data_pipeline.yaml) with address and SHA-256; anyone's own goes there too. No image is read.
A pair whose embedding is missing keeps its row, with nulls and the reason in `<tagger>_error`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import polars as pl
from omegaconf import MISSING

from crawl2clip.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from data_pipeline.tag import TagConfig

HEAD_ERRORS = ("no_embedding", "not_finite")
"""Why a head's columns are null: the image has no embedding (see clip_error); the head gave no finite number."""


class HeadTagger(str, Enum):
    """Whose column a head fills."""

    aesthetic = "aesthetic"  # a rating, about 1 to 10
    unsafe = "unsafe"  # probability of unsafe content, 0 to 1
    head = "head"  # anything else


class HeadOutput(str, Enum):
    """What becomes of a head's last layer."""

    linear = "linear"  # nothing: the number itself
    sigmoid = "sigmoid"  # probability of the one output
    softmax = "softmax"  # probability of the last of several outputs


@dataclass(kw_only=True, slots=True)
class HeadConfig:
    """One head of the catalogue."""

    tagger: HeadTagger = MISSING  # the tagger whose column it fills
    clip_model: str = MISSING  # name in tagger.models: the image embeddings that it was trained on
    weights: str = MISSING  # path or http(s) address; forms: see taggers/head_files.py
    sha256: str = MISSING  # of the file, 64 hex digits; a file with another hash is not loaded
    output: HeadOutput = MISSING

    def __post_init__(self) -> None:
        if self.sha256 != MISSING and not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ConfigError(
                f"the head with weights {self.weights!r} has sha256 {self.sha256!r}; give the 64 hex digits, lower "
                "case, that `sha256sum` prints for the file"
            )


def chosen_heads(
    tagger: HeadTagger, catalogue: Mapping[str, HeadConfig], names: Sequence[str]
) -> dict[str, HeadConfig]:
    """The heads of one tagger, in the order in which they are named."""
    return {name: catalogue[name] for name in names if catalogue[name].tagger == tagger}


def check_heads(tagger: HeadTagger, config: "TagConfig") -> None:
    """Checks that a tagger which is asked for has a head.

    Raises:
        ConfigError: none is named, or it reads the embeddings of a model that is not there.
    """
    chosen = chosen_heads(tagger, config.heads, config.use_heads)
    if not chosen:
        known = ", ".join(name for name, head in config.heads.items() if head.tagger == tagger)
        raise ConfigError(
            f"the {tagger.value} tagger is asked for, but tagger.use_heads is {list(config.use_heads)}, with no head "
            f"of it; known ones: {known or 'none'}. Name one, or add your own to tagger.heads"
        )
    models = [model.name for model in config.models]
    for name, head in chosen.items():
        if head.clip_model not in models:
            do = f"The head {name!r} reads its image embeddings: add it to tagger.models."
            raise ConfigError(unknown_name("clip model", head.clip_model, models, do=do))


def head_columns(tagger: HeadTagger, names: Sequence[str]) -> dict[str, Any]:
    """The columns of a tagger with these heads, with their Polars types.

    aesthetic: `aesthetic` is the first head's, and with several each has `aesthetic_<name>` too.
    unsafe: the same with `punsafe`. head: `head_<name>` each.
    """
    stem = {"aesthetic": "aesthetic", "unsafe": "punsafe", "head": "head"}[tagger.value]
    each = {f"{stem}_{name}": pl.Float32 for name in names}
    if tagger != HeadTagger.head:
        each = {stem: pl.Float32, **(each if len(names) > 1 else {})}
    return {**each, f"{tagger.value}_error": pl.String}
