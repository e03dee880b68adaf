"""Zero-shot tags: which of some prompts an image is nearest to, as LAION-400M told unsafe images.

For each set of prompts, `zero_shot_<set>` counts how many of the `top` nearest prompts are flagged ones. The set `nsfw`
also gives the column `nsfw` in LAION's words: none flagged UNLIKELY, all of them NSFW, else UNSURE.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import polars as pl
from omegaconf import MISSING

from crawl2clip.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from data_pipeline.tag import TagConfig

NSFW = "nsfw"  # the set whose count also becomes LAION's word


@dataclass(kw_only=True, slots=True)
class PromptSetConfig:
    """Prompts that compete for an image."""

    top: int = MISSING  # how many of the nearest prompts are looked at, 1 or more
    plain: list[str] = field(default_factory=list)  # prompts
    flagged: list[str] = field(default_factory=list)  # prompts that count

    def __post_init__(self) -> None:
        if isinstance(self.top, int) and not 1 <= self.top <= len(self.plain) + len(self.flagged):
            raise ConfigError(
                f"a zero-shot set looks at the top {self.top} of {len(self.plain) + len(self.flagged)} prompts; give "
                "1 up to the number of its prompts"
            )


@dataclass(kw_only=True, slots=True)
class ZeroShotConfig:
    """Which prompts, and whose embeddings."""

    clip_model: str | None = (
        None  # name in tagger.models, whose own text tower reads the prompts; null: the first
    )
    sets: dict[str, PromptSetConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.sets:
            if not name.isidentifier() or not name.islower():
                raise ConfigError(
                    f"a set of tagger.zero_shot is named {name!r}; the name becomes a column, so give lower-case "
                    "letters, digits and _, a letter first"
                )


def zero_shot_columns(sets: Iterable[str]) -> dict[str, Any]:
    """The columns that the tagger adds, with their Polars types."""
    names = list(sets)
    return {
        **({NSFW: pl.String} if NSFW in names else {}),  # UNLIKELY, UNSURE or NSFW
        **{f"zero_shot_{name}": pl.Int32 for name in names},  # flagged prompts among the `top` nearest
        "zero_shot_error": pl.String,  # one of heads.HEAD_ERRORS; else null
    }


def check_zero_shot(config: "TagConfig") -> None:
    """Checks that there are prompts, and the model that reads them.

    Raises:
        ConfigError: there are none.
    """
    asked = config.zero_shot
    if not asked.sets:
        raise ConfigError("the zero_shot tagger is asked for, but tagger.zero_shot.sets is empty; give a set")
    models = {model.name: model for model in config.models}
    if asked.clip_model is not None and asked.clip_model not in models:
        do = "tagger.zero_shot.clip_model names it."
        raise ConfigError(unknown_name("clip model", asked.clip_model, models, do=do))
