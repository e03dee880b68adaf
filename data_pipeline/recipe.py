"""Recipes: named, versioned rules over columns that say which pairs are kept, and why the others are not.

A recipe is YAML: one of configs/recipe/, or a file of your own (`recipe=my/recipe.yaml`). Its rules are tried in order
and the first one a row fails is the reason the row is dropped. `data_pipeline.rules` makes them ready to evaluate.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from crawl2clip.errors import ConfigError
from data_pipeline.clip_models import ClipModelConfig
from data_pipeline.language import LanguageDetector

KINDS = ("keep", "top_fraction", "sample_fraction", "balance")
"""The settings of which a rule has exactly one: what kind of rule it is."""
_BELONGS_TO = {"of": "top_fraction", "by": "top_fraction", "max_per_entry": "balance"}


@dataclass(kw_only=True, slots=True)
class RuleConfig:
    """One rule: a condition, a fraction of the rows that are left when it is reached, a sample, or balancing."""

    reason: str = MISSING  # what a row that fails is counted as; lower_case_with_underscores
    keep: str | None = None  # SQL condition over the columns; {name} stands for a parameter's value
    top_fraction: float | None = None  # above 0 to 1: keep this fraction of the rows, highest `of` first
    of: str | None = None  # numeric column that ranks the rows; equal values are ranked by uid
    by: str | None = None  # column whose values each get their own fraction; null: all rows together
    # Above 0 to 1: keep each row with this chance, by a hash of its uid and the seed, so the same rows in every run.
    sample_fraction: float | None = None
    # Column of lists of whole numbers, 0 or more, such as metaclip_entries: each entry keeps about max_per_entry of
    # the rows that have it, and a row stays if any of its entries keeps it (MetaCLIP's balancing).
    balance: str | None = None
    max_per_entry: int | None = None  # rows; MetaCLIP's t
    seed: int | None = None  # of sample_fraction and balance

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.reason):
            raise ConfigError(
                f"a recipe rule has the reason {self.reason!r}; give one word of lower-case letters, digits and _"
            )
        if self.reason.startswith(("missing_", "blocked_")):
            raise ConfigError(
                f"a recipe rule has the reason {self.reason!r}; missing_... and blocked_... are given to rows without "
                "a value and to rows of a blocklist: choose another"
            )
        kinds = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ConfigError(
                f"rule {self.reason!r} has {' and '.join(kinds) or 'no kind'}; give exactly one of {', '.join(KINDS)}"
            )
        self._check_belongings(kinds[0])
        for name in ("top_fraction", "sample_fraction"):
            fraction = getattr(self, name)
            if fraction is not None and not 0.0 < fraction <= 1.0:
                raise ConfigError(
                    f"rule {self.reason!r} has {name} {fraction}; give a fraction above 0, at most 1"
                )
        if self.max_per_entry is not None and self.max_per_entry < 1:
            raise ConfigError(
                f"rule {self.reason!r} has max_per_entry {self.max_per_entry}; give 1 or more rows"
            )

    def _check_belongings(self, kind: str) -> None:
        """Whether it has what its kind needs, and nothing that means something for another kind only."""
        belongs = {
            **_BELONGS_TO,
            "seed": kind if kind in ("sample_fraction", "balance") else "sample_fraction",
        }
        for name, owner in belongs.items():
            given = getattr(self, name) is not None
            if given and owner != kind:
                raise ConfigError(
                    f"rule {self.reason!r} has {kind}, so `{name}` means nothing there; remove it"
                )
            if not given and owner == kind and name != "by":
                what = {"of": "name the column that ranks the rows", "max_per_entry": "give a number of rows"}
                raise ConfigError(
                    f"rule {self.reason!r} has {kind} but no `{name}`; {what.get(name, 'give a whole number')}"
                )


@dataclass(kw_only=True, slots=True)
class RecipeConfig:
    """What to keep, from extraction to selection."""

    name: str = MISSING  # the recipe's name, as in `recipe=<name>`
    version: str = MISSING  # goes up when a number in it changes
    source: str = MISSING  # the publication the numbers come from
    # Which of an image's texts are read, see extract.text_sources; LAION read alt only.
    text_sources: list[str] = field(default_factory=lambda: ["alt"])
    min_text_length: int = MISSING  # characters; extraction drops shorter texts. 0: no limit
    min_bytes: int = MISSING  # bytes of the original file; download drops smaller ones. 0: no limit
    taggers: list[str] = field(default_factory=list)  # the taggers whose columns the rules use, in order
    language_detector: LanguageDetector = LanguageDetector.fasttext  # see tagger.language_detector
    clip_model: str | None = None  # image tower of the clip tagger: open_clip name
    clip_pretrained: str | None = None  # its weights: open_clip tag, file or export folder
    clip_models: list[ClipModelConfig] = field(
        default_factory=list
    )  # which text tower scores which languages
    heads: list[str] = field(default_factory=list)  # names in tagger.heads that fill the taggers' columns
    parameters: dict[str, Any] = field(default_factory=dict)  # values for {name} in the rules
    rules: list[RuleConfig] = field(default_factory=list)  # tried in order

    def __post_init__(self) -> None:
        for name, value in (("min_text_length", self.min_text_length), ("min_bytes", self.min_bytes)):
            if value < 0:
                raise ConfigError(f"recipe.{name} is {value}; give 0 or more")
        reasons = [rule.reason for rule in self.rules]
        repeated = sorted({reason for reason in reasons if reasons.count(reason) > 1})
        if repeated:
            raise ConfigError(
                f"recipe {self.name!r} gives the reason {', '.join(repeated)} to several rules; a reason names one "
                "rule, or the funnel could not tell them apart"
            )
