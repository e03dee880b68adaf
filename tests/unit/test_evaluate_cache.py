"""The feature cache: what is damaged, foreign or too much, and what people are shown of it."""

import json
import os
import time

import numpy as np
import pytest
from evaluation_sets import PlainEncoder, write_classification

from crawl2clip.distributed import single_process
from evaluate.cache import FeatureCache
from evaluate.data.tar_split import TarSplit
from evaluate.feature_keys import image_key, text_key, tokenizer_hash
from evaluate.features import encode_images
from evaluate.subcommands import main, size_of

ABOUT = {"model": "plain", "precision": "fp32", "weights_sha256": "ab" * 32, "what": "things/test", "rows": 3}


@pytest.fixture
def split(tmp_path):
    return TarSplit(write_classification(tmp_path / "things"), "test", with_labels=True, with_captions=False)


def encode(encoder, split, cache):
    before = encoder.images_encoded
    encode_images(
        encoder, split, world=single_process(), batch_size=4, num_workers=0, max_bad_images=0, cache=cache,
        show_progress=False,
    )  # fmt: skip
    return encoder.images_encoded - before


def save(cache: FeatureCache, name: str, size: int) -> None:
    key = image_key(PlainEncoder(), name, "0" * 64)
    cache.save(key, {"features": np.zeros(size, np.float32)}, {**ABOUT, "what": name})


def filled(folder, names, size=1000) -> FeatureCache:
    """A cache with one file of images a name, the first of them the longest unused."""
    cache = FeatureCache(folder)
    for number, name in enumerate(names):
        save(cache, name, size)
        os.utime(cache._image_path(image_key(PlainEncoder(), name, "0" * 64)), (number, number))
    return cache


def kept(cache: FeatureCache) -> list[str]:
    return [entry.about["what"] for entry in cache.entries()]


def test_a_damaged_or_foreign_file_is_encoded_again(split, tmp_path, caplog):
    cache, encoder = FeatureCache(tmp_path / "cache"), PlainEncoder()
    encode(encoder, split, cache)
    (file,) = (tmp_path / "cache").glob("images/*/*.npz")
    whole = file.read_bytes()
    middle = len(whole) // 2
    for content, message in (
        (whole[:middle], "is damaged"),
        (b"", "is damaged"),
        (whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :], "is damaged"),
    ):
        caplog.clear()
        file.write_bytes(content)
        assert encode(encoder, split, cache) == 30
        assert message in caplog.text
        assert file.read_bytes() == whole
    np.savez(file, features=np.zeros(3), key=np.asarray("another"))
    assert cache.load({"data_name": "x"}) is None
    assert encode(encoder, split, cache) == 30
    assert "is not what its name says" in caplog.text
    assert encode(encoder, split, cache) == 0


def test_a_cache_that_cannot_be_written_costs_no_score(split, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    encoder = PlainEncoder()
    assert encode(encoder, split, FeatureCache(tmp_path / "cache")) == split.num_samples
    assert "cannot be written" in caplog.text


def test_pickles_are_not_read(split, tmp_path, caplog):
    cache, encoder = FeatureCache(tmp_path / "cache"), PlainEncoder()
    encode(encoder, split, cache)
    (file,) = (tmp_path / "cache").glob("images/*/*.npz")
    np.savez(file, features=np.array([{"a": 1}], dtype=object), key=np.asarray("x"))
    assert encode(encoder, split, cache) == 30
    assert "is damaged" in caplog.text


def test_each_text_is_found_by_itself(tmp_path):
    cache, key = FeatureCache(tmp_path), text_key(PlainEncoder())
    features = np.arange(12, dtype=np.float32).reshape(3, 4)
    cache.save_texts(key, ["a", "b", "\ud800"], features, ABOUT)
    cache.save_texts(key, ["c"], features[:1] + 100, ABOUT)
    found = FeatureCache(tmp_path).load_texts(key, ["c", "b", "unknown", "\ud800"])
    assert {text: row.tolist() for text, row in found.items()} == {
        "c": [100, 101, 102, 103], "b": [4, 5, 6, 7], "\ud800": [8, 9, 10, 11],
    }  # fmt: skip
    other = text_key(PlainEncoder(weights=1))
    assert cache.load_texts(other, ["a"]) == {}


def test_a_damaged_file_of_texts_counts_as_absent(tmp_path, caplog):
    cache, key = FeatureCache(tmp_path), text_key(PlainEncoder())
    cache.save_texts(key, ["a"], np.ones((1, 4), np.float32), ABOUT)
    (file,) = tmp_path.glob("texts/*/*.npz")
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    assert FeatureCache(tmp_path).load_texts(key, ["a"]) == {}
    assert "is damaged" in caplog.text
    cache.save_texts(key, ["a"], np.ones((1, 4), np.float32), ABOUT)
    assert list(FeatureCache(tmp_path).load_texts(key, ["a"])) == ["a"]


def test_another_tokenizer_is_another_key():
    encoder, other = PlainEncoder(), PlainEncoder()
    assert tokenizer_hash(encoder) == "none"
    encoder.tokenizer = lambda texts: np.asarray([[len(text)] for text in texts])
    other.tokenizer = lambda texts: np.asarray([[len(text) + 1] for text in texts])
    assert text_key(encoder) != text_key(other)


def test_the_longest_unused_go_first_and_the_limit_holds(tmp_path):
    cache = filled(tmp_path, ["a", "b", "c", "d"])
    size = cache.entries()[0].size_bytes
    cache.load(image_key(PlainEncoder(), "a", "0" * 64))  # used just now
    assert kept(cache) == ["b", "c", "d", "a"]
    removed = cache.prune(2 * size)
    assert [entry.about["what"] for entry in removed] == ["b", "c"]
    assert kept(cache) == ["d", "a"]
    limited = FeatureCache(tmp_path, limit_bytes=2 * size)
    limited.save(
        image_key(PlainEncoder(), "e", "0" * 64),
        {"features": np.zeros(1000, np.float32)},
        {**ABOUT, "what": "e"},
    )
    assert kept(cache) == ["a", "e"]
    # A file larger than the limit stays while its run lasts; everything else goes.
    limited.save(
        image_key(PlainEncoder(), "f", "0" * 64),
        {"features": np.zeros(9000, np.float32)},
        {**ABOUT, "what": "f"},
    )
    assert kept(cache) == ["f"]
    assert [entry.about["what"] for entry in cache.prune(0)] == ["f"]


def test_files_of_writers_that_died_are_removed_after_a_day(tmp_path):
    cache = filled(tmp_path, ["a"])
    place = cache.entries()[0].path.parent
    old, new = place / "x.npz.tmp-00000000", place / "x.npz.tmp-11111111"
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (1, 1))
    cache.prune(10**9)
    assert [file.exists() for file in (old, new)] == [False, True]


def test_cache_list_and_prune_as_commands(tmp_path, capsys):
    cache = filled(tmp_path, ["a", "b"])
    cache.entries()[0].path.write_bytes(b"torn")
    os.utime(cache.entries()[-1].path, (time.time() - 3 * 86_400,) * 2)
    assert main(["cache", "list", "--folder", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "3.0 d" in shown
    assert "images  plain fp32 abababab b" in shown
    assert "damaged; will be encoded again" in shown
    assert shown.splitlines()[-1].startswith("2 files, 0.0 MB")
    assert main(["cache", "prune", "--folder", str(tmp_path), "--limit", "0"]) == 0
    assert "deleted 2 files" in capsys.readouterr().out
    assert cache.entries() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune"], "prune needs --limit, what may stay, for example --limit 20GB"),
        (["prune", "--limit", "much"], "--limit is 'much'; give a size such as 20GB, 500MB or 0"),
        (["prune", "--limit=-1GB"], "--limit is '-1GB'"),
        (["prune", "--limit", "nan"], "--limit is 'nan'"),
    ],
)
def test_what_cannot_be_pruned(tmp_path, capsys, arguments, message):
    assert main(["cache", *arguments, "--folder", str(tmp_path)]) == 2
    assert f"error: {message}" in capsys.readouterr().err


def test_a_cache_that_is_not_there(tmp_path, capsys):
    assert main(["cache", "--folder", str(tmp_path / "none")]) == 2
    assert (
        f"error: there is no feature cache at {tmp_path / 'none'}; give --folder" in capsys.readouterr().err
    )


def test_sizes():
    assert [size_of(text) for text in ("20GB", "500 mb", "0", "1.5KB", "2TB")] == [
        20 * 10**9, 500 * 10**6, 0, 1500, 2 * 10**12,
    ]  # fmt: skip


def test_what_a_file_is_about_is_stored_in_it(split, tmp_path):
    cache, encoder = FeatureCache(tmp_path / "cache"), PlainEncoder()
    encode(encoder, split, cache)
    (entry,) = cache.entries()
    assert entry.about == {**ABOUT, "weights_sha256": encoder.weights_sha256, "rows": 30}
    with np.load(entry.path) as stored:
        key = json.loads(str(stored["key"]))
    assert {"weights_sha256", "preprocessing", "precision", "data_sha256", "data_name"} <= key.keys()
