"""A recipe's rules, checked against the columns there will be and ready to evaluate.

Conditions are SQL, evaluated by Polars. Everything is checked before any work starts. The surprising part: a row for
which a rule has no answer, because a score is null or NaN, is dropped as `missing_<column>`, not as a low score.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from crawl2clip.errors import ConfigError, unknown_name
from crawl2clip.schema import DOWNLOAD_SCHEMA
from data_pipeline.recipe import RecipeConfig, RuleConfig


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


@dataclass(frozen=True)
class SampleRule:
    """A random part of the rows."""

    reason: str
    fraction: float
    seed: int

    @property
    def columns(self) -> tuple[str, ...]:
        """None but the uid, which every row has."""
        return ()


@dataclass(frozen=True)
class BalanceRule:
    """At most about so many rows of each entry."""

    reason: str
    entries: str  # the column of lists
    max_per_entry: int
    seed: int

    @property
    def columns(self) -> tuple[str, ...]:
        """The column it reads."""
        return (self.entries,)


Rule = KeepRule | TopFractionRule | SampleRule | BalanceRule

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
    rules = [_compile(recipe, config, schema, used) for config in recipe.rules]
    unused = sorted(set(recipe.parameters) - used)
    if unused:
        raise ConfigError(
            f"recipe {recipe.name!r} has a parameter that no rule uses: {', '.join(unused)}; the rules use "
            f"{', '.join(sorted(used)) or 'none'}. Correct its name, or write {{{unused[0]}}} in a rule"
        )
    return rules


def _compile(recipe: RecipeConfig, config: RuleConfig, schema: pl.Schema, used: set[str]) -> Rule:
    if config.keep is not None:
        return _compile_keep(recipe, config.reason, config.keep, schema, used)
    if config.sample_fraction is not None:
        assert config.seed is not None  # RuleConfig checked what belongs to each kind
        return SampleRule(config.reason, config.sample_fraction, config.seed)
    if config.balance is not None:
        assert config.max_per_entry is not None
        assert config.seed is not None
        rule = BalanceRule(config.reason, config.balance, config.max_per_entry, config.seed)
        _check_known(recipe.name, rule, schema)
        kind = schema[rule.entries]
        if not isinstance(kind, pl.List) or not kind.inner.is_integer():  # pyright: ignore[reportAttributeAccessIssue]
            raise ConfigError(
                f"rule {rule.reason!r} balances {rule.entries!r}, a {kind} column; give a column of lists of whole "
                "numbers, such as metaclip_entries"
            )
        return rule
    assert config.top_fraction is not None
    assert config.of is not None
    rule = TopFractionRule(config.reason, config.top_fraction, config.of, config.by)
    _check_known(recipe.name, rule, schema)
    if not schema[rule.of].is_numeric():
        raise ConfigError(
            f"rule {rule.reason!r} ranks by {rule.of!r}, a {schema[rule.of]} column; give a numeric column"
        )
    return rule


def _check_known(recipe: str, rule: Rule, schema: pl.Schema) -> None:
    for column in rule.columns:
        if column not in schema:
            do = f"Rule {rule.reason!r} of recipe {recipe!r} needs it."
            raise ConfigError(unknown_name("column", column, schema.names(), do=do))


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
    values: Mapping[str, Any] = {
        **recipe.parameters,
        "min_text_length": recipe.min_text_length,
        "min_bytes": recipe.min_bytes,
    }

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
