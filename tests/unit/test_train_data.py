"""The index and the loader: whole, broken and hostile shards; the same batches for any ranks and workers."""

import errno
import io
import json
import logging
import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sample_images import png_bomb

from crawl2clip.distributed import World, single_process
from crawl2clip.errors import ConfigError, DataError
from crawl2clip.shards import ShardWriter
from train.data.captions import CaptionConfig
from train.data.decode import RandomCropConfig, decode_image
from train.data.index_file import open_index
from train.data.mixture import SourceConfig
from train.data.open_files import OpenFile
from train.data.remote import RemoteConfig
from train.data.sample_reader import full_lengths, lengths_by_largest_id, text_lengths_for
from train.data.text_mask import TextMask, shorten_texts
from train.data.training_data import DataConfig, build_data, find_samples
from train.data.worker_watch import WorkerWatch, watched

WORLD = single_process()


def picture(number, side=8):
    data = io.BytesIO()
    Image.new("RGB", (side, side), (number % 256, number // 256, 7)).save(data, "PNG")
    return data.getvalue()


def write_shard(path, numbers, change=None):
    """Samples whose colour and caption are their number; `change` alters the fields of chosen ones."""
    with ShardWriter(path) as writer:
        for number in numbers:
            fields = {"png": picture(number), "txt": str(number).encode()}
            writer.write(f"{number:04d}", (change or {}).get(number, lambda f: f)(fields))
    return path


def tokenizer(captions):
    """A start, the number, an end that is the largest id, zeros: as CLIP's."""
    return torch.tensor([[7, int(caption), 9999, 0, 0] for caption in captions])


REMOTE = RemoteConfig(cache_folder="unused", cache_gb=1.0, connections=2, timeout_s=5.0, attempts=2)


def data_config(folder, **changes):
    values = {
        "shards": str(folder),
        "sources": None,
        "caption": "txt",
        "captions": None,
        "decode_size": 8,
        "random_crop": None,
        "max_image_pixels": 10_000,
        "max_bad_fraction": 0.5,
        "shuffle_window_shards": None,
        "num_workers": 0,
        "prefetch_batches": 2,
        "stall_timeout_s": 60.0,
        "cache_decoded": False,
        "remote": REMOTE,
    }
    return DataConfig(**{**values, **changes})


def load(folder, world=WORLD, seed=0, words=tokenizer, shorten=None, **changes):
    config = data_config(folder, **changes)
    return build_data(
        find_samples(config, single_process()), words, config, seed, world, lengths_by_largest_id, shorten
    )


def drawn_from(data, count, global_batch_size=1):
    """The caption numbers of that many positions from 0 on."""
    return [
        n
        for batch in numbers_of(data, last=count // global_batch_size, size=global_batch_size)
        for n in batch
    ]


def numbers_of(data, first=0, last=6, size=4):
    """The caption numbers of batches `first` to `last`; checks that each caption came with its own image."""
    batches = []
    for batch in data.batches(first * size, last - first, size, 8):
        numbers = batch.text_tokens[:, 1]
        assert torch.equal(batch.images[:, 0, 0, 0].long() + 256 * batch.images[:, 1, 0, 0].long(), numbers)
        assert batch.images.dtype == torch.uint8
        batches.append(numbers.tolist())
    return batches


def ranks(world_size):
    cpu = torch.device("cpu")
    return [World(rank=r, world_size=world_size, local_rank=r, device=cpu) for r in range(world_size)]


@pytest.fixture
def folder(tmp_path):
    write_shard(tmp_path / "0.tar", range(10))
    write_shard(tmp_path / "1.tar", range(10, 25))
    return tmp_path


def test_every_epoch_draws_each_sample_once(folder):
    drawn = drawn_from(load(folder), 75)
    assert all(sorted(drawn[start : start + 25]) == list(range(25)) for start in (0, 25, 50))
    assert load(folder).samples_per_epoch == 25


@pytest.mark.parametrize("window", [None, 2])
def test_ranks_and_workers_do_not_change_the_order(folder, window):
    whole = numbers_of(load(folder, shuffle_window_shards=window), last=14)
    assert numbers_of(load(folder, shuffle_window_shards=window, num_workers=2), last=14) == whole
    halves = [numbers_of(load(folder, world, shuffle_window_shards=window), last=14) for world in ranks(2)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole


def test_a_resumed_loader_goes_on_at_the_next_sample(folder):
    whole = numbers_of(load(folder), last=14)
    assert numbers_of(load(folder), first=9, last=14) == whole[9:]


@pytest.mark.parametrize("window", [None, 1])
def test_other_ranks_and_batches_visit_each_remaining_sample_once(folder, window):
    """2 ranks, then 1, then 4, batches of 4, 3 and 8: two epochs of 25 samples, each sample once an epoch."""
    drawn, position = [], 0
    for world_size, steps, size in ((2, 4, 4), (1, 6, 3), (4, 2, 8)):
        shares = [load(folder, world, shuffle_window_shards=window) for world in ranks(world_size)]
        batches = [list(data.batches(position, steps, size, 8)) for data in shares]
        for step in zip(*batches, strict=True):
            places = torch.cat([batch.positions for batch in step])
            assert sorted(places.tolist()) == list(range(position, position + size))
            drawn += torch.cat([batch.text_tokens[:, 1] for batch in step])[places.argsort()].tolist()
            position += size
    assert position == 50
    assert sorted(drawn[:25]) == sorted(drawn[25:]) == list(range(25))


def test_a_batch_ends_at_its_longest_caption(folder):
    def words(captions):
        return torch.tensor([[7] * (int(c) % 3 + 1) + [9999] + [0] * (6 - int(c) % 3) for c in captions])

    for batch in load(folder, words=words).batches(0, 6, 4, 8):
        kinds = batch.sample_ids % 3
        assert torch.equal(batch.text_lengths, kinds + 2)
        assert batch.text_tokens.shape == (4, int(kinds.max()) + 2)
        assert batch.text_tokens.dtype == batch.text_lengths.dtype == torch.int64


def test_lengths_of_tokenizers():
    class Clip:
        eot_token_id, vocab_size = 49407, 49408

    assert text_lengths_for(Clip()) is lengths_by_largest_id
    assert text_lengths_for(tokenizer) is full_lengths
    tokens = torch.tensor([[49406, 5, 49407, 0], [49406, 49407, 0, 0]])
    assert lengths_by_largest_id(tokens).tolist() == [3, 2]
    assert full_lengths(tokens).tolist() == [4, 4]


def test_another_seed_is_another_order(folder):
    assert numbers_of(load(folder, seed=1)) != numbers_of(load(folder))


def test_the_loader_leaves_the_global_generator_alone(folder):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    numbers_of(load(folder, num_workers=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_decoded_cache_gives_the_same_batches(folder, caplog):
    assert numbers_of(load(folder, cache_decoded=True), last=14) == numbers_of(load(folder), last=14)


def test_a_cache_larger_than_memory_is_refused(folder):
    with pytest.raises(ConfigError, match=r"data.cache_decoded=true needs .* GB .*; set it to false"):
        load(folder, cache_decoded=True, decode_size=1_000_000)


def test_the_size_is_the_models_where_none_is_set(folder):
    sizes = [next(load(folder, decode_size=None).batches(0, 1, 2, side)).images.shape[-1] for side in (5, 12)]
    assert sizes == [5, 12]


def photo_shard(path, count):
    rng = np.random.default_rng(0)
    with ShardWriter(path) as writer:
        for number in range(count):
            data = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(data, "JPEG")
            writer.write(f"{number:04d}", {"jpg": data.getvalue(), "txt": str(number).encode()})


@pytest.mark.parametrize("num_workers", [0, 2])
def test_random_crops_follow_the_position(tmp_path, num_workers):
    photo_shard(tmp_path / "0.tar", 6)
    crop = {"random_crop": RandomCropConfig(min_area=0.3, max_ratio=1.5), "num_workers": num_workers}
    whole = next(load(tmp_path, **crop).batches(0, 1, 12, 16))
    again = [batch for size in (3, 4) for batch in load(tmp_path, **crop).batches(0, 12 // size, size, 16)]
    for part in (again[:4], again[4:]):
        assert torch.equal(torch.cat([batch.images for batch in part]), whole.images)
    halves = [next(load(tmp_path, world, **crop).batches(0, 1, 12, 16)).images for world in ranks(2)]
    assert torch.equal(torch.cat(halves), whole.images)
    # Both epochs show the six images, cropped otherwise.
    first, second = (
        whole.images[rows][whole.sample_ids[rows].argsort()] for rows in (slice(6), slice(6, 12))
    )
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(next(load(tmp_path, seed=1, **crop).batches(0, 1, 12, 16)).images, whole.images)


def mixture(tmp_path, *weights):
    sources = []
    for place, weight in enumerate(weights):
        (tmp_path / str(place)).mkdir()
        write_shard(tmp_path / str(place) / "0.tar", range(100 * place, 100 * place + 10))
        sources.append(SourceConfig(shards=str(tmp_path / str(place)), weight=weight))
    return {"shards": None, "sources": sources}


def test_a_mixture_draws_by_weight(tmp_path):
    drawn = drawn_from(load(None, **mixture(tmp_path, 1.0, 3.0)), 400)
    shares = [[n - 100 * source for n in drawn if n // 100 == source] for source in (0, 1)]
    assert 60 < len(shares[0]) < 140
    for share in shares:
        for start in range(0, len(share) - 9, 10):
            assert sorted(share[start : start + 10]) == list(range(10))


def test_a_mixture_without_weights_is_one_set(tmp_path):
    drawn = drawn_from(load(None, **mixture(tmp_path, None, None)), 40)
    assert sorted(drawn[:20]) == sorted(drawn[20:]) == [*range(10), *range(100, 110)]


def with_captions(fields):
    """A second caption, the number plus 500, that the image does not show."""
    return {**fields, "json": json.dumps({"made": [str(int(fields["txt"]) + 500)]}).encode()}


@pytest.mark.parametrize("cache_decoded", [False, True])
def test_several_captions_a_sample(tmp_path, cache_decoded):
    write_shard(tmp_path / "0.tar", range(10), dict.fromkeys(range(5), with_captions))
    places = [CaptionConfig(field="txt"), CaptionConfig(field="json:made", weight=3.0)]
    settings = {"caption": None, "captions": places, "cache_decoded": cache_decoded}
    batch = next(load(tmp_path, **settings).batches(0, 1, 400, 8))
    taken, ids = batch.text_tokens[:, 1], batch.sample_ids
    assert torch.equal(taken % 500, ids)
    made = taken >= 500
    assert not made[ids >= 5].any()
    assert 120 < int(made.sum()) < 180  # three quarters of 200
    again = torch.cat([b.text_tokens[:, 1] for b in load(tmp_path, **settings).batches(0, 4, 100, 8)])
    assert torch.equal(again, taken)


def test_a_json_alone_can_hold_the_caption(tmp_path):
    def only_json(fields):
        return {name: data for name, data in with_captions(fields).items() if name != "txt"}

    write_shard(tmp_path / "0.tar", range(4), {1: only_json, 2: without("txt")})
    places = [CaptionConfig(field="txt"), CaptionConfig(field="json:made")]
    batch = next(load(tmp_path, caption=None, captions=places).batches(0, 1, 3, 8))
    assert sorted(batch.text_tokens[:, 1].tolist()) == [0, 3, 501]


def test_fewer_shards_than_ranks(tmp_path):
    write_shard(tmp_path / "0.tar", range(8))
    drawn = [n for world in ranks(4) for batch in numbers_of(load(tmp_path, world), last=2) for n in batch]
    assert sorted(drawn) == list(range(8))


def test_captions_from_json(tmp_path):
    def as_json(fields):
        return {"png": fields["png"], "json": b'{"caption": "%s"}' % fields["txt"]}

    write_shard(tmp_path / "0.tar", range(8), dict.fromkeys(range(8), as_json))
    assert sorted(drawn_from(load(tmp_path, caption="json:caption"), 8)) == list(range(8))


def without(name):
    return lambda fields: {key: value for key, value in fields.items() if key != name}


def replaced(name, data):
    return lambda fields: {**fields, name: data}


def test_samples_without_image_or_caption_are_left_out_before_training(tmp_path, caplog):
    write_shard(
        tmp_path / "0.tar", range(12), {3: without("png"), 5: without("txt"), 7: replaced("txt", b"")}
    )
    with caplog.at_level(logging.WARNING):
        data = load(tmp_path)
    assert sorted(drawn_from(data, 9)) == [0, 1, 2, 4, 6, 8, 9, 10, 11]
    assert "left out before training: missing_caption 2, missing_image 1; 9 samples are usable" in caplog.text


@pytest.mark.parametrize("cache_decoded", [False, True])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_samples_are_replaced_counted_and_named(tmp_path, caplog, cache_decoded, num_workers):
    """Sample 4 gives its row to 5, the next good one; 9 is followed by 0, since the order wraps around."""
    huge = io.BytesIO()
    Image.new("RGB", (200, 100)).save(huge, "PNG")
    write_shard(
        tmp_path / "0.tar", range(10), {4: replaced("png", b"junk"), 9: replaced("png", huge.getvalue())}
    )
    data = load(tmp_path, cache_decoded=cache_decoded, num_workers=num_workers)
    with caplog.at_level(logging.WARNING):
        drawn = sorted(drawn_from(data, 10, 5))
    assert drawn == [0, 0, 1, 2, 3, 5, 5, 6, 7, 8]
    assert f"replaced sample 0004 of {tmp_path}/0.tar: undecodable" in caplog.text
    assert f"replaced sample 0009 of {tmp_path}/0.tar: too_many_pixels (200 x 100" in caplog.text


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_data_set_of_nothing_but_bad_images_ends_with_an_error(tmp_path, num_workers):
    write_shard(tmp_path / "0.tar", range(8), {number: replaced("png", b"junk") for number in range(8)})
    data = load(tmp_path, num_workers=num_workers)
    with pytest.raises(
        DataError, match=r"^8 samples in a row cannot be used, up to .* in .*0.tar \(undecodable"
    ):
        next(data.batches(0, 2, 4, 8))


def test_a_shard_that_changes_under_the_run(tmp_path):
    path = write_shard(tmp_path / "0.tar", range(8))
    data = load(tmp_path)
    os.truncate(path, 0)
    with pytest.raises(DataError, match="the shard changed under the run"):
        list(data.batches(0, 2, 4, 8))


# Shards cut off, empty, or no tar at all.


def test_a_shard_cut_off_costs_only_what_is_cut(tmp_path, caplog):
    whole = write_shard(tmp_path / "0.tar", range(10))
    os.truncate(whole, 10_000)  # in the fourth or fifth of ten samples
    write_shard(tmp_path / "1.tar", range(10, 20))
    with caplog.at_level(logging.WARNING):
        data = load(tmp_path)
    drawn = sorted(drawn_from(data, data.samples_per_epoch))
    assert set(range(10, 20)) <= set(drawn)
    assert 8 < len(drawn) < 20
    assert f"shard {tmp_path}/0.tar, sample" in caplog.text
    assert "truncated" in caplog.text


def test_one_shard_that_is_no_tar(tmp_path, caplog):
    write_shard(tmp_path / "0.tar", range(10))
    (tmp_path / "1.tar").write_bytes(b"<html>404</html>" * 100)
    with caplog.at_level(logging.WARNING):
        assert sorted(drawn_from(load(tmp_path), 10)) == list(range(10))
    assert f"shard {tmp_path}/1.tar, sample -: not_a_tar" in caplog.text
    with pytest.raises(
        DataError, match=r"1 of 2 shards .* cannot be read \(faults: not_a_tar 1\), more than"
    ):
        load(tmp_path, max_bad_fraction=0.1)


def test_too_many_unusable_samples(tmp_path):
    write_shard(tmp_path / "0.tar", range(10), {3: without("png"), 5: without("txt")})
    with pytest.raises(
        DataError, match=r"2 of 10 samples .* are unusable \(missing_caption 1, missing_image 1\)"
    ):
        load(tmp_path, max_bad_fraction=0.1)


@pytest.mark.parametrize("content", [b"", b"\0" * 10240, b"junk" * 512])
def test_a_tar_without_a_sample_is_an_error_and_no_hang(tmp_path, content):
    (tmp_path / "0.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"has 1 shards and no usable sample \(faults: \w+ 1"):
        load(tmp_path)


def test_no_shards_at_all(tmp_path):
    with pytest.raises(DataError, match="no shard at"):
        load(tmp_path)


def test_a_png_of_144_million_pixels_is_refused_by_its_header(tmp_path, caplog):
    write_shard(tmp_path / "0.tar", range(4), {2: replaced("png", png_bomb(12000, 12000))})
    data = load(tmp_path, max_image_pixels=50_000_000)
    assert sorted(drawn_from(data, 4)) == [0, 1, 3, 3]
    assert "too_many_pixels (12000 x 12000, allowed are 50000000 pixels)" in caplog.text


def test_a_jpeg_cut_off_is_undecodable(tmp_path, caplog):
    data = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(data, "JPEG")
    cut = replaced("jpg", data.getvalue()[:-500])
    write_shard(tmp_path / "0.tar", range(4), {1: lambda fields: without("png")(cut(fields))})
    data = load(tmp_path)
    assert sorted(drawn_from(data, 4)) == [0, 2, 2, 3]
    assert f"replaced sample 0001 of {tmp_path}/0.tar: undecodable" in caplog.text


def test_of_many_bad_samples_the_first_are_named(tmp_path, caplog):
    """The line after the twentieth says where the others are counted; another reason has lines of its own."""
    junk = {number: replaced("png", b"junk") for number in range(0, 50, 2)}
    junk[1] = replaced("png", png_bomb(12000, 12000))
    write_shard(tmp_path / "0.tar", range(50), junk)
    data = load(tmp_path, max_image_pixels=50_000_000)
    for position in (0, 50):
        list(data.batches(position, 1, 50, 8))
    lines = [record.getMessage() for record in caplog.records]
    assert sum("undecodable" in line and line.startswith("replaced") for line in lines) == 20
    assert (
        lines.count(
            "that were 20 samples; others that are undecodable are counted (bad_draws/undecodable in "
            "metrics.jsonl), not named"
        )
        == 1
    )
    assert sum("too_many_pixels" in line for line in lines) == 1


# Workers that die or stand still. Sample 13, key 0013, is the one that a worker never gets over.


def test_a_worker_that_is_killed_is_named(folder):
    """As by the kernel when memory runs out; torch's own way is an error from the middle of a training step."""
    data = load(folder, num_workers=2)
    batches = data.batches(0, 10_000, 4, 8)
    next(batches)
    # The first batch is worker 0's; the other may not have said its number yet, and signal 9 to 0 is for all of us.
    while not all(state.pid for state in data._reader.watch.states()):
        next(batches)
    workers = data._reader.watch.states()
    assert len(workers) == 2
    os.kill(workers[1].pid, signal.SIGKILL)
    with pytest.raises(
        DataError, match=r"rank 0: worker 1 \(pid \d+\) .*, killed by signal 9. .* memory ran out"
    ):
        for _ in batches:
            pass


class BrokenPipeOfADeadWorker:
    """A loader's iterator whose worker is killed while it hands over a batch: the pipe tells it first."""

    def __init__(self, fate):
        self._workers = [multiprocessing.get_context("fork").Process(target=fate)]
        self._workers[0].start()

    def __iter__(self):
        return self

    def __next__(self):
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


def test_a_worker_that_is_killed_while_it_hands_over_a_batch_is_named(monkeypatch):
    def killed():
        time.sleep(0.3)  # the pipe is broken before the process is gone
        os.kill(os.getpid(), signal.SIGKILL)

    board = WorkerWatch(1)
    items = watched(BrokenPipeOfADeadWorker(killed), board, 60, lambda state: f"worker {state.worker}", 0)
    with pytest.raises(DataError, match=r"rank 0: worker 0, killed by signal 9. .* memory ran out"):
        next(items)
    monkeypatch.setattr("train.data.worker_watch._DEATH_S", 0.1)
    alive = BrokenPipeOfADeadWorker(lambda: time.sleep(60))
    with pytest.raises(ConnectionResetError):  # nobody died: not ours to explain
        next(watched(alive, board, 60, str, 0))
    alive._workers[0].kill()


def test_a_worker_that_stands_still_is_named_with_shard_and_key(folder, monkeypatch):
    def decode(data, *arguments):
        if np.asarray(Image.open(io.BytesIO(data)))[0, 0, 0] == 13:
            time.sleep(3600)
        return decode_image(data, *arguments)

    monkeypatch.setattr("train.data.sample_reader.decode_image", decode)
    data = load(folder, num_workers=1, stall_timeout_s=0.6)
    with pytest.raises(
        DataError,
        match=rf"rank 0: no progress for 0.6 s \(data.stall_timeout_s\): worker 0 .* reading sample 0013 "
        rf"of {folder}/1.tar. See to the disk",
    ):
        for _ in data.batches(0, 100, 4, 8):
            pass


def test_a_trainer_that_takes_its_time_is_no_stall(folder):
    for _ in load(folder, num_workers=1, stall_timeout_s=0.2).batches(0, 4, 4, 8):
        time.sleep(0.3)


# The index that is kept beside a shard.


def rows_of(index):
    return [index.rows.row(number) for number in range(len(index.rows))]


def test_the_index_is_kept_and_gives_the_same_table(folder):
    first, again = open_index(str(folder / "0.tar")), open_index(str(folder / "0.tar"))
    assert (folder / "0.tar.index").is_file()
    assert not isinstance(again.content, bytes)
    assert rows_of(first) == rows_of(again) != []
    assert numbers_of(load(folder)) == numbers_of(load(folder))


def test_faults_are_remembered_with_the_index(tmp_path):
    path = write_shard(tmp_path / "0.tar", range(10))
    os.truncate(path, 10_000)
    assert open_index(str(path)).faults == open_index(str(path)).faults != []


def test_an_index_of_another_tar_is_made_again(folder):
    path = folder / "0.tar"
    assert len(open_index(str(path)).rows) == 10
    write_shard(path, range(3))
    assert len(open_index(str(path)).rows) == 3


@pytest.mark.parametrize("damage", [b"", b"{}\n", b'{"format": "crawl2clip shard index 2"}\n', b"\xff\x00"])
def test_a_torn_index_is_made_again(folder, damage):
    path = folder / "0.tar"
    kept = rows_of(open_index(str(path)))
    index = folder / "0.tar.index"
    for content in (damage, index.read_bytes()[:-8]):
        index.write_bytes(content)
        assert rows_of(open_index(str(path))) == kept


def test_a_folder_that_cannot_be_written_keeps_the_index_in_memory(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(f"read-only: {path}")

    monkeypatch.setattr("train.data.index_file.atomic_path", refuse)
    assert sorted(drawn_from(load(folder), 25)) == list(range(25))
    assert not list(folder.glob("*.index"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"caption": "jsn"}, "data.caption is 'jsn'; give txt, or json:<field>"),
        ({"caption": "json:"}, "data.caption is 'json:'"),
        ({"decode_size": 0}, "data.decode_size is 0; give 1 or more"),
        ({"max_image_pixels": 0}, "data.max_image_pixels is 0"),
        ({"prefetch_batches": 0}, "data.prefetch_batches is 0"),
        ({"num_workers": -1}, "data.num_workers is -1; give 0 or more processes a rank"),
        ({"shards": None}, "data.shards is None and data.sources is None; give exactly one of them"),
        ({"sources": [SourceConfig(shards="y")]}, "give exactly one of them and leave the other null"),
        ({"shards": None, "sources": []}, "data.sources is empty; list at least one, or give data.shards"),
        ({"captions": []}, "data.caption is txt and data.captions is"),
        ({"stall_timeout_s": 0.0}, "data.stall_timeout_s is 0.0; give more than 0 seconds"),
        ({"shuffle_window_shards": 0}, "data.shuffle_window_shards is 0; give 1 or more"),
        (
            {"cache_decoded": True, "random_crop": RandomCropConfig(min_area=0.9, max_ratio=1.0)},
            r"set data.random_crop=null \(augment.min_crop_fraction still crops",
        ),
        ({"cache_decoded": True, "decode_size": None}, "data.decode_size is null; give the side in pixels"),
        ({"max_bad_fraction": 1.0}, "data.max_bad_fraction is 1.0; give a fraction from 0 to below 1"),
    ],
)
def test_setting_errors(change, message):
    with pytest.raises(ConfigError, match=message):
        data_config("x", **change)


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_caption_is_masked_otherwise_at_each_draw_and_alike_when_it_is_asked_for_again(tmp_path, in_memory):
    write_shard(tmp_path / "0.tar", range(4))
    long = torch.tensor([7, *range(1, 19), 9999])
    mask = partial(shorten_texts, mask=TextMask.random, context_length=8, seed=0)
    data = load(
        tmp_path, words=lambda texts: long.repeat(len(texts), 1), shorten=mask, cache_decoded=in_memory
    )
    whole = torch.cat([batch.text_tokens for batch in data.batches(0, 4, 2, 8)])
    assert whole.shape == (8, 8)
    assert len({tuple(row.tolist()) for row in whole}) > 4  # two epochs of four samples
    later = torch.cat([batch.text_tokens for batch in data.batches(4, 2, 2, 8)])
    assert torch.equal(later, whole[4:])  # as after a resume


# More shards than a process may have files open, and a machine that fails.


@contextmanager
def files_left(count):
    """This process and its workers may open so many more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [number for number in range(soft) if not Path(f"/proc/self/fd/{number}").exists()]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[count], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_more_shards_than_a_process_may_open_files(tmp_path, num_workers):
    for shard in range(300):
        write_shard(tmp_path / f"{shard:03d}.tar", range(2 * shard, 2 * shard + 2))
    with files_left(200):
        drawn = drawn_from(load(tmp_path, num_workers=num_workers), 600, 8)
        assert sorted(drawn) == list(range(600))
        maps = Path("/proc/self/maps").read_text()
    assert str(tmp_path) not in maps
    assert drawn == drawn_from(load(tmp_path), 600, 8)


def test_few_files_left_is_no_fault_of_the_samples(folder):
    data = load(folder)
    drawn_from(load(folder), 1)  # what is imported at a first draw
    with (
        files_left(0),
        pytest.raises(
            DataError, match=r"cannot be opened: .*Too many open files.*\(ulimit -n\).*raise it: ulimit -n"
        ),
    ):
        drawn_from(data, 1)
    assert sorted(drawn_from(data, 25)) == list(range(25))


@pytest.mark.parametrize("ending", [".tar", ".tar.index"])
def test_a_disk_that_fails_ends_the_run(folder, monkeypatch, ending):
    data = load(folder)
    read = OpenFile.read

    def fail(self, offset, size):
        if str(self.path).endswith(ending):
            raise OSError(errno.EIO, "Input/output error")
        return read(self, offset, size)

    monkeypatch.setattr(OpenFile, "read", fail)
    with pytest.raises(
        DataError, match=rf"{ending} cannot be read: .*the shard is not at fault: see to this machine"
    ):
        drawn_from(data, 1)


def test_a_disk_that_fails_under_the_headers_ends_the_start(folder, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("crawl2clip.tar_headers.os.pread", fail)
    with pytest.raises(
        DataError, match=r"0\.tar cannot be read: .*Input/output error; the shard is not at fault"
    ):
        load(folder)


def test_an_index_that_goes_away_under_the_run_is_made_again(folder):
    data = load(folder)
    for path in folder.glob("*.index"):
        path.unlink()
    assert sorted(drawn_from(data, 25)) == list(range(25))


def test_a_shard_replaced_by_another_before_it_was_drawn_from(folder):
    data = load(folder)
    write_shard(folder / "0.tar", range(9))
    (folder / "0.tar.index").unlink()
    with pytest.raises(
        DataError, match=r"0\.tar has 9 samples in \d+ bytes; when the run started it had 10 in"
    ):
        drawn_from(data, 25)


def test_a_shard_without_permission_is_tried_again_at_the_next_start(folder, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("crawl2clip.shards.open", refuse, raising=False)
        with pytest.raises(DataError, match=r"no usable sample \(faults: not_a_tar 2\)"):
            load(folder)
    assert load(folder).samples_per_epoch == 25


@pytest.mark.parametrize("caption", ["txt", "json:txt"])
def test_numbers_of_shards_whose_samples_lack_this_and_that(tmp_path, caption):
    """Drawn through the index, each number is the sample it was when all were listed."""
    changes = {3: without("png"), 5: without("txt"), 8: with_json, 9: with_json, 14: with_json}
    write_shard(tmp_path / "0.tar", range(10), changes)
    write_shard(tmp_path / "1.tar", range(10, 20), changes)
    table = find_samples(data_config(tmp_path, caption=caption, max_bad_fraction=0.9), WORLD).table
    keys = [int(table.locate(number)[1].key.rstrip(b"\0")) for number in range(len(table))]
    assert keys == ([n for n in range(20) if n not in (3, 5)] if caption == "txt" else [8, 9, 14])
    assert table.unusable == (
        {"missing_image": 1, "missing_caption": 1}
        if caption == "txt"
        else {"missing_image": 1, "missing_caption": 16}
    )


def with_json(fields):
    return {**fields, "json": b'{"txt": "1"}'}


@dataclass(frozen=True)
class ThreadWorld(World):
    """One of two ranks, each a thread of this process."""

    values: list = field(default_factory=list)
    meet: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))
    after_first: Callable[[], None] = lambda: None

    def all_gather_object(self, value):
        first = self.values[self.rank] is None
        self.values[self.rank] = value
        self.meet.wait(10)
        gathered = list(self.values)
        if self.meet.wait(10) == 0 and first:
            self.after_first()
        self.meet.wait(10)
        return gathered


def test_an_index_made_on_another_machine_is_made_here_too(folder):
    """The other machine's disk is not this one: what it made is not there after the ranks have met."""
    values, meet = [None, None], threading.Barrier(2)
    worlds = [
        ThreadWorld(rank, 2, 0, torch.device("cpu"), values, meet, (folder / "1.tar.index").unlink)
        for rank in (0, 1)
    ]
    with ThreadPoolExecutor(2) as threads:
        tables = list(threads.map(lambda world: find_samples(data_config(folder), world).table, worlds))
    assert (folder / "1.tar.index").is_file()
    assert [len(table) for table in tables] == [25, 25]
    assert tables[0].locate(24)[1] == tables[1].locate(24)[1]


def test_an_index_that_is_kept_nowhere_reaches_all_ranks(folder, monkeypatch, caplog):
    def refuse(path):
        raise OSError(errno.EROFS, f"read-only: {path}")

    monkeypatch.setattr("train.data.index_file.atomic_path", refuse)
    values, meet = [None, None], threading.Barrier(2)
    worlds = [ThreadWorld(rank, 2, 0, torch.device("cpu"), values, meet) for rank in (0, 1)]
    with ThreadPoolExecutor(2) as threads, caplog.at_level(logging.WARNING):
        tables = list(threads.map(lambda world: find_samples(data_config(folder), world).table, worlds))
    assert "the indexes of 2 shards cannot be kept beside them" in caplog.text
    assert all(int(table.locate(n)[1].key.rstrip(b"\0")) == n for table in tables for n in range(25))
