"""Recipes: every shipped threshold on both sides, and what a wrong recipe is told before any work."""

from pathlib import Path

import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from crawl2clip.errors import ConfigError
from data_pipeline.clip_models import clip_columns
from data_pipeline.judge import Judge
from data_pipeline.language_tagger import LANGUAGE_COLUMNS
from data_pipeline.recipe import RecipeConfig, RuleConfig
from data_pipeline.rules import base_schema, compile_rules

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "recipe"
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


def shipped(name, **parameters):
    schema = OmegaConf.structured(RecipeConfig)
    with initialize_config_dir(str(RECIPES.parent), version_base="1.3"):
        composed = compose(f"recipe/{name}")["recipe"]  # a recipe may start from another one
    loaded = OmegaConf.merge(schema, composed, {"parameters": parameters})
    recipe = OmegaConf.to_object(loaded)
    assert isinstance(recipe, RecipeConfig)
    assert recipe.name == name
    return recipe


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


def test_laion5b():
    below_english, below_other = {"clip_score": 0.2799}, {"clip_score": 0.2599}
    japanese = {"language": "ja", "language_bucket": "other"}
    unclear = {"language_bucket": "unknown"}
    assert reasons(
        shipped("laion5b"),
        {},
        {"clip_score": 0.28},
        below_english,
        {**japanese, "clip_score": 0.26},
        {**japanese, **below_other},
        {**unclear, "clip_score": 0.26},
        {**unclear, **below_other},
        {"text": "12345"},
        {"text": "1234"},
        {"bytes": 4999},
        {"text": "いぬとねこ", **japanese},
    ) == [
        None,
        None,
        "low_similarity_english",
        None,
        "low_similarity_other",
        None,
        "low_similarity_other",
        None,
        "text_too_short",
        "file_too_small",
        None,
    ]


def test_laion5b_names_the_models_of_the_paper():
    recipe = shipped("laion5b")
    assert (recipe.min_text_length, recipe.min_bytes) == (5, 5000)
    assert (recipe.clip_model, recipe.clip_pretrained) == ("ViT-B-32", "openai")
    english, multilingual = recipe.clip_models
    assert (english.text_model, english.languages) == (None, ["en"])
    assert multilingual.text_model == "sentence-transformers/clip-ViT-B-32-multilingual-v1"
    assert multilingual.languages == ["other", "unknown"]


def test_laion400m():
    assert reasons(
        shipped("laion400m"),
        {"clip_score": 0.30},
        {"clip_score": 0.2999},
        {"text": "1234"},
        {"bytes": 4999},
        {"bytes": 5000, "text": "12345"},
    ) == [None, "low_similarity", "text_too_short", "file_too_small", None]


def test_datacomp_basic():
    assert reasons(
        shipped("datacomp_basic"),
        {},
        {"language": "de"},
        {"language": None},
        {"text": "three words here"},
        {"text": "only two_words_here"},
        {"text": "a b cd"},
        {"text": "a b c"},
        {"original_width": 199, "original_height": 300},
        {"original_width": 200, "original_height": 601},
        {"language_bucket": "unknown", "language_probability": 0.1},
    ) == [
        None,
        "not_english",
        "not_english",
        None,
        "too_few_words",
        None,
        "text_too_short",
        "image_too_small",
        "bad_aspect_ratio",
        None,
    ]


def test_trusted():
    recipe = shipped("trusted", page_prefix="http://localhost:8000/trusted/")
    assert reasons(
        recipe,
        {},
        {"page_url": "http://localhost:8000/open/?from=http://localhost:8000/trusted/"},
        {"page_url": None},
        {"text": "x"},
        {"bytes": 99},
    ) == [None, "not_trusted", "missing_page_url", "text_too_short", "file_too_small"]


def test_emoji_keeps_85_percent_of_each_language():
    rules = {rule.reason: rule for rule in compile_rules(shipped("emoji"), SCHEMA)}
    top = rules["low_similarity"]
    assert (top.fraction, top.of, top.by) == (0.85, "clip_score", "language_bucket")
    assert list(rules) == [
        "text_too_short", "file_too_small", "image_too_small", "low_similarity", "not_english", "skin_tone_variant",
    ]  # fmt: skip


def test_emoji_trains_on_english_pages_and_3_in_16_skin_tones():
    recipe = of_rules(*[
        {"reason": rule.reason, "keep": rule.keep} for rule in shipped("emoji").rules[4:]
    ])  # fmt: skip
    tone = "waving hand medium-dark skin tone"
    uids = [f"{0:031x}{digit:x}" for digit in range(16)]
    assert reasons(recipe, *({"uid": uid, "text": tone, "page_language": "en"} for uid in uids)) == [
        None if digit < 3 else "skin_tone_variant" for digit in range(16)
    ]
    assert reasons(
        recipe,
        {"text": "a cat", "page_language": "en"},
        {"text": "a cat", "page_language": "en-GB"},
        {"text": "a cat", "page_language": "de"},
        {"text": "a cat", "page_language": None},
    ) == [None, None, "not_english", "missing_page_language"]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_opens_with_its_source_and_compiles(path):
    header = path.read_text()
    assert "# Source:" in header
    assert "# Known deviations:" in header
    parameters = {"page_prefix": "http://localhost/"} if path.stem == "trusted" else {}
    recipe = shipped(path.stem, **parameters)
    taggers = {"language": LANGUAGE_COLUMNS, "clip": clip_columns(recipe.clip_models)}
    columns = {name: kind for tagger in recipe.taggers for name, kind in taggers[tagger].items()}
    compile_rules(recipe, pl.Schema({**base_schema(), **columns}))


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
