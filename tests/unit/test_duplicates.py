"""Duplicates over several raw shards: each pair against all others, as a loop over all pairs finds them."""

import json

import numpy as np
import pytest
from tag_runs import config_of, export, tag, write_raw_shards

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.schema import uid_of
from data_pipeline.embeddings import image_name, uids_name, write_uids
from data_pipeline.taggers import semantic_steps
from data_pipeline.taggers.duplicates import DuplicatesConfig
from data_pipeline.taggers.semantic_steps import first_close

WIDTH = 16  # of tag_runs' tiny model


def settings(**more):
    given = {"hamming_radius": 3, "min_cosine": 0.95, "rows_per_cluster": 1000, "rows_per_range": 1000}
    return DuplicatesConfig(**{**given, **more})


def shards_of(rows, seed=0):
    """Three raw shards; a third of the rows share their bytes or are near in hash to another row."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(rows):
        sha, phash = rng.bytes(32).hex(), int(rng.integers(2**63))
        if number >= 2 * rows // 3:
            other = made[rng.integers(len(made))]
            phash = int(other["phash"], 16)
            for bit in rng.choice(64, size=rng.integers(0, 6), replace=False):
                phash ^= 1 << int(bit)
            sha = other["sha256"] if rng.random() < 0.5 else sha
        made.append({"uid": uid_of("u", str(number)), "text": "t", "sha256": sha, "phash": f"{phash:016x}"})
    return [made[::3], made[1::3], made[2::3]]


def expected(rows, near):
    """For each row the smallest uid of all that are near to it, if it is less than its own."""
    found = []
    for row in rows:
        least = min(other["uid"] for other in rows if near(row, other))
        found.append(least if least < row["uid"] else None)
    return found


def bits(first, second):
    return bin(int(first["phash"], 16) ^ int(second["phash"], 16)).count("1")


@pytest.mark.parametrize("rows_per_range", [17, 10_000])
@pytest.mark.parametrize("radius", [0, 3])
def test_exact_and_near_duplicates_are_all_pairs_within_the_radius(tmp_path, rows_per_range, radius):
    shards = shards_of(150)
    write_raw_shards(tmp_path, shards)
    asked = settings(hamming_radius=radius, rows_per_range=rows_per_range)
    tables, counts = tag(tmp_path, config_of(taggers=["duplicates"], duplicates=asked))
    rows = [row for shard in shards for row in shard]
    table = tables["duplicates"]
    assert table["uid"].to_list() == [row["uid"] for row in rows]
    exact = expected(rows, lambda a, b: a["sha256"] == b["sha256"])
    near = expected(rows, lambda a, b: bits(a, b) <= radius)
    assert table["exact_duplicate_of"].to_list() == exact
    assert table["perceptual_duplicate_of"].to_list() == near
    assert table["semantic_duplicate_of"].null_count() == 150
    assert counts["extra"]["exact_duplicates"] == 150 - exact.count(None) > 10
    assert counts["extra"]["perceptual_duplicates"] == 150 - near.count(None) > 5


def test_a_pair_without_hashes_is_no_duplicate_of_another_without(tmp_path):
    rows = [
        {"uid": uid_of("u", str(number)), "text": "t", "sha256": None, "phash": None} for number in range(4)
    ]
    rows[3] |= {"sha256": "xyz", "phash": "0"}  # damaged
    write_raw_shards(tmp_path, [rows])
    tables, _ = tag(tmp_path, config_of(taggers=["duplicates"], duplicates=settings()))
    assert tables["duplicates"].drop("uid").null_count().row(0) == (4, 4, 4)
    stats = json.loads((tmp_path / "tags" / "duplicates" / "runs" / "00000.stats.json").read_text())
    assert stats["counts"]["extra"] == {"duplicates_no_sha256": 4, "duplicates_no_phash": 4}


def test_a_uid_in_a_shard_twice_is_refused(tmp_path):
    row = {"uid": uid_of("u", "1"), "text": "t", "sha256": "0" * 64, "phash": "0" * 16}
    write_raw_shards(tmp_path, [[row, row]])
    with pytest.raises(DataError, match=r"holds the uid .* 2 times"):
        tag(tmp_path, config_of(taggers=["duplicates"], duplicates=settings()))


def write_clip(output, shards, embeddings):
    """What the clip tagger writes, as far as embeddings go."""
    folder = output / "tags" / "clip"
    folder.mkdir(parents=True)
    names = []
    for number, (rows, values) in enumerate(zip(shards, embeddings, strict=True)):
        names.append(f"{number:08d}")
        write_uids(folder / uids_name(names[-1]), [row["uid"] for row in rows])
        np.save(folder / image_name(names[-1], "tiny"), values.astype(np.float16))
        counts = {"rows_in": len(rows), "rows_out": len(rows), "dropped": {}, "extra": {}}
        (folder / f"{names[-1]}.stats.json").write_text(json.dumps({"counts": counts, "seconds": 0.0}))
    (folder / "manifest.json").write_text(json.dumps({"shards": [{"name": name} for name in names]}))


def semantic(output, shards, embeddings, weights, **more):
    """The semantic duplicates of shards whose clip tags are `embeddings`."""
    write_raw_shards(output, shards)
    write_clip(output, shards, embeddings)
    models = [{"name": "tiny"}]
    config = config_of(
        weights, models, ["clip", "duplicates"], duplicates=settings(clip_model="tiny", **more)
    )
    config.taggers.remove("clip")  # it has run
    return tag(output, config)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return export(tmp_path_factory.mktemp("weights"))


def near_duplicates(rows, seed=0):
    """Unit vectors; the second half have one of the first at a cosine of about 0.99 or more."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, WIDTH))
    for row in range(rows // 2, rows):
        noise = rng.normal(size=WIDTH)
        values[row] = values[row - rows // 2] + 0.1 * noise
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values


def test_semantic_duplicates_of_one_cluster_are_all_pairs_that_are_close(tmp_path, weights):
    shards = shards_of(90)
    values = near_duplicates(90)
    values[7] = np.nan
    parts = [values[:30], values[30:60], values[60:]]
    tables, counts = semantic(tmp_path, shards, parts, weights, rows_per_range=31)
    rows = [row for shard in shards for row in shard]
    place = {row["uid"]: number for number, row in enumerate(rows)}
    stored = values.astype(np.float16).astype(np.float32)
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)

    def close(a, b):
        a, b = place[a["uid"]], place[b["uid"]]
        return a == b or stored[a] @ stored[b] >= 0.95

    found = tables["duplicates"]["semantic_duplicate_of"].to_list()
    assert found == expected(rows, close)
    assert counts["extra"]["semantic_duplicates"] == 90 - found.count(None) > 20


def test_most_semantic_duplicates_are_found_across_many_clusters(tmp_path, weights):
    pytest.importorskip("faiss", reason='pip install -e ".[semantic]"')
    shards = shards_of(600)
    values = near_duplicates(600)
    parts = [values[:200], values[200:400], values[400:]]
    tables, _ = semantic(
        tmp_path, shards, parts, weights, rows_per_cluster=60, rows_per_range=250, min_cosine=0.9
    )
    uids = [row["uid"] for shard in shards for row in shard]
    true = {frozenset((uids[row], uids[row - 300])) for row in range(300, 600)}
    told = {
        frozenset((uid, other))
        for uid, other in zip(uids, tables["duplicates"]["semantic_duplicate_of"], strict=True)
        if other
    }
    precision, recall = len(told & true) / len(told), len(told & true) / len(true)
    assert precision > 0.95
    assert recall > 0.8


def test_blocks_do_not_change_what_is_close(monkeypatch):
    features = near_duplicates(50).astype(np.float32)
    whole = first_close(features, 0.9)
    monkeypatch.setattr(semantic_steps, "_BLOCK", 7)
    assert first_close(features, 0.9).tolist() == whole.tolist()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"hamming_radius": 16}, r"hamming_radius is 16; give 0 to 15 bits"),
        ({"hamming_radius": -1}, r"hamming_radius is -1"),
        ({"min_cosine": 0.0}, r"min_cosine is 0\.0; give above 0, at most 1"),
        ({"rows_per_range": 0}, r"rows_per_range is 0; give 1 or more"),
    ],
)
def test_settings_out_of_range_are_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        settings(**given)


def test_semantic_duplicates_need_the_clip_tagger_and_faiss(tmp_path, weights, monkeypatch):
    with pytest.raises(
        ConfigError, match=r"the duplicates tagger reads the embeddings.*give \[clip, duplicates\]"
    ):
        config_of(weights, [{"name": "tiny"}], ["duplicates"], duplicates=settings(clip_model="tiny"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"need the package faiss-cpu.*\[semantic\]"):
        semantic_steps.require_faiss()
