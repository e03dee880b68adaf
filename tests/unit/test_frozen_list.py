"""The manifest's text is that of one JSON value, and is written, compared and read without being held whole."""

import json
import tracemalloc

import pytest
from toy_stages import ManyShards, ToyStage

from crawl2clip import storage
from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import read_json, write_json
from data_pipeline.frozen_list import FrozenList, is_text, manifest_pieces, read_entries, write_pieces
from data_pipeline.name_set import NameSet
from data_pipeline.stage import MANIFEST, Shard, finished_shards, freeze_manifest, progress_of

NASTY = 'quote " line\nend \u2028\x85\x1f "shards": [] ü'
ABOUT = {"stage": "toy", "settings": {"a": [1, {"shards": []}], NASTY: {"shards": []}, "zz": None}}
UPSTREAM = {"/run/raw": "5e", NASTY: "7f"}


def pieces_of(shards, upstream=UPSTREAM):
    return manifest_pieces(ABOUT, iter(shards), lambda: upstream)


def shards_of(count):
    return [Shard(f"{number:04d}", (NASTY, "b")[: number % 3]) for number in range(count)]


@pytest.mark.parametrize("count", [1, 2, 249, 250, 251, 500])
def test_the_text_is_that_of_the_whole_value(tmp_path, count):
    shards = [*shards_of(count), Shard(NASTY, ())]
    listed = [{"name": shard.name, "inputs": list(shard.inputs)} for shard in shards]
    write_json(tmp_path / "whole", {**ABOUT, "upstream": UPSTREAM, "shards": listed})
    write_pieces(tmp_path / "pieces", pieces_of(shards))
    assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()
    assert is_text(tmp_path / "whole", pieces_of(shards))
    about = {}
    assert list(read_entries(tmp_path / "pieces", about)) == listed
    assert about == {**ABOUT, "upstream": UPSTREAM, "shards": len(shards)}
    frozen = FrozenList(tmp_path / "pieces", len(shards))
    assert list(frozen) == list(frozen) == shards
    left = frozen.without(NameSet(["0000", "elsewhere"]), 1)
    assert (len(left), list(left)) == (len(shards) - 1, shards[1:])


def test_any_other_text_is_told_apart(tmp_path):
    shards = shards_of(700)
    write_pieces(tmp_path / "text", pieces_of(shards))
    assert not is_text(tmp_path / "text", pieces_of(shards, {}))
    text = (tmp_path / "text").read_bytes()
    for other in (b"", text[:-1], text + b" ", text[:-20] + b"x" + text[-19:]):
        (tmp_path / "text").write_bytes(other)
        assert not is_text(tmp_path / "text", pieces_of(shards))


def test_any_layout_is_read_and_is_no_other_list(tmp_path):
    """An earlier version, or a person, may have written it otherwise."""
    stage = ToyStage(tmp_path / "toy", settings={"size": 1}, inputs=("a", "b"))
    stage.folder.mkdir()
    shards = list(freeze_manifest(stage))
    path = stage.folder / MANIFEST
    value = read_json(path)
    for text in (json.dumps(value), json.dumps(value, indent=8), json.dumps(value, separators=(",", ":"))):
        path.write_text(text)
        assert list(freeze_manifest(stage)) == shards == list(stage.shards())
    with pytest.raises(ConfigError, match="setting size was 1 and is now 2"):
        freeze_manifest(ToyStage(stage.folder, settings={"size": 2}, inputs=("a", "b")))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("7", "lists 7 where a shard should be"),
        ('{"inputs": []}', r"lists \{'inputs': \[\]\} where a shard should be"),
        ('{"name": 7}', "where a shard should be; delete it and run the stage that writes it again"),
        ('{"name": "000", "inputs": "a"}', "where a shard should be"),
    ],
)
def test_an_entry_that_is_no_shard_is_told(tmp_path, entry, message):
    (tmp_path / MANIFEST).write_text(f'{{"shards": [{{"name": "a", "inputs": []}}, {entry}]}}')
    with pytest.raises(DataError, match=message):
        list(FrozenList(tmp_path / MANIFEST, 2))
    with pytest.raises(DataError, match=message):
        finished_shards(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", r"manifest\.json has no list of shards; delete it and run the stage"),
        ('{"shards": 3}', r"manifest\.json is not valid JSON \(expected \[ at character 11, found '3"),
        ("", r"manifest\.json is not valid JSON \(expected \{ at character 0, found the end"),
    ],
)
def test_a_file_that_is_no_manifest_is_told(tmp_path, text, message):
    (tmp_path / MANIFEST).write_text(text)
    for ask in (finished_shards, progress_of):
        with pytest.raises(DataError, match=message):
            ask(tmp_path)


def test_a_manifest_that_is_cut_off_stops_the_stage_and_stays(tmp_path):
    stage = ManyShards(tmp_path / "toy", num_shards=500)
    stage.folder.mkdir()
    freeze_manifest(stage)
    path = stage.folder / MANIFEST
    text = path.read_bytes()
    for size in (0, 1, 40, len(text) // 2, len(text) - 2):
        path.write_bytes(text[:size])
        with pytest.raises(DataError, match=r"manifest\.json is not valid JSON .*delete it and run"):
            freeze_manifest(stage)
        assert path.read_bytes() == text[:size]


def test_inputs_in_a_store_are_read_as_the_local_paths_they_were(tmp_path, monkeypatch):
    monkeypatch.setenv("CRAWL2CLIP_SCRATCH", str(tmp_path / "scratch"))
    brought = str(storage.local_path("s3://bucket/run/raw")) + "/0.tar"
    inputs = (brought, "s3://commoncrawl/crawl/a.wat.gz", "s3://bucket/run/rawer/0.tar", "relative.tar")
    write_pieces(tmp_path / MANIFEST, manifest_pieces(ABOUT, [Shard("0", inputs)], dict))
    assert brought not in (tmp_path / MANIFEST).read_text()
    folders = {"s3://bucket/run/raw": str(storage.local_path("s3://bucket/run/raw"))}
    assert list(FrozenList(tmp_path / MANIFEST, 1, folders)) == [Shard("0", inputs)]


def test_lists_that_differ_are_told_apart_without_either_in_memory(tmp_path):
    stage = ManyShards(tmp_path / "toy", num_shards=3000)
    stage.folder.mkdir()
    freeze_manifest(stage)
    tracemalloc.start()
    with pytest.raises(
        ConfigError, match=r"1000 of its shards are no longer asked for \(00002000, 00002001, "
    ):
        freeze_manifest(ManyShards(stage.folder, num_shards=2000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 600_000  # 3 MB with both lists
    with pytest.raises(ConfigError, match=r"2 of its shards are new \(00003000, 00003001\)"):
        freeze_manifest(ManyShards(stage.folder, num_shards=3002))


def test_two_shards_of_one_name_are_our_own_fault(tmp_path):
    class Twins(ToyStage):
        def shards(self):
            return [Shard("a", ()), Shard("b", ()), Shard("a", ())]

    with pytest.raises(AssertionError, match="two shards of one name"):
        freeze_manifest(Twins(tmp_path))
    assert not (tmp_path / MANIFEST).exists()
