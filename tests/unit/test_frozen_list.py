"""The manifest's text is that of one JSON value, however it is written, and is compared without being read whole."""

import tracemalloc

import pytest
from toy_stages import ToyStage

from crawl2clip.errors import ConfigError
from crawl2clip.files import read_json, write_json
from data_pipeline.frozen_list import is_text, manifest_pieces, write_pieces
from data_pipeline.stage import MANIFEST, Shard, freeze_manifest

NASTY = 'quote " line\nend \u2028\x85\x1f "shards": [] ü'
ABOUT = {
    "stage": "toy",
    "upstream": {},
    "settings": {"a": [1, {"shards": []}], NASTY: {"shards": []}, "zz": None},
}


@pytest.mark.parametrize("count", [1, 2, 999, 1000, 1001, 2000])
def test_the_text_is_that_of_the_whole_value(tmp_path, count):
    shards = [{"name": f"{number:04d}", "inputs": [NASTY, "b"][: number % 3]} for number in range(count)]
    write_json(tmp_path / "whole", {**ABOUT, "shards": shards})
    write_pieces(tmp_path / "pieces", manifest_pieces(ABOUT, shards))
    assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()
    assert is_text(tmp_path / "whole", manifest_pieces(ABOUT, shards))
    assert read_json(tmp_path / "pieces")["shards"] == shards


def test_any_other_text_is_told_apart(tmp_path):
    shards = [{"name": f"{number:04d}", "inputs": ["a"]} for number in range(1500)]
    write_pieces(tmp_path / "text", manifest_pieces(ABOUT, shards))
    text = (tmp_path / "text").read_bytes()
    for other in (b"", text[:-1], text + b" ", text[:-20] + b"x" + text[-19:]):
        (tmp_path / "text").write_bytes(other)
        assert not is_text(tmp_path / "text", manifest_pieces(ABOUT, shards))


class ManyShards(ToyStage):
    """As many shards as asked, a line of text each."""

    def shards(self):
        return [Shard(f"{number:08d}", (f"/crawl/{number:08d}",)) for number in range(self.num_shards)]


def peak_bytes(stage):
    """What freezing the list takes at most beyond the list itself."""
    tracemalloc.start()
    shards = freeze_manifest(stage)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(shards) == stage.num_shards
    return peak - held


def test_memory_beyond_the_list_does_not_grow_like_the_manifest(tmp_path):
    stage = ManyShards(tmp_path / "toy", num_shards=20_000)
    stage.folder.mkdir()
    first, again = peak_bytes(stage), peak_bytes(stage)
    # 20 MB with the text and its values whole; names in a set that grows, to see that no two are equal, are 2.6 MB.
    assert max(first, again) < 4_000_000
    with pytest.raises(ConfigError, match=r"10000 of its shards are no longer asked for \(00010000, "):
        freeze_manifest(ManyShards(tmp_path / "toy", num_shards=10_000))
    assert (tmp_path / "toy" / MANIFEST).is_file()
