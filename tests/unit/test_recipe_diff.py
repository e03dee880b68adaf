"""Recipes from a user's file, and what is different between two recipes."""

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.schema import DOWNLOAD_SCHEMA, uid_of
from data_pipeline.own_recipe import with_own_recipe
from data_pipeline.recipe_by_name import load_recipe
from data_pipeline.recipe_diff import count_rows, main

ROOT = Path(__file__).resolve().parents[2]
MINE = """\
name: mine
version: "3"
source: "me"
min_text_length: 5
min_bytes: 0
taggers: [language]
parameters: {min_words: 2}
rules:
  - {reason: not_english, keep: "language = 'en'"}
  - {reason: too_few_words, keep: "word_count >= {min_words}"}
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    return str(path)


def make_run(root):
    """Ten English and ten German pairs of one to five words, tagged by language and clip."""
    names = ["00000000", "00000001"]
    for folder in ("raw", "tags/language", "tags/clip"):
        (root / folder).mkdir(parents=True)
    for number, name in enumerate(names):
        texts = [" ".join(["word"] * (1 + n % 5)) for n in range(10)]
        uids = [uid_of(f"http://a.b/{number}/{n}", text) for n, text in enumerate(texts)]
        rows = [
            {**dict.fromkeys(DOWNLOAD_SCHEMA.names), "uid": uid, "url": "", "text": text, "text_source": "alt",
             "status": "success", "bytes": 9000, "original_width": 300, "original_height": 300}
            for uid, text in zip(uids, texts, strict=True)
        ]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows, DOWNLOAD_SCHEMA), root / f"raw/{name}.parquet")
        pl.DataFrame({"uid": uids, "language": ["en", "de"][number]}).write_parquet(
            root / f"tags/language/{name}.parquet"
        )
        scores = pl.Series([n / 10 for n in range(10)], dtype=pl.Float32)
        pl.DataFrame({"uid": uids, "clip_score": scores}).write_parquet(root / f"tags/clip/{name}.parquet")
    for folder in ("raw", "tags/language", "tags/clip"):
        for name in names:
            (root / folder / f"{name}.stats.json").write_text("{}")
        settings = (
            {"models": [{"model": "ViT-L-14", "pretrained": "openai"}]} if folder == "tags/clip" else {}
        )
        value = {"settings": settings, "shards": [{"name": name} for name in names]}
        (root / folder / "manifest.json").write_text(json.dumps(value))
    return root


def test_ten_lines_of_yaml_are_a_recipe(mine):
    recipe = load_recipe(mine)
    assert (recipe.name, recipe.version, len(recipe.rules)) == ("mine", "3", 2)
    (word, other) = with_own_recipe([f"recipe={mine}", "output_dir=x.yaml"])
    assert word == "recipe=mine_of_your_own"
    assert other == "output_dir=x.yaml"
    assert with_own_recipe(["recipe=laion5b"]) == ["recipe=laion5b"]


def test_a_recipe_of_ones_own_may_start_from_a_shipped_one(tmp_path):
    path = tmp_path / "stricter.yaml"
    path.write_text("defaults: [laion5b, _self_]\nname: stricter\nparameters: {min_clip_score_en: 0.3}\n")
    recipe, base = load_recipe(str(path)), load_recipe("laion5b")
    assert recipe.parameters == {**base.parameters, "min_clip_score_en": 0.3}
    assert recipe.rules == base.rules


def test_the_pipeline_takes_the_file(mine):
    words = [f"recipe={mine}", "output_dir=x", "source.files=[a]", "--cfg", "job"]
    done = subprocess.run(
        [sys.executable, "-m", "data_pipeline", *words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "name: mine" in done.stdout
    assert "  - language\n" in done.stdout
    lost = subprocess.run(
        [sys.executable, "-m", "data_pipeline", "recipe=/no/such.yaml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert lost.returncode == 2
    assert (
        "error: recipe=/no/such.yaml cannot be read (No such file or directory); give the path" in lost.stderr
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [1\nb: {", "is not YAML"),
        ("just words", "is not a recipe: it has no rules"),
        ("- a\n- b\n", "is not a recipe: it has no rules"),
        ("name: x\n", "is not a recipe: it has no rules"),
        ("name: x\nrules: []\nmin_txt_length: 3\n", "min_txt_length"),
        ("defaults: [laion6b]\n", "laion6b"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content, words):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=words):
        load_recipe(str(path))


def test_the_diff_tells_settings_and_rules(capsys):
    assert main(["laion5b_en", "laion_aesthetic_v2_5"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "laion5b_en (version 1) -> laion_aesthetic_v2_5 (version 1)"
    assert "  heads: none -> ['aesthetic_v2']" in told
    assert "  parameters.min_aesthetic: none -> 5.0" in told
    assert "  = low_similarity: clip_score >= 0.28" in told
    assert "  + not_aesthetic: aesthetic >= 5.0" in told
    assert main(["laion400m", "laion5b_en"]) == 0
    assert "  ~ low_similarity: clip_score >= 0.3 -> clip_score >= 0.28" in capsys.readouterr().out
    assert main(["metaclip_400m", "metaclip_2_5b"]) == 0
    assert (
        "max_per_entry 20000, seed 0 -> balance metaclip_entries, max_per_entry 170000"
        in capsys.readouterr().out
    )
    assert main(["relaion_safe", "relaion_research_safe"]) == 0
    assert "settings\n  the same\n" in capsys.readouterr().out


def test_the_diff_counts_the_rows_that_change(tmp_path, mine, capsys):
    run = make_run(tmp_path / "run")
    other = tmp_path / "other.yaml"
    other.write_text(
        MINE.replace("mine", "other").replace("min_words: 2", "min_words: 4").replace("'en'", "'de'")
    )
    top = tmp_path / "top.yaml"
    top.write_text("defaults: [datacomp_clip_l14_30, _self_]\nname: top\n")
    a, b, c = (load_recipe(name) for name in (mine, str(other), str(top)))
    counted = count_rows(run, a, b)
    assert counted == {(None, "not_english"): 8, ("too_few_words", "not_english"): 2, ("not_english", None): 4,
                       ("not_english", "too_few_words"): 6}  # fmt: skip
    counted = count_rows(run, a, c)  # a top fraction over all rows
    assert sum(rows for (_, reason), rows in counted.items() if reason is None) == 6
    assert main([mine, str(other), "--data", str(run)]) == 0
    told = capsys.readouterr().out
    for line in (
        "20 pairs: 8 kept by mine, 4 by other",
        "0 kept by both; 8 by mine only; 4 by other only; 8 by neither",
        "kept by mine, dropped by other as not_english: 8",
        "kept by other, dropped by mine as not_english: 4",
    ):
        assert f"  {line}\n" in told
    assert sorted(path.name for path in run.iterdir()) == ["raw", "tags"]  # nothing is written


def test_scores_of_another_model_are_noted(tmp_path, mine, capsys):
    run = make_run(tmp_path / "run")
    b32 = tmp_path / "b32.yaml"
    b32.write_text(
        "defaults: [laion400m, _self_]\nname: b32\nparameters: {}\nrules: [{reason: low, keep: clip_score >= 0.3}]\n"
        "min_bytes: 1\n"
    )
    text = b32.read_text().replace(
        "defaults: [laion400m, _self_]\n", "version: '1'\nsource: x\nmin_text_length: 0\n"
    )
    b32.write_text(
        text + "taggers: [clip]\nclip_model: ViT-B-32\nclip_pretrained: openai\nclip_models: [{name: b}]\n"
    )
    assert main([str(b32), mine, "--data", str(run)]) == 0
    assert (
        "note: b32 asks for the scores of ViT-B-32 openai; those of this run are of ViT-L-14 openai"
        in capsys.readouterr().out
    )


def test_what_cannot_be_compared_is_said(tmp_path, mine, capsys):
    with pytest.raises(
        ConfigError, match=r"unknown recipe 'laion'; did you mean .* A file of your own ends in \.yaml"
    ):
        load_recipe("laion")
    with pytest.raises(DataError, match=r"is not a run: it has no raw/manifest\.json"):
        count_rows(tmp_path, load_recipe(mine), load_recipe(mine))
    run = make_run(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"unknown column 'language_bucket'.* Known: .*clip_score"):
        count_rows(run, load_recipe(mine), load_recipe("laion_art"))
    (run / "tags" / "language" / "00000001.stats.json").unlink()
    with pytest.raises(
        DataError, match="needs the columns of the language tagger, but 1 of 2 raw shards have no"
    ):
        count_rows(run, load_recipe(mine), load_recipe(mine))
    assert main(["laion5b", "lion"]) == 2
    assert "error: unknown recipe 'lion'" in capsys.readouterr().err
