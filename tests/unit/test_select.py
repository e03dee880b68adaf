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
from data_pipeline.blocklist import BlockKind, hash_of
from data_pipeline.clip_models import ClipModelConfig
from data_pipeline.language import LanguageDetector
from data_pipeline.recipe import RecipeConfig, RuleConfig
from data_pipeline.rules import TopFractionRule, base_schema, compile_rules
from data_pipeline.select import SelectConfig, SelectStage, make_stage, read_decisions, read_recipe
from data_pipeline.stage import make_shard, publish_shard, temporary_folder
from data_pipeline.subset import SubsetWriter, uid_halves
from data_pipeline.tag import TagConfig
from data_pipeline.top_fraction import find_cuts, num_kept

TAGS = {"language_bucket": pl.String, "clip_score": pl.Float32, "entries": pl.List(pl.Int32)}


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
        rows.append({**row, "language_bucket": bucket, "clip_score": score, "entries": [], **columns})
    return rows


def run(tmp_path, shards, *rules, **settings):
    """Selects from raw shards given as lists of rows; returns uid -> reason, and the counts."""
    raw, tags = {}, {}
    for number, rows in enumerate(shards):
        padded = [{**dict.fromkeys(DOWNLOAD_SCHEMA.names), "text_source": "alt", **row} for row in rows]
        plain = [{name: row[name] for name in DOWNLOAD_SCHEMA.names} for row in padded]
        raw[f"{number:08d}"] = pa.Table.from_pylist(plain, DOWNLOAD_SCHEMA)
        # Tags come in another order than the table, and for one pair that is not in it: nothing joins by position.
        tagged = [row for row in reversed(rows) if row["status"] == "success" and not row.get("untagged")]
        kept = [{name: row[name] for name in ("uid", *TAGS)} for row in tagged]
        kept.append({"uid": "f" * 32, "language_bucket": "en", "clip_score": 99.0, "entries": None})
        tags[f"{number:08d}"] = pl.DataFrame(kept, schema={"uid": pl.String, **TAGS}).to_arrow()
    write_stage_folder(tmp_path / "raw", raw)
    write_stage_folder(tmp_path / "tags" / "clip", tags)
    return select(tmp_path, *rules, **settings)


def stage_of(tmp_path, *rules, blocklist=(), phash_distance=0):
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
    columns = {"clip": list(TAGS)}
    return SelectStage(
        "select", folder, {}, raw, tags, recipe, columns, compiled, tuple(blocklist), phash_distance
    )


def select(tmp_path, *rules, **settings):
    stage = stage_of(tmp_path, *rules, **settings)
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


SPREADS = {
    "bits": lambda random, n: random.integers(0, 2**32, n, dtype=np.uint32).view(np.float32),
    "close": lambda random, n: (0.3 + random.random(n) * 1e-6).astype(np.float32),
    "ties": lambda random, n: np.full(n, 0.25, np.float32),
    "zeros": lambda random, n: random.choice(np.array([0.0, -0.0, -1e-40, 1e-40], np.float32), n),
}


@pytest.mark.parametrize("spread", SPREADS)
def test_a_cut_found_digit_by_digit_is_the_cut_of_the_sorted_rows(spread, monkeypatch):
    """No row fits in memory here, so every digit of score and uid is looked at."""
    monkeypatch.setattr("data_pipeline.top_fraction.ROWS_IN_MEMORY", 1)
    random = np.random.default_rng(3)
    scores = SPREADS[spread](random, 3000)
    scores = scores[np.isfinite(scores)]
    uids = [f"{a:016x}{b:016x}" for a, b in random.integers(0, 2**63, (len(scores), 2))]
    frame = pl.DataFrame(
        {"uid": uids, "clip_score": scores, "by": [["en", "ja"][n % 3 == 0] for n in range(len(uids))]}
    )
    passes = []

    def tables():
        passes.append(1)
        return iter([frame[:1000], frame[1000:1001], frame[1001:]])

    for by in (None, "by"):
        for fraction in (0.001, 0.3, 1.0):
            cuts = find_cuts(TopFractionRule("x", fraction, "clip_score", by), tables)
            for group, cut in cuts.items():
                rows = frame if group is None else frame.filter(pl.col("by") == group)
                ranked = sorted(
                    zip(rows["clip_score"], rows["uid"], strict=True), key=lambda row: (-row[0], row[1])
                )
                last = ranked[num_kept(fraction, len(rows)) - 1]
                assert (cut.score, cut.last_uid) == last
                assert (cut.rows, cut.kept) == (len(rows), num_kept(fraction, len(rows)))


@pytest.mark.parametrize("kind", [pl.Int8, pl.Int64, pl.UInt64, pl.Float64, pl.UInt16])
def test_any_kind_of_number_ranks(kind):
    low, high = (0, 255) if kind in (pl.UInt64, pl.UInt16) else (-128, 127)
    values = np.random.default_rng(0).permutation(np.arange(low, high + 1))
    frame = pl.DataFrame({"uid": [f"{n:032x}" for n in range(256)], "n": pl.Series(values, dtype=kind)})
    cuts = find_cuts(TopFractionRule("x", 0.25, "n", None), lambda: iter([frame]))
    assert cuts[None].score == high - 63


def test_a_group_by_nearly_every_row_is_refused(monkeypatch):
    monkeypatch.setattr("data_pipeline.top_fraction.MAX_GROUPS", 5)
    frame = pl.DataFrame({"uid": [f"{n:032x}" for n in range(6)], "n": range(6), "url": list("abcdef")})
    with pytest.raises(
        DataError, match="rule 'x' takes a fraction of each value of 'url', which has more than 5 values"
    ):
        find_cuts(TopFractionRule("x", 0.5, "n", "url"), lambda: iter([frame]))


def test_a_sample_is_the_same_rows_in_every_run_and_of_any_part(tmp_path):
    rows = rows_of(0, [0.5] * 2000)
    sample = {"reason": "not_sampled", "sample_fraction": 0.25, "seed": 7}
    verdict, _ = run(tmp_path / "all", [rows[:900], rows[900:]], sample)
    kept = {uid for uid, reason in verdict.items() if reason is None}
    assert abs(len(kept) - 500) < 5 * (2000 * 0.25 * 0.75) ** 0.5
    half, _ = run(tmp_path / "half", [rows[500:1500]], sample)
    assert {uid for uid, reason in half.items() if reason is None} == kept & set(half)
    more, _ = run(tmp_path / "more", [rows], {**sample, "sample_fraction": 0.5})
    assert kept < {uid for uid, reason in more.items() if reason is None}
    other, _ = run(tmp_path / "other", [rows], {**sample, "seed": 8})
    assert 60 < len(kept & {uid for uid, reason in other.items() if reason is None}) < 190  # 125 by chance


def balance(limit, seed=0):
    return {"reason": "balanced_out", "balance": "entries", "max_per_entry": limit, "seed": seed}


def test_balancing_keeps_what_the_paper_says(tmp_path):
    # Entry 3 is in 1,000 rows, 5 in 400 of these, 9 in 20 of these: a row stays if any of its entries keeps it.
    rows = [
        {**row, "entries": [3, *([5] if n < 400 else []), *([9, 9] if n < 20 else [])]}
        for n, row in enumerate(rows_of(0, [0.5] * 1000))
    ]
    verdict, counts = run(tmp_path / "a", [rows[::2], rows[1::2]], balance(100))
    kept = [verdict[row["uid"]] is None for row in rows]
    assert all(kept[:20])  # 9 is rare
    chance = 1 - (1 - 100 / 1000) * (1 - 100 / 400)
    assert abs(sum(kept[20:400]) - 380 * chance) < 5 * (380 * chance * (1 - chance)) ** 0.5
    assert abs(sum(kept[400:]) - 600 * 0.1) < 5 * (600 * 0.09) ** 0.5
    assert counts["dropped"] == {"balanced_out": 1000 - sum(kept)}
    again, _ = run(tmp_path / "b", [rows], balance(100))  # other shards, the same rows
    assert {uid: again[uid] for uid in again} == {uid: verdict[uid] for uid in again}
    other, _ = run(tmp_path / "c", [rows], balance(100, seed=1))
    assert other != again


def test_balancing_counts_the_rows_that_are_left_when_it_is_reached(tmp_path):
    rows = rows_of(0, [0.1] * 900 + [0.9] * 100, entries=[4])
    verdict, _ = run(tmp_path, [rows], LOW, balance(100))
    assert Counter(verdict.values()) == {"low": 900, None: 100}


def test_rows_without_entries_are_missing_or_have_nothing_to_keep_them(tmp_path):
    rows = [*rows_of(0, [0.5], entries=None), *rows_of(1, [0.5]), *rows_of(2, [0.5], entries=[None, 2])]
    verdict, _ = run(tmp_path, [rows], balance(5))
    assert list(verdict.values()) == ["missing_entries", "balanced_out", None]


def test_an_entry_that_cannot_be_one_is_named(tmp_path):
    with pytest.raises(
        DataError, match=r"the column 'entries' holds the entry -1; entries are numbers of lines"
    ):
        run(tmp_path, [rows_of(0, [0.5], entries=[-1])], balance(5))


def test_blocklists_come_before_the_rules_and_are_counted_by_kind(tmp_path):
    rows = rows_of(0, [0.9, 0.1, 0.8, 0.7, 0.6, 0.5])
    for number, row in enumerate(rows):
        row |= {"md5": f"{number:032x}", "sha256": f"{number:032x}" * 2, "phash": f"{number * 255:016x}"}
    rows[5] |= {"md5": None, "sha256": None, "phash": None}  # no hash, no match
    listed = tmp_path / "list.txt"
    far = f"phash:{4 * 255 ^ 0b111:016x}"
    url = f"url:{hash_of(BlockKind.url, rows[3]['url'])}"
    listed.write_text("\n".join([f"md5:{1:032x}", f"sha256:{f'{2:032x}' * 2}", far, url]))
    settings = {"blocklist": [str(listed)], "phash_distance": 3}
    verdict, counts = run(tmp_path / "a", [rows[:3], rows[3:]], LOW, top(0.5), **settings)
    named = ["blocked_md5", "blocked_sha256", "blocked_url", "blocked_phash"]
    assert list(verdict.values()) == [None, *named, "not_top"]
    assert counts["dropped"] == {**dict.fromkeys(named, 1), "not_top": 1}
    told = read_recipe(tmp_path / "a")
    assert told["blocklists"] == 1
    assert {step["reason"] for step in told["funnel"][:4]} == set(named)
    assert told["top_fractions"]["not_top"]["all"]["rows"] == 2  # blocked rows take no part
    listed.write_text(far)
    for distance, reason in ((2, None), (3, "blocked_phash")):
        every = {"reason": "none", "keep": "true"}
        settings = {"blocklist": [str(listed)], "phash_distance": distance}
        verdict, _ = run(tmp_path / str(distance), [rows], every, **settings)
        assert verdict[rows[4]["uid"]] == reason


def test_a_blocklist_that_cannot_be_used_stops_before_work(tmp_path):
    (tmp_path / "list.txt").write_text("md5:0\n")
    recipe = RecipeConfig(
        name="mine", version="1", source="-", min_text_length=0, min_bytes=0, rules=[RuleConfig(**LOW)]
    )
    tagger = TagConfig(
        taggers=["clip"],
        models=[ClipModelConfig(name="x", pretrained="x")],
        language_detector=LanguageDetector.fasttext,
        min_language_probability=0.5,
        device="cpu",
        precision="fp32",
        image_batch_size=1,
    )
    select = SelectConfig(blocklist=[str(tmp_path / "list.txt")], phash_distance=0)
    config: Any = SimpleNamespace(output_dir=str(tmp_path), recipe=recipe, tagger=tagger, select=select)
    with pytest.raises(
        ConfigError, match=r"select\.blocklist names .*line 1, is not an entry of a blocklist"
    ):
        make_stage(config)
    with pytest.raises(ConfigError, match=r"select\.phash_distance is 16; give 0 to 15 bits of 64"):
        SelectConfig(phash_distance=16)


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
        select=SelectConfig(phash_distance=0),
        output_dir=str(tmp_path),
        recipe=recipe,
        tagger=SimpleNamespace(taggers=["language"]),
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
