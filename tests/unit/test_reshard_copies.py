"""Weights, repeated uids and captions from elsewhere: how often a sample comes, and what it says."""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_stages import Inline

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.schema import DOWNLOAD_SCHEMA, UID_DTYPE, array_to_uids, uid_of, uids_to_array
from crawl2clip.shards import ShardWriter, list_shards, raise_fault, read_manifest, read_samples
from data_pipeline.reshard import ReshardConfig, make_stages
from data_pipeline.reshard_captions import CaptionMode
from data_pipeline.stage import run_stage
from data_pipeline.subset import count_in_subset, uid_halves
from train.data.captions import CaptionConfig, captions_of

UIDS = [uid_of(f"http://a.b/{number}", "x") for number in range(60)]


def write_raw(folder, broken=()):
    folder.mkdir(parents=True)
    for number, uids in enumerate((UIDS[:35], UIDS[35:])):
        with ShardWriter(folder / f"{number:08d}.tar") as writer:
            for uid in uids:
                described = b"{broken" if uid in broken else json.dumps({"text": f"alt {uid}"}).encode()
                writer.write(
                    uid, {"jpg": f"image {uid}".encode(), "txt": f"alt {uid}".encode(), "json": described}
                )
        blank = {**dict.fromkeys(DOWNLOAD_SCHEMA.names), "url": "", "text": "", "text_source": "alt"}
        rows = [{**blank, "uid": uid, "status": "success"} for uid in uids]
        pq.write_table(pa.Table.from_pylist(rows, DOWNLOAD_SCHEMA), folder / f"{number:08d}.parquet")
        (folder / f"{number:08d}.stats.json").write_text("{}")
    (folder / "manifest.json").write_text(json.dumps({"shards": [{"name": f"{n:08d}"} for n in range(2)]}))


def reshard(root, *, broken=(), **settings):
    """Runs the stage; its counts by step, and the samples."""
    if not (root / "raw").exists():
        write_raw(root / "raw", broken)
    (root / "subset").mkdir(exist_ok=True)
    np.save(root / "subset" / "subset.uids.npy", uids_to_array(UIDS))
    config = ReshardConfig(**{"samples_per_shard": 16, "seed": 0, **settings})
    counts = {}
    for stage in make_stages(SimpleNamespace(output_dir=str(root), reshard=config)):
        counts[stage.name] = run_stage(stage, Inline(), max_failed_fraction=0.0).counts
    shards = list_shards(str(root / "shards"))
    return counts, [sample for path in shards for sample in read_samples(path, raise_fault)]


def write(path, **columns):
    pl.DataFrame(columns).write_parquet(path)
    return str(path)


def copies(samples):
    return Counter(sample.key[:32] for sample in samples)


def test_weights_are_copies_spread_over_all_shards(tmp_path):
    weights = [3.0, 0.0, 1.0, 2.5] + [0.5] * 20
    path = write(tmp_path / "w.parquet", uid=[*UIDS[:24], "f" * 32], weight=[*weights, 9.0])
    counts, samples = reshard(tmp_path / "run", weights=path)
    found = copies(samples)
    assert (found[UIDS[0]], found[UIDS[1]], found[UIDS[2]]) == (3, 0, 1)
    assert found[UIDS[3]] in (2, 3)
    assert 2 <= sum(found[uid] for uid in UIDS[4:24]) <= 18
    assert all(found[uid] == 1 for uid in UIDS[24:])
    assert "f" * 32 not in found
    keys = [sample.key for sample in samples]
    assert len(set(keys)) == len(keys)
    assert {f"{UIDS[0]}", f"{UIDS[0]}-1", f"{UIDS[0]}-2"} <= set(keys)
    assert all(sample.fields["jpg"] == f"image {sample.key[:32]}".encode() for sample in samples)
    sizes = [entry.samples for entry in read_manifest(tmp_path / "run" / "shards")]
    assert max(sizes) - min(sizes) <= 1
    assert counts["reshard/index"].extra["further_copies"] > 0
    _, again = reshard(tmp_path / "again", weights=path)
    assert [sample.key for sample in again] == keys


def test_half_weights_keep_half(tmp_path):
    random = np.random.default_rng(0)
    uids = pl.Series([f"{a:016x}{b:016x}" for a, b in random.integers(0, 2**63, (4000, 2))])
    from data_pipeline.reshard_copies import WEIGHT_DTYPE, Copies

    halves = uid_halves(uids)
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    table = np.empty(4000, WEIGHT_DTYPE)
    table["f0"], table["f1"], table["weight"] = halves[order, 0], halves[order, 1], 1.25
    found = Copies(uids_to_array(uids), table, 5).of(halves)
    assert set(found.tolist()) == {1, 2}
    assert abs(found.sum() - 5000) < 5 * (4000 * 0.25 * 0.75) ** 0.5


def test_a_uid_that_comes_twice_gives_two_copies_as_in_datacomp(tmp_path):
    """A DataComp subset there and back: the file, the shards, and the same file of the shards' keys."""
    theirs = np.sort(np.array([*uids_to_array(UIDS[:9]), *uids_to_array(UIDS[:4])], dtype=UID_DTYPE))
    np.save(tmp_path / "theirs.npy", theirs)
    _, samples = reshard(tmp_path / "run", uids=str(tmp_path / "theirs.npy"))
    assert copies(samples) == Counter(array_to_uids(theirs))
    back = np.sort(np.array([uids_to_array([sample.key[:32]])[0] for sample in samples], dtype=UID_DTYPE))
    assert np.array_equal(back, theirs)


def test_count_in_a_list_with_repeats():
    listed = np.sort(np.array([(1, 5), (1, 5), (1, 6), (3, 0)], dtype=UID_DTYPE))
    asked = np.array([[1, 5], [1, 6], [1, 7], [0, 0], [3, 0], [9, 9]], np.uint64)
    assert count_in_subset(asked, listed).tolist() == [2, 1, 0, 0, 1, 0]
    assert count_in_subset(asked, listed, only_smaller=True).tolist() == [0, 2, 3, 0, 3, 4]
    assert count_in_subset(asked, listed[:0]).tolist() == [0] * 6


@pytest.mark.parametrize("mode", list(CaptionMode))
def test_captions_are_added_or_replaced_and_none_is_lost(tmp_path, mode):
    one = write(tmp_path / "blip.parquet", uid=UIDS[:10], caption=[f" blip {n} " for n in range(10)])
    lists = [[f"first {n}", "", None, f"second {n}"] for n in range(5)]
    two = write(tmp_path / "more.parquet", uid=[*UIDS[8:12], "f" * 32], caption=lists)
    weights = write(tmp_path / "w.parquet", uid=[UIDS[9]], weight=[2.0])
    counts, samples = reshard(
        tmp_path / "run", captions=[one, two], caption_mode=mode, weights=weights, broken=[UIDS[0]]
    )
    assert len(samples) == 61
    for sample in samples:
        uid, number = sample.key[:32], UIDS.index(sample.key[:32])
        new = [f"blip {number}"] if number < 10 else []
        new += [f"first {number - 8}", f"second {number - 8}"] if 8 <= number < 12 else []
        described = json.loads(sample.fields["json"])
        assert described.get("captions", []) == new
        if number:
            assert described["text"] == f"alt {uid}"
        alt = f"alt {uid}"
        assert sample.fields["txt"].decode() == (new[0] if new and mode == CaptionMode.replace else alt)
        places = [CaptionConfig(field="txt"), CaptionConfig(field="json:captions")]
        read = captions_of({name: sample.fields[name] for name in ("txt", "json")}, places).texts
        assert read == [sample.fields["txt"].decode(), *new]  # training draws from all of them
    assert counts["reshard/captions"].dropped == {"not_in_subset": 1}
    assert counts["reshard/write"].extra == {
        "with_new_caption": 13,
        "without_new_caption": 48,
        "json_replaced": 1,
    }


def test_captions_do_not_change_the_order_or_anything_else(tmp_path):
    path = write(tmp_path / "c.parquet", uid=UIDS, caption=["new"] * 60)
    _, plain = reshard(tmp_path / "plain")
    _, captioned = reshard(tmp_path / "captioned", captions=[path])
    assert [sample.key for sample in plain] == [sample.key for sample in captioned]
    assert [sample.fields["jpg"] for sample in plain] == [sample.fields["jpg"] for sample in captioned]


@pytest.mark.parametrize(
    ("setting", "columns", "words"),
    [
        (
            "weights",
            {"uid": UIDS[:1], "w": [1.0]},
            r"reshard\.weights names .*, which has no column 'weight' \(it has uid, w\); give a parquet file with",
        ),
        (
            "captions",
            {"id": UIDS[:1], "caption": ["a"]},
            r"reshard\.captions names .*, which has no column 'uid'",
        ),
    ],
)
def test_a_table_without_the_columns_is_refused_before_work(tmp_path, setting, columns, words):
    path = write(tmp_path / "t.parquet", **columns)
    with pytest.raises(ConfigError, match=words):
        reshard(tmp_path / "run", **{setting: [path] if setting == "captions" else path})
    (tmp_path / "t.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(ConfigError, match="cannot be read as parquet"):
        reshard(tmp_path / "run", **{setting: [path] if setting == "captions" else path})
    assert not (tmp_path / "run" / "reshard").exists()


@pytest.mark.parametrize(
    ("uid", "weight", "words"),
    [
        ([UIDS[0]], [-1.0], rf"the weight of {UIDS[0]} is -1\.0; give 0 to 1000"),
        ([UIDS[0]], [float("nan")], "is nan; give 0 to 1000"),
        ([UIDS[0]], [1e9], "give 0 to 1000"),
        ([UIDS[0], UIDS[0]], [1.0, 2.0], f"has the uid {UIDS[0]} twice; give each uid one weight"),
        (["not a uid"], [1.0], "'not a uid' is not a uid"),
    ],
)
def test_a_weight_that_is_none_stops_the_stage(tmp_path, uid, weight, words):
    path = write(tmp_path / "w.parquet", uid=uid, weight=weight)
    with pytest.raises(DataError, match=words):
        reshard(tmp_path / "run", weights=path)


def test_captions_that_are_not_texts_are_named(tmp_path):
    path = write(tmp_path / "c.parquet", uid=["xyz"], caption=["a"])
    with pytest.raises(DataError, match="'xyz' is not a uid"):
        reshard(tmp_path / "run", captions=[path])
