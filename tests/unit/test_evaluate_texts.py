"""Texts: each is encoded once, in batches of like length, whatever asks for it."""

import tracemalloc

import pytest
import torch
from evaluation_sets import PlainEncoder

from crawl2clip.distributed import single_process
from crawl2clip.errors import DataError
from evaluate.cache import FeatureCache
from evaluate.texts import TextFeatures


def made(encoder, cache=None, batch_size=2) -> TextFeatures:
    return TextFeatures(
        encoder, world=single_process(), batch_size=batch_size, cache=cache, show_progress=False
    )


def added(features: TextFeatures, texts: list[str], what: str) -> torch.Tensor:
    features.add(texts, what)
    return features.of(texts)


def test_a_text_is_encoded_once_whatever_asks_for_it(tmp_path):
    encoder = PlainEncoder()
    texts = made(encoder, FeatureCache(tmp_path))
    first = added(texts, ["b", "a", "longer", "b"], "one")
    assert sorted(encoder.texts_encoded) == ["a", "b", "longer"]
    # In other batches the same sums are taken in another order: rounding of float32.
    torch.testing.assert_close(first, encoder.encode_texts(["b", "a", "longer", "b"]), atol=1e-6, rtol=0)
    encoder.texts_encoded.clear()
    texts.add(["a", "c"], "two")
    assert encoder.texts_encoded == ["c"]
    # Another run with another list: only what no run has met is encoded.
    again = PlainEncoder()
    cached = made(again, FeatureCache(tmp_path))
    assert torch.equal(added(cached, ["b", "new", "longer", "b"], "one")[[0, 2, 3]], first[[0, 2, 3]])
    assert again.texts_encoded == ["new"]
    other = PlainEncoder(weights=1)
    made(other, FeatureCache(tmp_path)).add(["a"], "one")
    assert other.texts_encoded == ["a"]


def test_batches_hold_texts_of_like_length():
    class Noting(PlainEncoder):
        def text_lengths(self, texts):
            return [text.count(" ") + 1 for text in texts]  # tokens are not letters

        def encode_texts(self, texts, batch_size=256):
            batches.append(sorted(self.text_lengths(texts)))
            return super().encode_texts(texts, batch_size)

    batches: list[list[int]] = []
    texts = [" ".join("x" * (1 + word % 3) for word in range(length)) for length in (5, 1, 4, 2, 3, 1, 6)]
    made(Noting(), batch_size=3).add(texts, "one")
    assert batches == [[1, 2, 3], [4, 5, 6]]  # the two of one word are the same text


def test_many_texts_are_held_once(tmp_path):
    """Beside what is kept for each text, a stated number of bytes, no copy of all features is made on the way."""

    class Wide(PlainEncoder):
        embed_dim = 4096

        def encode_texts(self, texts, batch_size=256):
            return torch.nn.functional.normalize(torch.ones(len(texts), 4096), dim=-1)

    texts = [f"text {number:05d}" for number in range(5000)]
    features = made(Wide(), FeatureCache(tmp_path), batch_size=250)
    tracemalloc.start()  # numpy's arrays are counted, torch's are not
    features.add(texts, "many")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = 5000 * 4096 * 4
    assert size <= peak < 1.3 * size
    assert features.of(texts[:1]).data_ptr() != features.of(texts[:1]).data_ptr()  # its own memory, aligned


def test_no_text_is_no_row():
    texts = made(PlainEncoder())
    assert added(texts, [], "nothing").shape == (0, 24)


def test_features_that_are_no_numbers_are_an_error(tmp_path):
    class Broken(PlainEncoder):
        def encode_texts(self, texts, batch_size=256):
            return torch.full((len(texts), 24), torch.inf)

    texts = made(Broken(), FeatureCache(tmp_path))
    with pytest.raises(
        DataError,
        match=r"2 of 2 text features of things are not finite, the first is of 'a', with plain in fp32; no score",
    ):
        texts.add(["a", "b"], "things")
    assert not list(tmp_path.glob("texts/*/*.npz"))
