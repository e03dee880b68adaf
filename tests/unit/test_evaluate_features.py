"""Encode once: cache, sharding, bad images, features that are no numbers."""

import numpy as np
import pytest
import torch
from evaluation_sets import PlainEncoder, write_classification, write_retrieval
from torch.utils.data import IterableDataset

from crawl2clip.distributed import World, single_process
from crawl2clip.errors import DataError
from evaluate.batches import batches_of
from evaluate.cache import FeatureCache
from evaluate.data.benchmark_split import BenchmarkSplit
from evaluate.data.subset_split import SubsetSplit
from evaluate.data.tar_split import TarSplit
from evaluate.feature_keys import preprocessing_hash
from evaluate.features import _on_a_boundary, encode_images

WORLD = single_process()


def encode(encoder, split, **settings):
    defaults = {
        "world": WORLD,
        "batch_size": 4,
        "num_workers": 0,
        "max_bad_images": 0,
        "show_progress": False,
    }
    return encode_images(encoder, split, **{**defaults, **settings})


@pytest.fixture
def split(tmp_path):
    return TarSplit(write_classification(tmp_path / "things"), "test", with_labels=True, with_captions=False)


def damage(split: TarSplit, *indices: int) -> None:
    """Overwrites the middle of some samples' images where they lie in their shard."""
    for index in indices:
        entry = split._entries[index]
        with open(split._shards[entry.shard], "r+b") as file:
            file.seek(entry.offset)
            file.write(b"\0" * (entry.size // 2))


def test_features_are_those_of_the_encoder_in_order(split):
    encoder = PlainEncoder()
    found = encode(encoder, split)
    expected = encoder.encode_images(torch.stack([encoder.preprocess(r.image) for r in split.records()]))
    assert torch.allclose(found.features, expected, atol=1e-6)
    assert found.labels.tolist() == [i % 6 for i in range(30)]
    assert (found.captions, found.faults) == (None, [])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3, 40])
def test_shares_cover_every_sample_once_in_the_same_batches(split, world_size, num_workers):
    def batches(rank):
        world = World(rank, world_size, rank, torch.device("cpu"))
        found = batches_of(split, PlainEncoder().preprocess, world, 4, num_workers if world_size < 3 else 0)
        return [[record.index for record in batch.records] for batch in found]

    shares = [batches(rank) for rank in range(world_size)]
    assert sorted(batch for share in shares for batch in share) == [
        list(range(start, min(start + 4, 30))) for start in range(0, 30, 4)
    ]


def test_a_source_without_random_access_is_shared_out_in_the_same_batches():
    class Stream(IterableDataset):
        classes = ("a", "b", "c")

        def __len__(self):
            return 10

        def __iter__(self):
            from evaluation_sets import picture

            for i in range(self.given):
                yield picture(i % 3, i), np.int64(i % 3)

    stream = Stream()
    split = BenchmarkSplit.__new__(BenchmarkSplit)
    split.name, split._dataset, split.random_access, split.num_samples = "stream/test", stream, False, 10
    stream.given = 10

    def batches(rank):
        world = World(rank, 2, rank, torch.device("cpu"))
        found = batches_of(split, PlainEncoder().preprocess, world, 4, 0)
        return [[record.index for record in batch.records] for batch in found]

    assert [batches(rank) for rank in range(2)] == [[[0, 1, 2, 3], [8, 9]], [[4, 5, 6, 7]]]
    assert encode(PlainEncoder(), split).labels.tolist() == [i % 3 for i in range(10)]
    stream.given = 9
    with pytest.raises(DataError, match="stream/test gave 9 samples, it announced 10"):
        encode(PlainEncoder(), split)


def test_a_bad_image_is_an_error_that_names_it_unless_it_is_allowed(split):
    damage(split, 3, 20)
    with pytest.raises(
        DataError, match=r"at least 1 of 30 images cannot be decoded, 0 are allowed .*0.tar, sample s0000003"
    ):
        encode(PlainEncoder(), split)
    found = encode(PlainEncoder(), split, max_bad_images=2)
    assert len(found.features) == 28
    assert found.labels.tolist() == [i % 6 for i in range(30) if i not in (3, 20)]
    assert [fault.where.rpartition(" ")[2] for fault in found.faults] == ["s0000003", "s0000020"]
    damage(split, *range(30))
    with pytest.raises(DataError, match="none of its 30 images is left to score"):
        encode(PlainEncoder(), split, max_bad_images=30)


def test_features_that_are_no_numbers_are_an_error(split):
    class Broken(PlainEncoder):
        def encode_images(self, images):
            features = super().encode_images(images)
            features[0, 0] = torch.nan
            return features

    with pytest.raises(
        DataError, match=r"8 of 30 image features of things/test are not finite .*row 0.*plain in fp32"
    ):
        encode(Broken(), split)

    class Half(PlainEncoder):
        precision = "bf16"

        def encode_images_twice(self, images):
            before = torch.ones(len(images), 7)
            before[-1, 3] = torch.inf
            return self.encode_images(images), before

        def check_penultimate(self):
            pass

    with pytest.raises(DataError, match=r"8 of 30 .* row 3\) with plain in bf16; .*: try precision=fp32"):
        encode(Half(), split, penultimate=True)


class Twice(PlainEncoder):
    """With features before the projection."""

    def check_penultimate(self):
        pass

    def encode_images_twice(self, images):
        return self.encode_images(images), images.flatten(1)[:, :5].contiguous()


def test_features_before_the_projection_come_from_the_same_pass_and_the_cache(split, tmp_path):
    cache, encoder = FeatureCache(tmp_path / "cache"), Twice()
    assert encode(encoder, split, cache=cache).penultimate is None
    found = encode(encoder, split, cache=cache, penultimate=True)
    assert encoder.images_encoded == 60  # the first time nobody had asked for them
    pixels = torch.stack([encoder.preprocess(r.image) for r in split.records()])
    assert torch.equal(found.penultimate, pixels.flatten(1)[:, :5])
    assert torch.equal(encode(encoder, split, cache=cache, penultimate=True).penultimate, found.penultimate)
    assert torch.equal(encode(encoder, split, cache=cache).features, found.features)
    assert encoder.images_encoded == 60


def test_what_is_known_of_the_samples_goes_with_the_features(split):
    damage(split, 4)
    found = encode(PlainEncoder(), split, max_bad_images=1)
    assert found.keys[:5] == ["s0000000", "s0000001", "s0000002", "s0000003", "s0000005"]
    assert found.indices.tolist() == [i for i in range(30) if i != 4]
    assert (found.metadata, found.targets) == ({}, None)


def test_the_cache_gives_the_same_bits_without_encoding(split, tmp_path):
    cache, encoder = FeatureCache(tmp_path / "cache"), PlainEncoder()
    damage(split, 5)
    first = encode(encoder, split, cache=cache, max_bad_images=1)
    encoder.images_encoded = 0
    second = encode(encoder, split, cache=cache, max_bad_images=1)
    assert encoder.images_encoded == 0
    assert torch.equal(first.features, second.features)
    assert torch.equal(first.labels, second.labels)
    assert first.faults == second.faults
    with pytest.raises(DataError, match="1 of 30 images cannot be decoded, 0 are allowed"):
        encode(encoder, split, cache=cache)


def test_features_begin_where_products_round_alike_wherever_they_were_read_to():
    """Each place of 16 bytes that numpy may give; without the copy, most of them change the product's last bits."""
    rows, width = 20, 32
    values = np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)
    weight = torch.randn(5, width, generator=torch.Generator().manual_seed(0))
    expected = torch.from_numpy(values).clone() @ weight.T
    for place in range(0, 16, 4):
        memory = np.empty(rows * width + 32, np.float32)
        start = -memory.ctypes.data % 64 // 4 + place
        features = memory[start : start + rows * width].reshape(rows, width)
        features[:] = values
        found = _on_a_boundary(features)
        assert found.data_ptr() % 64 == 0
        assert torch.equal(found @ weight.T, expected)
        assert (found.data_ptr() == features.ctypes.data) == (place == 0)  # no copy where none is needed


def test_captions_survive_the_cache(tmp_path):
    split = TarSplit(write_retrieval(tmp_path / "told"), "test", with_labels=False, with_captions=True)
    cache = FeatureCache(tmp_path / "cache")
    first, second = (encode(PlainEncoder(), split, cache=cache) for _ in range(2))
    assert first.captions == second.captions == [r.captions for r in split.records()]
    assert second.labels is None


def test_other_weights_preprocessing_precision_or_data_are_other_keys(split, tmp_path):
    cache = FeatureCache(tmp_path / "cache")
    encode(PlainEncoder(), split, cache=cache)

    def encoded_anew(encoder, of=split):
        encode(encoder, of, cache=cache)
        return encoder.images_encoded > 0

    assert not encoded_anew(PlainEncoder())
    assert encoded_anew(PlainEncoder(weights=1))
    half = PlainEncoder()
    half.precision = "bf16"
    assert encoded_anew(half)
    darker = PlainEncoder()
    darker.preprocess = lambda image: PlainEncoder.preprocess(darker, image) - 0.01
    assert preprocessing_hash(darker) != preprocessing_hash(PlainEncoder())
    assert encoded_anew(darker)
    other = TarSplit(
        write_classification(tmp_path / "b" / "things", seed=1), "test", with_labels=True, with_captions=False
    )
    assert encoded_anew(PlainEncoder(), other)


def test_languages_of_one_data_set_share_its_images(split, tmp_path):
    encoder, cache = PlainEncoder(), FeatureCache(tmp_path / "cache")
    damage(split, 1)
    subsets = [SubsetSplit(split, split.labels, classes, "x") for classes in ([5, 1], [0, 1, 2])]
    for subset in subsets:
        alone = encode(PlainEncoder(), subset, max_bad_images=1)
        shared = encode(encoder, subset, cache=cache, max_bad_images=1)
        torch.testing.assert_close(shared.features, alone.features, atol=1e-6, rtol=0)  # other batches
        assert shared.labels.tolist() == alone.labels.tolist()
        assert shared.indices.tolist() == alone.indices.tolist()
        assert shared.keys == alone.keys
        assert [fault.where for fault in shared.faults] == [fault.where for fault in alone.faults]
    assert encoder.images_encoded == 29
    assert shared.labels.tolist()[:3] == [0, 2, 0]  # sample 1 is damaged
