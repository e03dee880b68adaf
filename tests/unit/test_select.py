"""Selecting: joins by uid, exact top fractions, and refusing what would silently select wrongly."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.schema import DOWNLOAD_SCHEMA, UID_DTYPE, array_to_uids, uid_of
from data_pipeline.recipe import RecipeConfig, RuleConfig
from data_pipeline.rules import base_schema, compile_rules
from data_pipeline.select import SelectStage, make_stage, read_decisions, read_recipe
from data_pipeline.stage import make_shard, publish_shard, temporary_folder
from data_pipeline.subset import SubsetWriter, uid_halves
from data_pipeline.top_fraction import num_kept

TAGS = {"language_bucket": pl.String, "clip_score": pl.Float32}


def write_stage_folder(folder, tables):
    """A finished stage's folder: its parquet files, completion markers and manifest."""
    folder.mkdir(parents=True)
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
        (folder / f"{name}.stats.json").write_text("{}")
    (folder / "manifest.json").write_text(json.dumps({"shards": [{"name": name} for name in tables]}))


def rows_of(number, scores, *, bucket="en", **columns):
    """Rows of a raw shard with these scores, each its own pair."""
    rows = []
    for index, score in enumerate(scores):
        url = f"http://a.b/{number}/{index}.png"
        row = {"uid": uid_of(url, "text"), "url": url, "text": "text", "status": "success", "bytes": 9000}
        rows.append({**row, "language_bucket": bucket, "clip_score": score, **columns})
    return rows


def run(tmp_path, shards, *rules):
    """Selects from raw shards given as lists of rows; returns uid -> reason, and the counts."""
    raw, tags = {}, {}
    for number, rows in enumerate(shards):
        padded = [{**dict.fromkeys(DOWNLOAD_SCHEMA.names), "text_source": "alt", **row} for row in rows]
        plain = [{name: row[name] for name in DOWNLOAD_SCHEMA.names} for row in padded]
        raw[f"{number:08d}"] = pa.Table.from_pylist(plain, DOWNLOAD_SCHEMA)
        # Tags come in another order than the table, and for one pair that is not in it: nothing joins by position.
        tagged = [row for row in reversed(rows) if row["status"] == "success" and not row.get("untagged")]
        kept = [{name: row[name] for name in ("uid", *TAGS)} for row in tagged]
        kept.append({"uid": "f" * 32, "language_bucket": "en", "clip_score": 99.0})
        tags[f"{number:08d}"] = pl.DataFrame(kept, schema={"uid": pl.String, **TAGS}).to_arrow()
    write_stage_folder(tmp_path / "raw", raw)
    write_stage_folder(tmp_path / "tags" / "clip", tags)
    return select(tmp_path, *rules)


def stage_of(tmp_path, *rules):
    recipe = RecipeConfig(
        name="mine",
        version="1",
        source="-",
        min_text_length=0,
        min_bytes=0,
        rules=[RuleConfig(**r) for r in rules],
    )
    compiled = compile_rules(recipe, pl.Schema({**base_schema(), **TAGS}))
    folder, raw, tags = tmp_path / "subset", tmp_path / "raw", tmp_path / "tags"
    return SelectStage("select", folder, {}, raw, tags, recipe, {"clip": list(TAGS)}, compiled)


def select(tmp_path, *rules):
    stage = stage_of(tmp_path, *rules)
    (shard,) = stage.shards()
    stage.folder.mkdir(exist_ok=True)
    temporary = temporary_folder(stage, shard)
    make_shard(stage, stage.setup(), shard, temporary)
    publish_shard(stage, shard, temporary)
    stats = json.loads((stage.folder / "subset.stats.json").read_text())
    decisions = read_decisions(tmp_path)
    verdict = dict(zip(decisions["uid"], decisions["reason"], strict=True))
    assert [uid for uid, reason in verdict.items() if reason is None] == decisions.filter("kept")[
        "uid"
    ].to_list()
    kept = np.load(stage.folder / "subset.uids.npy")
    assert kept.dtype == UID_DTYPE
    assert array_to_uids(kept) == sorted(uid for uid, reason in verdict.items() if reason is None)
    return verdict, stats["counts"]


LOW = {"reason": "low", "keep": "clip_score >= 0.28"}


def test_joins_by_uid_and_counts_every_row_once(tmp_path):
    shards = [
        rows_of(0, [0.28, 0.1, None, float("nan")]),
        [*rows_of(1, [0.9]), *rows_of(2, [0.9], status="timeout"), *rows_of(3, [0.9], untagged=True)],
    ]
    verdict, counts = run(tmp_path, shards, {"reason": "small", "keep": "bytes >= 5000"}, LOW)
    assert list(verdict.values()) == [
        None,
        "low",
        "missing_clip_score",
        "missing_clip_score",
        None,
        "missing_clip_score",
    ]
    assert counts["rows_in"] == 6
    assert counts["rows_out"] == 2
    assert counts["dropped"] == {"low": 1, "missing_clip_score": 3}


def test_the_recipe_file_tells_the_funnel(tmp_path):
    run(
        tmp_path,
        [rows_of(0, [0.5, 0.1, None]), rows_of(1, [0.6])],
        {"reason": "small", "keep": "bytes > 1"},
        LOW,
    )
    told = read_recipe(tmp_path)
    assert told["recipe"]["name"] == "mine"
    assert (told["rows_in"], told["rows_out"]) == (4, 2)
    assert told["funnel"] == [
        {"reason": "small", "dropped": 0, "left": 4},
        {"reason": "low", "dropped": 1, "left": 3},
        {"reason": "missing_clip_score", "dropped": 1, "left": 2},
    ]


def top(fraction, **more):
    return {"reason": "not_top", "top_fraction": fraction, "of": "clip_score", **more}


@pytest.mark.parametrize("fraction", [0.01, 0.15, 0.3, 0.7, 0.999, 1.0])
@pytest.mark.parametrize("num_values", [3, 1000])  # with 3 values nearly every row is a tie
def test_a_top_fraction_is_exact_over_all_shards_and_ties_go_by_uid(tmp_path, fraction, num_values):
    random = np.random.default_rng(7)
    shards = [
        rows_of(number, (random.integers(num_values, size=size) / num_values).astype(np.float32).tolist())
        for number, size in enumerate([40, 1, 25, 34])
    ]
    verdict, _ = run(tmp_path, shards, top(fraction))
    rows = [row for shard in shards for row in shard]
    ranked = sorted(rows, key=lambda row: (-row["clip_score"], row["uid"]))
    expected = {row["uid"] for row in ranked[: num_kept(fraction, 100)]}
    assert {uid for uid, reason in verdict.items() if reason is None} == expected


def test_a_top_fraction_is_taken_of_the_rows_that_are_left_in_each_group(tmp_path):
    shards = [
        [
            *rows_of(0, [0.9, 0.8, 0.7, 0.6]),
            *rows_of(1, [0.99, 0.98], bytes=10),
        ],  # the last two are too small
        [*rows_of(2, [0.2, 0.1], bucket="other"), *rows_of(3, [0.3], bucket=None)],
    ]
    small = {"reason": "small", "keep": "bytes >= 5000"}
    verdict, _ = run(tmp_path, shards, small, top(0.5, by="language_bucket"))
    half = [None, None, "not_top", "not_top", "small", "small"]
    assert list(verdict.values()) == [*half, None, "not_top", "missing_language_bucket"]
    cuts = read_recipe(tmp_path)["top_fractions"]["not_top"]
    assert {group: (cut["rows"], cut["kept"]) for group, cut in cuts.items()} == {
        "en": (4, 2),
        "other": (2, 1),
    }
    assert cuts["other"]["score"] == pytest.approx(0.2)


def test_two_top_fractions_follow_each_other(tmp_path):
    verdict, _ = run(
        tmp_path,
        [rows_of(0, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])],
        top(0.5),
        {"reason": "not_top_again", "top_fraction": 0.25, "of": "clip_score"},
        {"reason": "late", "keep": "clip_score < 0.75"},
    )
    assert list(verdict.values()) == [*["not_top"] * 4, *["not_top_again"] * 3, "late"]


def test_a_top_fraction_of_nothing_keeps_nothing(tmp_path):
    verdict, _ = run(tmp_path, [rows_of(0, [0.1, 0.2])], {"reason": "no", "keep": "false"}, top(0.5))
    assert Counter(verdict.values()) == {"no": 2}


@pytest.mark.parametrize(
    ("fraction", "rows", "expected"),
    [(0.7, 10, 7), (0.3, 10, 3), (0.15, 1, 1), (0.15, 20, 3), (0.15, 21, 4), (1.0, 3, 3)],
)
def test_num_kept_rounds_up_from_the_decimal_that_was_written(fraction, rows, expected):
    assert num_kept(fraction, rows) == expected


def test_a_recipe_whose_tagger_is_switched_off_is_refused(tmp_path):
    recipe = RecipeConfig(
        name="mine", version="1", source="-", min_text_length=0, min_bytes=0, taggers=["language", "clip"]
    )
    config: Any = SimpleNamespace(  # the part of PipelineConfig that it reads
        output_dir=str(tmp_path), recipe=recipe, tagger=SimpleNamespace(taggers=["language"])
    )
    with pytest.raises(
        ConfigError,
        match=r"recipe 'mine' needs the tagger clip, tagger\.taggers is \['language'\]; leave .* or add it",
    ):
        make_stage(config)


def test_a_shard_without_tags_is_an_error_before_work(tmp_path):
    run(tmp_path, [rows_of(0, [0.1]), rows_of(1, [0.1])], LOW)
    (tmp_path / "tags" / "clip" / "00000001.stats.json").unlink()
    with pytest.raises(DataError, match=r"1 of 2 raw shards have no .*tags/clip.*first: 00000001.*stage=tag"):
        stage_of(tmp_path, LOW).shards()


def test_tags_that_no_rule_reads_need_not_be_there(tmp_path):
    run(tmp_path, [rows_of(0, [0.1])], LOW)
    (tmp_path / "tags" / "clip" / "00000000.stats.json").unlink()
    assert len(stage_of(tmp_path, {"reason": "small", "keep": "bytes > 1"}).shards()) == 1


def test_a_uid_twice_is_an_error_that_names_it(tmp_path):
    rows = rows_of(0, [0.5])
    with pytest.raises(DataError, match=rf"00000000\.parquet holds the uid {rows[0]['uid']} 2 times"):
        run(tmp_path / "one", [rows * 2], LOW)
    with pytest.raises(DataError, match=rf"1 uids are in several raw shards, the first is {rows[0]['uid']}"):
        run(tmp_path / "two", [rows, rows], LOW)


@pytest.mark.parametrize("damage", ["torn", "column"])
def test_a_damaged_tag_file_is_named(tmp_path, damage):
    run(tmp_path, [rows_of(0, [0.1])], LOW)
    path = tmp_path / "tags" / "clip" / "00000000.parquet"
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:100])
    else:
        pl.read_parquet(path).drop("clip_score").write_parquet(path)
    with pytest.raises(
        DataError, match=r"tags/clip/00000000\.parquet cannot be read with the columns uid, clip_score"
    ):
        select(tmp_path, LOW)


def test_uids_keep_all_their_bits(tmp_path):
    uids = ["0" * 32, "f" * 32, "8" + "0" * 31, "0" * 16 + "8" + "0" * 15]
    writer = SubsetWriter(tmp_path / "uids.npy")
    for part in (uids[:2], [], uids[2:]):
        writer.add(uid_halves(pl.Series(part, dtype=pl.String)))
    assert writer.close() == 4
    assert [path.name for path in tmp_path.iterdir()] == ["uids.npy"]
    assert array_to_uids(np.load(tmp_path / "uids.npy", mmap_mode="r")) == sorted(uids)
    for odd in ("xyz", "g" * 32, "A" * 32, "0" * 31 + "é", None):
        with pytest.raises(DataError, match="is not a uid; a uid is 32 hex digits"):
            uid_halves(pl.Series([uids[0], odd]))


def test_the_same_input_gives_the_same_bytes(tmp_path):
    shards = [rows_of(0, [0.5, 0.1]), rows_of(1, [0.3])]
    for folder in ("one", "two"):
        run(tmp_path / folder, shards, LOW, top(0.5))
    for name in ("subset.uids.npy", "subset.decisions.parquet", "subset.recipe.json"):
        first, second = (Path(tmp_path / folder / "subset" / name).read_bytes() for folder in ("one", "two"))
        assert first == second
