"""Shards on a web server and in an object store, both on loopback: equal to local ones, through every kind of trouble.

The S3 side is real s3fs against a stand-in, tests/object_server.py.
"""

import io
import logging
import multiprocessing
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from object_server import ObjectServer, s3_environment
from PIL import Image
from small_disk import small_disk

from crawl2clip.distributed import World, single_process
from crawl2clip.errors import ConfigError, DataError
from crawl2clip.shards import ShardEntry, ShardWriter, write_manifest
from train.data.remote import RemoteConfig, RemoteShards
from train.data.sample_reader import full_lengths
from train.data.shard_cache import ShardCache
from train.data.training_data import DataConfig, build_data, find_samples

NUM_SHARDS, PER_SHARD = 3, 8


def write_shards(folder: Path) -> None:
    folder.mkdir(parents=True)
    entries = []
    for shard in range(NUM_SHARDS):
        with ShardWriter(folder / f"{shard}.tar") as writer:
            for number in range(PER_SHARD * shard, PER_SHARD * (shard + 1)):
                image = io.BytesIO()
                Image.new("RGB", (40, 30), (number, 3, 5)).save(image, "PNG")
                writer.write(f"{number:04d}", {"png": image.getvalue(), "txt": str(number).encode()})
        entries.append(ShardEntry(f"{shard}.tar", PER_SHARD, 0, ""))
    write_manifest(folder, entries, {})


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[ObjectServer]:
    write_shards(tmp_path / "bucket" / "set")
    monkeypatch.setattr("train.data.remote._FIRST_WAIT_S", 0.01)
    with ObjectServer(tmp_path) as running:
        s3_environment(monkeypatch, running, tmp_path)
        yield running


def remote_config(tmp_path, **changes):
    values = {"cache_folder": str(tmp_path / "cache"), "cache_gb": 1.0, "connections": 4, "timeout_s": 1.0}
    return RemoteConfig(**{**values, "attempts": 4, **changes})


def load(spec, tmp_path, world=None, window=None, num_workers=0, stall_timeout_s=60.0, **remote):
    config = DataConfig(
        shards=str(spec), sources=None, caption="txt", captions=None, decode_size=4, random_crop=None,
        max_image_pixels=10_000, max_bad_fraction=0.5, shuffle_window_shards=window, num_workers=num_workers,
        prefetch_batches=2, stall_timeout_s=stall_timeout_s, cache_decoded=False,
        remote=remote_config(tmp_path, **remote),
    )  # fmt: skip
    samples = find_samples(config, single_process())
    return build_data(samples, tokenizer, config, 0, world or single_process(), full_lengths)


def tokenizer(captions):
    return torch.tensor([[int(caption)] for caption in captions])


def drawn(data, steps=6, size=4):
    numbers = []
    for batch in data.batches(0, steps, size, 4):
        assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.text_tokens[:, 0])
        numbers += batch.text_tokens[:, 0].tolist()
    return numbers


def s3_or_skip():
    pytest.importorskip("s3fs", reason="pip install 's3fs' to read s3:// shards")


@pytest.mark.parametrize(
    ("scheme", "window", "num_workers"), [("http", None, 2), ("http", 2, 2), ("s3", None, 0), ("s3", 2, 2)]
)
def test_remote_shards_give_what_local_ones_do(server, tmp_path, scheme, window, num_workers):
    if scheme == "s3":
        s3_or_skip()
    spec = "s3://bucket/set" if scheme == "s3" else f"{server.url}/bucket/set"
    local = drawn(load(tmp_path / "bucket" / "set", tmp_path, window=window))
    assert sorted(local) == list(range(NUM_SHARDS * PER_SHARD))
    assert drawn(load(spec, tmp_path, window=window, num_workers=num_workers)) == local


def test_whole_shards_are_fetched_once_for_all_epochs_and_workers(server, tmp_path):
    data = load(f"{server.url}/bucket/set", tmp_path, window=1, num_workers=2)
    drawn(data, steps=18)
    # One range for the whole small shard, when its index was made; its samples come from that copy.
    assert [server.requests[f"/bucket/set/{n}.tar"] for n in range(NUM_SHARDS)] == [1] * NUM_SHARDS


def test_an_uploaded_index_spares_reading_the_shards(server, tmp_path):
    local = load(tmp_path / "bucket" / "set", tmp_path)  # writes the index files beside the shards
    again = load(f"{server.url}/bucket/set", tmp_path)
    assert not any(path.endswith(".tar") for path in server.requests)
    assert drawn(again) == drawn(local)


def test_ranges_are_read_for_single_samples(server, tmp_path):
    load(tmp_path / "bucket" / "set", tmp_path)
    data = load(f"{server.url}/bucket/set", tmp_path)
    before = server.served
    next(data.batches(0, 1, 4, 4))
    assert server.served - before < 4 * 4096
    assert not list((tmp_path / "cache").glob("*.tar"))


@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize("kind", ["busy", "cut", "slow"])
def test_passing_trouble_is_tried_again(server, tmp_path, kind, window):
    local = drawn(load(tmp_path / "bucket" / "set", tmp_path, window=window))
    for index in (tmp_path / "bucket" / "set").glob("*.index"):
        index.unlink()
    server.trouble = {"1.tar": (kind, 2)}
    assert drawn(load(f"{server.url}/bucket/set", tmp_path, window=window, timeout_s=0.5)) == local
    assert server.requests["/bucket/set/1.tar"] > 2


def test_s3_trouble_is_tried_again(server, tmp_path):
    s3_or_skip()
    server.trouble = {"1.tar": ("busy", 2)}
    assert sorted(drawn(load("s3://bucket/set", tmp_path))) == list(range(24))


def test_trouble_that_lasts_ends_the_run_with_what_to_do(server, tmp_path):
    load(tmp_path / "bucket" / "set", tmp_path)
    data = load(f"{server.url}/bucket/set", tmp_path, attempts=2)
    server.trouble = {".tar": ("busy", 10**6)}
    with pytest.raises(
        DataError, match=r"0\.1.*tar cannot be read: 2 attempts failed, .*503.*start the run again"
    ):
        drawn(data)


def test_a_shard_that_went_away_is_counted(server, tmp_path, caplog):
    (tmp_path / "bucket" / "set" / "1.tar").unlink()
    with caplog.at_level(logging.WARNING):
        data = load(f"{server.url}/bucket/set", tmp_path)
    assert f"shard {server.url}/bucket/set/1.tar, sample -: missing" in caplog.text
    assert data.samples_per_epoch == 16


def test_samples_of_a_shard_that_goes_away_under_the_run_are_named(server, tmp_path, caplog):
    data = load(f"{server.url}/bucket/set", tmp_path)
    (tmp_path / "bucket" / "set" / "1.tar").unlink()
    numbers = drawn(data)
    assert not set(numbers) & set(range(8, 16))
    assert caplog.text.count(f"of {server.url}/bucket/set/1.tar: unreadable") == 8


def test_a_server_without_ranges_is_told_apart(server, tmp_path):
    load(tmp_path / "bucket" / "set", tmp_path)
    data = load(f"{server.url}/bucket/set", tmp_path)
    server.trouble = {".tar": ("no_ranges", 10**6)}
    with pytest.raises(
        DataError, match=r"24 samples in a row cannot be used.*the server does not answer ranges"
    ):
        drawn(data)


def test_the_cache_stays_within_its_limit(server, tmp_path):
    one = (tmp_path / "bucket" / "set" / "0.tar").stat().st_size
    data = load(f"{server.url}/bucket/set", tmp_path, window=1, cache_gb=1.5 * one / 1e9)
    assert sorted(drawn(data)) == list(range(24))
    assert len(list((tmp_path / "cache").glob("*.tar"))) <= 1  # none while the next one is on its way
    with pytest.raises(DataError, match=r"data.remote.cache_gb=.* holds less; raise it"):
        load(f"{server.url}/bucket/set", tmp_path / "other", window=1, cache_gb=0.5 * one / 1e9)


def test_a_window_of_shards_is_shared_out_among_ranks(server, tmp_path):
    """Batches of half a window: rank 0 reads the first of two shards and the border, rank 1 the rest."""
    spec = tmp_path / "bucket" / "set"
    for rank in (0, 1):
        world = World(rank=rank, world_size=2, local_rank=rank, device=torch.device("cpu"))
        ids = np.array(
            [b.sample_ids.tolist() for b in load(spec, tmp_path, world, window=3).batches(0, 2, 12, 4)]
        )
        assert (np.diff(ids, axis=1) > 0).all()
        assert (ids[:, 0] < 8).all() if rank == 0 else (ids[:, -1] >= 16).all()


def test_names_that_lead_nowhere(server, tmp_path):
    with pytest.raises(
        DataError, match=r"no shard at 'http.*/bucket'; give a .tar, a brace pattern, or a folder that"
    ):
        load(f"{server.url}/bucket", tmp_path)
    remote = RemoteShards(remote_config(tmp_path))
    assert remote.list("http://host/{00..02}.tar") == [f"http://host/{n:02d}.tar" for n in range(3)]


def test_a_copy_that_was_deleted_is_fetched_again(server, tmp_path):
    cache = ShardCache(RemoteShards(remote_config(tmp_path)))
    url = f"{server.url}/bucket/set/0.tar"
    copy = cache.fetch(url)
    copy.unlink()
    assert cache.fetch(url).read_bytes() == (tmp_path / "bucket" / "set" / "0.tar").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cache_gb": 0.0}, "data.remote.cache_gb is 0.0; give more than 0"),
        ({"timeout_s": 0.0}, "data.remote.timeout_s is 0.0; give more than 0"),
        ({"connections": 0}, "data.remote.connections is 0; give 1 or more"),
        ({"attempts": 0}, "data.remote.attempts is 0; give 1 or more"),
    ],
)
def test_setting_errors(change, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        remote_config(tmp_path, **change)


@pytest.mark.parametrize(
    ("url", "package"), [("s3://bucket/set", "s3fs"), ("http://127.0.0.1/set", "aiohttp")]
)
def test_a_missing_package_names_the_extra(url, package, tmp_path, monkeypatch):
    def missing(*_, **__):
        raise ImportError(f"No module named {package!r}", name=package)

    monkeypatch.setattr(fsspec, "filesystem", missing)  # what it does when the scheme's package is not there
    with pytest.raises(ConfigError, match=rf"need the package {package}; pip install 'crawl2clip\[remote\]'"):
        RemoteShards(remote_config(tmp_path)).list(url)


# The cache folder: its disk, its limit, and several processes at once.


def test_a_full_disk_is_no_fault_of_the_samples(server, tmp_path):
    load(tmp_path / "bucket" / "set", tmp_path)  # the indexes, so that only a draw needs a copy
    with small_disk(tmp_path / "disk", 1) as disk:
        data = load(f"{server.url}/bucket/set", disk, window=3)
        (disk / "other").write_bytes(bytes((1 << 20) - 40_000))
        before = server.served
        message = (
            r"data.remote.cache_folder=.*/disk/cache cannot be written: .*No space left on device.*"
            r" 0\.00 GB free, and data.remote.cache_gb=1.0 may be kept.*make room, lower cache_gb, or name a folder"
        )
        with pytest.raises(DataError, match=message):
            drawn(data)
    shard_bytes = [path.stat().st_size for path in (tmp_path / "bucket" / "set").glob("*.tar")]
    # One of the three has room; a request that timed out on a busy machine may have been sent twice.
    assert server.served - before < sum(shard_bytes)


def test_an_index_that_does_not_fit_the_disk_names_the_setting(server, tmp_path):
    with small_disk(tmp_path / "disk", 1) as disk:
        (disk / "other").write_bytes(bytes((1 << 20) - 8192))
        with pytest.raises(
            DataError, match=r"data.remote.cache_folder=.* cannot be written: .*No space left"
        ):
            load(f"{server.url}/bucket/set", disk)


def write_large(folder, count, size):
    for number in range(count):
        (folder / f"large-{number}.tar").write_bytes(bytes([number]) * size)


def fetch_all(urls, config, fetched):
    cache = ShardCache(RemoteShards(config))
    for url in urls:
        file = cache.open(url)
        fetched.put((url, file.size, file.read(0, 1)))


def test_processes_that_fetch_at_once_stay_within_the_limit(server, tmp_path):
    size = 1 << 20
    write_large(tmp_path / "bucket", 8, size)
    config = remote_config(tmp_path, cache_gb=2.5 * size / 1e9)
    urls = [f"{server.url}/bucket/large-{number}.tar" for number in range(8)]
    fork = multiprocessing.get_context("fork")
    fetched = fork.SimpleQueue()
    processes = [fork.Process(target=fetch_all, args=([url], config, fetched)) for url in urls]
    for process in processes:
        process.start()
    largest = 0
    while any(process.is_alive() for process in processes):
        largest = max(largest, held_in(tmp_path / "cache"))
    assert 0 < largest <= 2.5 * size
    assert sorted(fetched.get() for _ in urls) == [(url, size, bytes([n])) for n, url in enumerate(urls)]


def held_in(cache):
    sizes = []
    for path in cache.glob("*.tar*"):
        with suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return sum(sizes)


def test_what_a_killed_process_was_fetching_does_not_count_for_ever(server, tmp_path):
    size = 1 << 20
    write_large(tmp_path / "bucket", 2, size)
    config = remote_config(tmp_path, cache_gb=1.5 * size / 1e9, timeout_s=30.0)
    urls = [f"{server.url}/bucket/large-{number}.tar" for number in range(2)]
    server.trouble = {"large-0.tar": ("slow", 10**6)}
    fork = multiprocessing.get_context("fork")
    killed = fork.Process(target=fetch_all, args=(urls[:1], config, fork.SimpleQueue()))
    killed.start()
    while held_in(tmp_path / "cache") < size:
        assert killed.is_alive()
    killed.kill()
    killed.join()
    assert held_in(tmp_path / "cache") == size
    assert ShardCache(RemoteShards(config)).open(urls[1]).size == size
    assert held_in(tmp_path / "cache") == size
