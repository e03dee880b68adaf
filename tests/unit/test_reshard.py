"""Resharding: a global order that depends on uids and seed alone, shards of equal size, nothing lost or changed."""

import json
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from toy_stages import Inline

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.schema import DOWNLOAD_SCHEMA, uid_of, uids_to_array
from crawl2clip.shards import ShardWriter, list_shards, raise_fault, read_manifest, read_samples
from data_pipeline.open_files import OpenFiles
from data_pipeline.reshard import ReshardConfig, key_ranges, make_stages
from data_pipeline.stage import run_stage
from data_pipeline.subset import is_in_subset, open_uids, order_keys, uid_halves


def pair(number):
    url = f"http://a.b/{number}.png"
    uid = uid_of(url, f"picture {number}")
    fields = {
        ("jpg", "png", "webp")[number % 3]: f"image {number} ".encode() * (1 + number % 7),
        "txt": f"picture {number} ☂".encode(),
        "json": json.dumps({"url": url}).encode(),
    }
    return uid, fields


PAIRS = dict(map(pair, range(50)))


def write_raw(folder, parts, tables=None):
    """Raw shards whose tars hold these uids; `tables` when their parquet lists others."""
    folder.mkdir(parents=True)
    for number, uids in enumerate(parts):
        name = f"{number:08d}"
        with ShardWriter(folder / f"{name}.tar") as writer:
            for uid in uids:
                writer.write(uid, PAIRS[uid])
        blank = {**dict.fromkeys(DOWNLOAD_SCHEMA.names), "url": "", "text": "", "text_source": "alt"}
        rows = [{**blank, "uid": uid, "status": "success"} for uid in (tables or parts)[number]]
        pq.write_table(pa.Table.from_pylist(rows, DOWNLOAD_SCHEMA), folder / f"{name}.parquet")
        (folder / f"{name}.stats.json").write_text("{}")
    names = [{"name": f"{number:08d}"} for number in range(len(parts))]
    (folder / "manifest.json").write_text(json.dumps({"shards": names}))


def reshard(output, kept, *, samples_per_shard=16, seed=0):
    """Runs the three stages; returns their counts by stage name."""
    (output / "subset").mkdir(exist_ok=True)
    np.save(output / "subset" / "subset.uids.npy", uids_to_array(kept))
    config = ReshardConfig(samples_per_shard=samples_per_shard, seed=seed)
    counts = {}
    for stage in make_stages(SimpleNamespace(output_dir=str(output), reshard=config)):
        counts[stage.name] = run_stage(stage, Inline(), max_failed_fraction=0.0).counts
    return counts


def samples(output):
    return [s for path in list_shards(str(output / "shards")) for s in read_samples(path, raise_fault)]


def cut(uids, *sizes):
    uids, parts = list(uids), []
    for size in sizes:
        parts.append(uids[:size])
        uids = uids[size:]
    return [*parts, uids]


def test_every_kept_sample_once_unchanged_in_equal_shards(tmp_path):
    write_raw(tmp_path / "raw", cut(PAIRS, 20, 1))
    kept = set(list(PAIRS)[3:40])
    counts = reshard(tmp_path, kept)
    found = samples(tmp_path)
    assert sorted(sample.key for sample in found) == sorted(kept)
    assert all(sample.fields == PAIRS[sample.key] for sample in found)
    assert [entry.samples for entry in read_manifest(tmp_path / "shards")] == [12, 12, 13]
    assert counts["reshard/index"].rows_out == counts["reshard/write"].rows_out == 37


def test_the_order_is_shuffled_and_depends_on_uids_and_seed_alone(tmp_path):
    uids = list(PAIRS)
    for folder, parts, seed in (
        ("one", cut(uids, 25), 0),
        ("two", cut(uids[::-1], 3, 40), 0),  # the same pairs, crawled in another order into other shards
        ("three", cut(uids, 25), 1),
    ):
        write_raw(tmp_path / folder / "raw", parts)
        reshard(tmp_path / folder, uids, seed=seed)
    one, two, three = ([s.key for s in samples(tmp_path / folder)] for folder in ("one", "two", "three"))
    assert one == two
    assert one != three
    assert one not in (uids, sorted(uids))
    for entry, other in zip(
        read_manifest(tmp_path / "one/shards"), read_manifest(tmp_path / "two/shards"), strict=True
    ):
        assert entry == other  # name, samples, bytes, sha256


def test_a_plan_in_several_passes_is_the_same_plan(tmp_path, monkeypatch):
    plans = []
    for folder, plan_rows in (("one", 4_000_000), ("many", 7)):
        monkeypatch.setattr("data_pipeline.reshard.PLAN_ROWS", plan_rows)
        write_raw(tmp_path / folder / "raw", cut(PAIRS, 25))
        reshard(tmp_path / folder, PAIRS)
        plans.append(pl.read_parquet(tmp_path / folder / "reshard" / "plan" / "plan.parquet"))
    assert plans[0].equals(plans[1])
    assert plans[0]["key"].is_sorted()
    assert key_ranges(3)[0] == (0, 2**64 // 3 - 1)
    assert key_ranges(1) == [(0, 2**64 - 1)]


def test_order_keys_are_pinned():
    # A change here would give every data set made before another order.
    halves = np.array([[0, 0], [0, 1], [2**64 - 1, 2**64 - 1]], dtype=np.uint64)
    assert order_keys(halves, 0).tolist() == [0x238275BC38FCBE91, 0x44E5B98100C67FB0, 0x66698CA2F49CFEE7]
    assert len(set(order_keys(halves, 0).tolist() + order_keys(halves, 1).tolist())) == 6


def test_order_keys_are_spread_evenly():
    halves = np.stack([np.arange(4000, dtype=np.uint64), np.zeros(4000, np.uint64)], axis=1)
    keys = order_keys(halves, 3)
    assert len(np.unique(keys)) == 4000
    assert (
        np.bincount((keys >> np.uint64(60)).astype(int), minlength=16).min() > 180
    )  # 250 expected, 5 sigma is 77


def test_webdataset_reads_the_shards(tmp_path):
    write_raw(tmp_path / "raw", cut(PAIRS, 30))
    reshard(tmp_path, PAIRS, samples_per_shard=100)
    dataset = webdataset.WebDataset(list_shards(str(tmp_path / "shards")), shardshuffle=False)
    # What open_clip_train does with a shard: the first image extension there is, and the caption.
    read = {sample["__key__"]: sample for sample in dataset.rename(image="jpg;png;jpeg;webp", text="txt")}
    assert set(read) == set(PAIRS)
    for uid, fields in PAIRS.items():
        assert read[uid]["text"] == fields["txt"]
        assert read[uid]["image"] in fields.values()


def test_what_the_tar_lacks_is_counted(tmp_path):
    first, second = cut(PAIRS, 20)
    write_raw(tmp_path / "raw", [first[:15], second], tables=[first, second])
    with ShardWriter(tmp_path / "raw" / "00000001.tar") as writer:
        for uid in second:
            writer.write(uid, {k: v for k, v in PAIRS[uid].items() if k != "txt" or uid != second[0]})
    counts = reshard(tmp_path, PAIRS)["reshard/index"]
    assert counts.dropped == {"not_in_tar": 5, "incomplete_sample": 1}
    assert counts.rows_in == 50
    assert [entry.samples for entry in read_manifest(tmp_path / "shards")] == [14, 15, 15]


def test_a_truncated_raw_shard_costs_what_was_cut_off(tmp_path):
    write_raw(tmp_path / "raw", cut(PAIRS, 25))
    tar = tmp_path / "raw" / "00000000.tar"
    tar.write_bytes(tar.read_bytes()[:20_000])
    counts = reshard(tmp_path, PAIRS)["reshard/index"]
    assert counts.extra["shard_truncated"] == 1
    assert counts.rows_out + counts.dropped["not_in_tar"] + counts.dropped["incomplete_sample"] == 50
    assert 25 < counts.rows_out < 50
    assert len(samples(tmp_path)) == counts.rows_out


def test_names_in_a_raw_tar_do_not_reach_the_disk(tmp_path):
    write_raw(tmp_path / "raw", cut(PAIRS, 49))
    with tarfile.open(tmp_path / "raw" / "00000001.tar", "w") as tar:
        for name in ("../../escape.txt", "/etc/escape.txt"):
            tar.addfile(tarfile.TarInfo(name))
    reshard(tmp_path, PAIRS)
    assert len(samples(tmp_path)) == 49
    assert not list(tmp_path.parent.rglob("escape*"))


def test_a_raw_tar_that_shrank_after_indexing_is_named(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"0123456789")
    with OpenFiles(2) as files:
        assert files.read(path, 8, 2) == b"89"
        with pytest.raises(DataError, match=r"a\.tar ends before byte 11; it has changed"):
            files.read(path, 8, 3)
        with pytest.raises(DataError, match=r"b\.tar cannot be opened"):
            files.read(tmp_path / "b.tar", 0, 1)


def test_only_a_few_files_are_open_at_once(tmp_path):
    for number in range(5):
        (tmp_path / str(number)).write_bytes(bytes([number]))
    with OpenFiles(2) as files:
        for number in (0, 1, 2, 3, 4, 0, 4):
            assert files.read(tmp_path / str(number), 0, 1) == bytes([number])
            assert len(files._files) <= 2


def test_membership_is_exact():
    random = np.random.default_rng(0)
    values = [f"{a:016x}{b:016x}" for a, b in random.integers(0, 6, size=(40, 2))]
    subset = uids_to_array(values)
    every = [f"{a:016x}{b:016x}" for a in range(7) for b in range(7)]
    inside = is_in_subset(uid_halves(pl.Series(every)), subset)
    assert [uid for uid, found in zip(every, inside, strict=True) if found] == sorted(set(values))
    assert not is_in_subset(uid_halves(pl.Series(every)), subset[:0]).any()


def test_a_uid_list_of_ones_own(tmp_path):
    write_raw(tmp_path / "raw", cut(PAIRS, 25))
    np.save(tmp_path / "mine.npy", uids_to_array(list(PAIRS)[:7]))
    config = ReshardConfig(samples_per_shard=4, seed=0, uids=str(tmp_path / "mine.npy"))
    for stage in make_stages(SimpleNamespace(output_dir=str(tmp_path), reshard=config)):
        run_stage(stage, Inline(), max_failed_fraction=0.0)
    assert sorted(sample.key for sample in samples(tmp_path)) == sorted(list(PAIRS)[:7])


def test_a_list_that_is_not_a_subset_is_refused(tmp_path):
    path = tmp_path / "x.npy"
    with pytest.raises(DataError, match=r"x\.npy is missing; run stage=select"):
        open_uids(path)
    path.write_bytes(b"not numpy")
    with pytest.raises(DataError, match="is not a numpy file"):
        open_uids(path)
    np.save(path, np.arange(5))
    with pytest.raises(DataError, match="1-dimensional int64, not uids"):
        open_uids(path)
    uids = uids_to_array(PAIRS)
    np.save(path, uids[::-1])
    with pytest.raises(DataError, match="not sorted"):
        open_uids(path)
    np.save(path, np.concatenate([uids[:1], uids]))
    with pytest.raises(DataError, match="holds a uid twice"):
        open_uids(path)


def test_no_samples_a_shard_is_refused():
    with pytest.raises(ConfigError, match=r"reshard\.samples_per_shard is 0"):
        ReshardConfig(samples_per_shard=0, seed=0)


def test_an_empty_subset_says_where_to_look(tmp_path):
    write_raw(tmp_path / "raw", cut(PAIRS, 25))
    with pytest.raises(DataError, match="nothing to do"):
        reshard(tmp_path, [])


def test_the_data_set_appears_whole_and_holds_nothing_else(tmp_path):
    write_raw(tmp_path / "raw", cut(PAIRS, 25))
    reshard(tmp_path, PAIRS)
    names = sorted(path.name for path in (tmp_path / "shards").iterdir())
    assert names == [*(f"{number:08d}.tar" for number in range(4)), "manifest.json"]


def test_publishing_again_after_a_kill_right_after_the_rename(tmp_path):
    write_raw(tmp_path / "raw", cut(PAIRS, 25))
    reshard(tmp_path, PAIRS)
    (tmp_path / "reshard" / "publish" / "publish.stats.json").unlink()
    assert reshard(tmp_path, PAIRS)["reshard/publish"].rows_out == 50


def test_a_data_set_of_another_origin_is_not_overwritten(tmp_path):
    write_raw(tmp_path / "raw", cut(PAIRS, 25))
    (tmp_path / "shards").mkdir(parents=True)
    (tmp_path / "shards" / "precious.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"shards exists and holds something else; move it away"):
        reshard(tmp_path, PAIRS)
    assert (tmp_path / "shards" / "precious.tar").exists()


def test_a_data_set_that_has_gone_is_noticed(tmp_path):
    write_raw(tmp_path / "raw", cut(PAIRS, 25))
    reshard(tmp_path, PAIRS)
    shutil.rmtree(tmp_path / "shards")
    with pytest.raises(
        DataError, match=r"shards was written by an earlier run and is gone.*delete .*reshard/publish"
    ):
        reshard(tmp_path, PAIRS)
    shutil.rmtree(tmp_path / "reshard" / "publish")
    reshard(tmp_path, PAIRS)
    assert len(samples(tmp_path)) == 50


def test_the_manifest_says_where_it_comes_from(tmp_path):
    write_raw(tmp_path / "raw", cut(PAIRS, 25))
    reshard(tmp_path, PAIRS)
    written = json.loads(Path(tmp_path / "shards" / "manifest.json").read_text())
    assert written["samples"] == 50
    assert written["provenance"]["seed"] == 0
    assert written["provenance"]["packages"]["polars"]
