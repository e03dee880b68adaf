"""The explorer's model: texts and uploads become the embeddings that the tag stage would make of them."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from tag_runs import export

from crawl2clip.encoder import load_encoder
from crawl2clip.errors import ConfigError
from data_pipeline.clip_models import weights_fingerprint
from data_pipeline.explorer.towers import Towers


class Multilingual:
    """A text tower of another maker: the fourth axis, whatever it reads."""

    def __init__(self, name, device):
        assert (name, device) == ("st/multilingual", "cpu")

    def encode(self, texts, **_):
        return torch.eye(16)[3].repeat(len(texts), 1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return export(tmp_path_factory.mktemp("towers") / "export")


def towers_of(indexed, **asked):
    return Towers(indexed, model=None, device="cpu", **{"pretrained": None, **asked})


def indexed_with(weights):
    return {
        "model": None, "pretrained": weights, "weights_sha256": weights_fingerprint(weights),
        "towers": {"english": None, "mclip": "st/multilingual"},
    }  # fmt: skip


def test_texts_and_images_are_encoded_as_when_they_were_tagged(weights):
    towers, encoder = towers_of(indexed_with(weights)), load_encoder(None, weights)
    image = Image.new("RGB", (30, 20), (200, 10, 10))
    np.testing.assert_allclose(
        towers.encode_text("a red cat"), encoder.encode_texts(["a red cat"]).numpy()[0], atol=1e-6
    )
    expected = encoder.encode_images(encoder.preprocess(image)[None]).numpy()[0]
    np.testing.assert_allclose(towers.encode_image(image), expected, atol=1e-6)
    assert (towers.dim, towers.names) == (16, ["english", "mclip"])


def test_a_text_tower_is_asked_for_by_name(weights, monkeypatch):
    module = ModuleType("sentence_transformers")
    module.SentenceTransformer = Multilingual  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    towers = towers_of(indexed_with(weights))
    assert towers.encode_text("猫", "mclip").tolist() == np.eye(16)[3].tolist()
    assert towers.encode_text("cat").tolist() != np.eye(16)[3].tolist()
    with pytest.raises(ConfigError, match="unknown text tower 'mclap'; did you mean 'mclip'"):
        towers.encode_text("cat", "mclap")


def test_other_weights_are_refused_with_both_names(weights, tmp_path):
    other = export(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError) as caught:
        towers_of(indexed_with(weights), pretrained=other)
    assert weights in str(caught.value)
    assert other in str(caught.value)
