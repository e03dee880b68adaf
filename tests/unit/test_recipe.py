"""Recipes: how rules are read and judged, and what a wrong recipe is told before any work."""

import polars as pl
import pytest

from crawl2clip.errors import ConfigError
from data_pipeline.clip_models import clip_columns
from data_pipeline.judge import Judge
from data_pipeline.language_tagger import LANGUAGE_COLUMNS
from data_pipeline.recipe import RecipeConfig, RuleConfig
from data_pipeline.rules import base_schema, compile_rules

SCHEMA = pl.Schema({**base_schema(), **LANGUAGE_COLUMNS, **clip_columns([])})

GOOD = {
    "uid": "0" * 32,
    "text": "five words are in here",
    "page_language": "en",
    "page_url": "http://localhost:8000/trusted/cats.html",
    "bytes": 5000,
    "original_width": 200,
    "original_height": 600,
    "language": "en",
    "language_probability": 0.9,
    "language_bucket": "en",
    "clip_score": 0.5,
}


def reasons(recipe, *changes):
    """The reason each changed row is dropped for, None when it is kept."""
    rules = compile_rules(recipe, SCHEMA)
    rows = [{**GOOD, **change} for change in changes]
    frame = pl.DataFrame(rows, schema={name: SCHEMA[name] for name in GOOD})
    judge = Judge(rules)
    judge.learn(lambda: iter([frame]))
    return judge.reasons(frame).to_list()


def of_rules(*rules, **parameters):
    return RecipeConfig(
        name="mine",
        version="1",
        source="none",
        min_text_length=5,
        min_bytes=5000,
        parameters=parameters,
        rules=[RuleConfig(**rule) for rule in rules],
    )


def test_a_score_that_is_null_or_nan_is_missing_and_not_low():
    recipe = of_rules({"reason": "low_similarity", "keep": "clip_score >= 0.3"})
    assert reasons(recipe, {"clip_score": None}, {"clip_score": float("nan")}, {"clip_score": 0.1}) == [
        "missing_clip_score",
        "missing_clip_score",
        "low_similarity",
    ]


def test_the_first_rule_that_fails_gives_the_reason():
    recipe = of_rules(
        {"reason": "first", "keep": "bytes > 10"},
        {"reason": "second", "keep": "text_length > 3"},
    )
    assert reasons(recipe, {"bytes": 1, "text": "x"}, {"text": "x"}) == ["first", "second"]


def test_a_parameter_is_quoted_so_that_it_stays_a_value():
    recipe = of_rules(
        {"reason": "other_text", "keep": "text = {wanted}"}, wanted="it's; DROP TABLE x -- {min_bytes}"
    )
    assert reasons(recipe, {"text": "it's; DROP TABLE x -- {min_bytes}"}, {"text": "no"}) == [
        None,
        "other_text",
    ]


@pytest.mark.parametrize(
    ("keep", "parameters", "words"),
    [
        (
            "clip_scor >= 0.3",
            {},
            ["unknown column 'clip_scor'", "did you mean 'clip_score'", "original_width", "'bad'"],
        ),
        ("clip_score >=", {}, ["'clip_score >='", "'bad' of recipe 'mine'", "not a condition"]),
        ("clip_score >= 0.3; DROP TABLE x", {}, ["not a condition"]),
        ("SELECT 1", {}, ["not a condition"]),
        ("no_such_function(text)", {}, ["no_such_function", "not a condition"]),
        ("text_length", {}, ["UInt32", "not true or false"]),
        ("clip_score > AVG(clip_score)", {}, ["'AVG'", "one row at a time", "top_fraction"]),
        (
            "clip_score >= {lowest}",
            {"low": 1},
            ["unknown parameter 'lowest'", "did you mean 'low'", "min_bytes", "in braces in rule 'bad'"],
        ),
        ("clip_score >= {low}", {"low": [1]}, ["recipe.parameters.low is [1]", "a number"]),
        ("clip_score >= 0.3", {"low": 1}, ["a parameter that no rule uses: low", "{low}"]),
    ],
)
def test_a_wrong_condition_is_refused_before_work(keep, parameters, words):
    with pytest.raises(ConfigError) as caught:
        compile_rules(of_rules({"reason": "bad", "keep": keep}, **parameters), SCHEMA)
    for word in words:
        assert word in str(caught.value)


def test_a_word_of_sql_inside_a_text_is_only_a_text():
    assert reasons(of_rules({"reason": "other", "keep": "text <> 'sum (over)'"}), {}) == [None]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (
            {"reason": "x", "top_fraction": 0.3, "of": "aestetic"},
            "unknown column 'aestetic'.* Rule 'x' of recipe 'mine' needs it",
        ),
        (
            {"reason": "x", "top_fraction": 0.3, "of": "clip_score", "by": "lang"},
            "unknown column 'lang'; did you mean 'language'.* Rule 'x' of recipe 'mine' needs it",
        ),
        (
            {"reason": "x", "balance": "entries", "max_per_entry": 5, "seed": 0},
            "unknown column 'entries'.* Rule 'x' of recipe 'mine' needs it",
        ),
        (
            {"reason": "x", "balance": "text", "max_per_entry": 5, "seed": 0},
            "rule 'x' balances 'text', a String column; give a column of lists of whole numbers",
        ),
        (
            {"reason": "x", "top_fraction": 0.3, "of": "text"},
            "rule 'x' ranks by 'text', a String column; give a numeric column",
        ),
    ],
)
def test_a_top_fraction_needs_columns_that_exist(rule, words):
    with pytest.raises(ConfigError, match=words):
        compile_rules(of_rules(rule), SCHEMA)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"reason": "Two Words", "keep": "true"}, "has the reason 'Two Words'; give one word of lower-case"),
        (
            {"reason": "x"},
            "rule 'x' has no kind; give exactly one of keep, top_fraction, sample_fraction, balance",
        ),
        (
            {"reason": "x", "keep": "true", "top_fraction": 0.5, "of": "bytes"},
            "has keep and top_fraction; give exactly one of",
        ),
        (
            {"reason": "x", "keep": "true", "by": "bytes"},
            "rule 'x' has keep, so `by` means nothing there; remove it",
        ),
        ({"reason": "x", "top_fraction": 0.0, "of": "bytes"}, "above 0, at most 1"),
        ({"reason": "x", "top_fraction": 30.0, "of": "bytes"}, "above 0, at most 1"),
        ({"reason": "x", "top_fraction": 0.5}, "rule 'x' has top_fraction but no `of`; name the column"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(rule, words):
    with pytest.raises(ConfigError, match=words):
        RuleConfig(**rule)


def test_a_recipe_that_makes_no_sense_is_refused():
    with pytest.raises(
        ConfigError, match=r"recipe 'mine' gives the reason x to several rules; a reason names one rule"
    ):
        of_rules({"reason": "x", "keep": "true"}, {"reason": "x", "keep": "false"})
    with pytest.raises(ConfigError, match="has no rules"):
        compile_rules(of_rules(), SCHEMA)
    with pytest.raises(ConfigError, match=r"recipe\.min_bytes is -1"):
        RecipeConfig(name="x", version="1", source="x", min_text_length=0, min_bytes=-1)
