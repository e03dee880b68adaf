"""Recipes: named, versioned rules over columns that say which pairs are kept, and why the others are not.

A recipe is YAML (configs/recipe/). Its rules are tried in order and the first one a row fails is the reason the
row is dropped. A rule is a SQL condition over the columns (evaluated by Polars) or a top fraction by some column.
Everything is checked against the known columns before any work starts. The surprising part: a row for which a
rule has no answer, because a score is null or NaN, is dropped as `missing_<column>`, not as a low score.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import polars as pl
from omegaconf import MISSING

from crawl2clip.errors import ConfigError, unknown_name
from crawl2clip.schema import DOWNLOAD_SCHEMA
from data_pipeline.clip_models import ClipModelConfig
from data_pipeline.language import LanguageDetector


@dataclass(kw_only=True, slots=True)
class RuleConfig:
    """One rule: a `keep` condition, or a `top_fraction` of the rows that are left when it is reached."""

    reason: str = MISSING  # what a row that fails is counted as; lower_case_with_underscores
    keep: str | None = None  # SQL condition over the columns; {name} stands for a parameter's value
    top_fraction: float | None = None  # above 0 to 1: keep this fraction of the rows, highest `of` first
    of: str | None = None  # numeric column that ranks the rows; equal values are ranked by uid
    by: str | None = None  # column whose values each get their own fraction; null: all rows together

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.reason):
            raise ConfigError(
                f"a recipe rule has the reason {self.reason!r}; give one word of lower-case letters, digits and _"
            )
        if (self.keep is None) == (self.top_fraction is None):
            raise ConfigError(
                f"rule {self.reason!r} needs either keep or top_fraction, it has both or neither"
            )
        if self.keep is not None and (self.of is not None or self.by is not None):
            raise ConfigError(
                f"rule {self.reason!r} has keep, so `of` and `by` mean nothing there; remove them"
            )
        if self.top_fraction is not None and not 0.0 < self.top_fraction <= 1.0:
            raise ConfigError(
                f"rule {self.reason!r} has top_fraction {self.top_fraction}; give a fraction above 0, at most 1"
            )
        if self.top_fraction is not None and self.of is None:
            raise ConfigError(
                f"rule {self.reason!r} has top_fraction but no `of`; name the column that ranks the rows"
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


@dataclass(frozen=True)
class KeepRule:
    """A condition, ready to evaluate."""

    reason: str
    sql: str  # the condition with its parameters filled in
    columns: tuple[str, ...]  # the known columns it reads, in the order of the schema

    @property
    def expression(self) -> pl.Expr:
        """Boolean column; null where a column it needs is null."""
        return pl.sql_expr(self.sql)


@dataclass(frozen=True)
class TopFractionRule:
    """A fraction of the rows, by rank."""

    reason: str
    fraction: float
    of: str
    by: str | None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        return (self.of,) if self.by is None else (self.of, self.by)


Rule = KeepRule | TopFractionRule

DERIVED: dict[str, tuple[tuple[str, ...], pl.Expr]] = {
    # Unicode characters, not bytes.
    "text_length": (("text",), pl.col("text").str.len_chars()),
    # Runs without white space: Python's len(text.split()).
    "word_count": (("text",), pl.col("text").str.count_matches(r"\S+")),
    "short_side": (
        ("original_width", "original_height"),
        pl.min_horizontal("original_width", "original_height"),
    ),
    # Longer side over shorter side, 1 or more.
    "aspect_ratio": (
        ("original_width", "original_height"),
        pl.max_horizontal("original_width", "original_height")
        / pl.min_horizontal("original_width", "original_height"),
    ),
}
"""Columns that rules may use and nobody stores: what each is computed from, and how. Sizes are the original's."""

# Their value would depend on which rows happen to be evaluated together.
_AGGREGATES = re.compile(
    r"\b(avg|mean|sum|min|max|count|median|quantile_\w+|stddev\w*|variance\w*|first|last|rank|dense_rank|row_number)\s*\("
    r"|\bover\s*\(",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(r"\{(\w*)\}")
_SQL_STRING = re.compile(r"'(?:[^']|'')*'")


def base_schema() -> pl.Schema:
    """The download table's columns and the derived ones, with their Polars types."""
    stored = pl.DataFrame(DOWNLOAD_SCHEMA.empty_table()).schema
    derived = (
        stored.to_frame().select(expression.alias(name) for name, (_, expression) in DERIVED.items()).schema
    )
    return pl.Schema({**stored, **derived})


def compile_rules(recipe: RecipeConfig, schema: pl.Schema) -> list[Rule]:
    """The recipe's rules, ready to evaluate, each checked against the columns there will be.

    Args:
        recipe: the recipe.
        schema: every column that rules may use: `base_schema()` and the taggers' columns.

    Raises:
        ConfigError: a rule names an unknown column or parameter, is not SQL, is not a condition, uses an
            aggregate, or ranks by something that is not a number; or a parameter is used nowhere.
    """
    if not recipe.rules:
        raise ConfigError(
            f"recipe {recipe.name!r} has no rules; give at least one, for example {{reason: all, keep: 'true'}}"
        )
    used: set[str] = set()
    rules: list[Rule] = []
    for config in recipe.rules:
        if config.keep is None:
            assert config.top_fraction is not None  # RuleConfig checked both
            assert config.of is not None
            rule = TopFractionRule(config.reason, config.top_fraction, config.of, config.by)
            _check_top_fraction(recipe.name, rule, schema)
            rules.append(rule)
        else:
            rules.append(_compile_keep(recipe, config.reason, config.keep, schema, used))
    unused = sorted(set(recipe.parameters) - used)
    if unused:
        raise ConfigError(
            f"recipe {recipe.name!r} has a parameter that no rule uses: {', '.join(unused)}; the rules use "
            f"{', '.join(sorted(used)) or 'none'}. Correct its name, or write {{{unused[0]}}} in a rule"
        )
    return rules


def _check_top_fraction(recipe: str, rule: TopFractionRule, schema: pl.Schema) -> None:
    for column in rule.columns:
        if column not in schema:
            raise ConfigError(
                unknown_name(
                    "column",
                    column,
                    schema.names(),
                    do=f"Rule {rule.reason!r} of recipe {recipe!r} needs it.",
                )
            )
    if not schema[rule.of].is_numeric():
        raise ConfigError(
            f"rule {rule.reason!r} ranks by {rule.of!r}, a {schema[rule.of]} column; give a numeric column"
        )


def _compile_keep(
    recipe: RecipeConfig, reason: str, keep: str, schema: pl.Schema, used: set[str]
) -> KeepRule:
    where = f"rule {reason!r} of recipe {recipe.name!r}"
    sql = _fill_in(keep, recipe, where, used)
    bare = _SQL_STRING.sub("''", sql)
    if found := _AGGREGATES.search(bare):
        raise ConfigError(
            f"{where} uses {found.group().rstrip('( ')!r} in {sql!r}: a rule sees one row at a time; for the best "
            "part of all rows use top_fraction, of and by"
        )
    try:
        kind = schema.to_frame().lazy().select(pl.sql_expr(sql).alias("keep")).collect_schema()["keep"]
    except pl.exceptions.ColumnNotFoundError as error:
        asked = re.search(r'column "([^"]*)"', str(error))
        do = f"{where[0].upper()}{where[1:]} asks for it in {sql!r}."
        raise ConfigError(
            unknown_name("column", asked.group(1) if asked else "?", schema.names(), do=do)
        ) from error
    except pl.exceptions.PolarsError as error:
        raise ConfigError(
            f"{where} is not a condition that Polars SQL understands: {sql!r} ({str(error).splitlines()[0]}); correct "
            "it, and quote text with single quotes"
        ) from error
    if kind != pl.Boolean:
        raise ConfigError(
            f"{where} gives a {kind} value, not true or false: {sql!r}; compare it with something"
        )
    words = set(re.findall(r"\w+", bare))
    return KeepRule(reason, sql, tuple(name for name in schema.names() if name in words))


def _fill_in(keep: str, recipe: RecipeConfig, where: str, used: set[str]) -> str:
    """The condition with {name} replaced by the parameter as a SQL literal; notes the parameters it used."""
    values = {**recipe.parameters, "min_text_length": recipe.min_text_length, "min_bytes": recipe.min_bytes}

    def literal(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in values:
            raise ConfigError(
                unknown_name("parameter", name, values, do=f"It stands in braces in {where}: {keep!r}.")
            )
        used.add(name)
        return _sql_literal(name, values[name])

    return _PLACEHOLDER.sub(literal, keep)


def _sql_literal(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        escaped = value.replace("'", "''")
        return f"'{escaped}'"
    raise ConfigError(
        f"recipe.parameters.{name} is {value!r}, a {type(value).__name__}; give a number, true, false or a text"
    )


def columns_to_read(rules: list[Rule]) -> set[str]:
    """The stored columns that the rules need, derived ones replaced by what they are computed from."""
    needed: set[str] = set()
    for rule in rules:
        for column in rule.columns:
            needed.update(DERIVED[column][0] if column in DERIVED else (column,))
    return needed


def with_derived(frame: pl.LazyFrame, rules: list[Rule]) -> pl.LazyFrame:
    """The frame with the derived columns the rules use, and with NaN turned into null.

    Polars ranks NaN above every number, so a NaN score would pass any `score >= threshold`.
    """
    names = {column for rule in rules for column in rule.columns if column in DERIVED}
    frame = frame.with_columns(DERIVED[name][1].alias(name) for name in sorted(names))
    return frame.with_columns(pl.col(pl.Float32, pl.Float64).fill_nan(None))
