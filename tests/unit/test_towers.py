"""How images lie in memory on their way through a tower."""

import copy

import pytest
import torch
from omegaconf import OmegaConf

from crawl2clip.config import CONFIG_DIR
from crawl2clip.models import ModelConfig, build_model
from train.model.towers import Towers, image_layout


def built(name):
    return build_model(
        ModelConfig(**OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "model" / f"{name}.yaml")))
    )


@pytest.mark.parametrize(
    ("name", "layout"), [("emoji", torch.channels_last), ("tiny", torch.preserve_format)]
)
def test_convolutional_towers_read_images_channels_last(name, layout):
    assert image_layout(built(name)) is layout


def image_gradients(towers, images, weights):
    towers.train()
    texts = towers.texts_of(torch.tensor([[1, 5, 49407]] * len(images)))
    (towers(images, texts)["image_features"] * weights).sum().backward()
    return {name: p.grad.double() for name, p in towers.model.visual.named_parameters()}


def test_channels_last_gives_the_gradients_of_contiguous_images():
    """Against float64 on contiguous images: measured 8e-5 of a gradient's norm, from batch norm's float32 sums."""
    torch.manual_seed(0)
    towers = Towers(built("emoji"))
    images, weights = torch.rand(32, 3, 32, 32), torch.randn(32, 128)
    exact = copy.deepcopy(towers).double()
    exact._image_layout = torch.contiguous_format
    expected = image_gradients(exact, images.double(), weights.double())
    found = image_gradients(towers, images, weights)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 5e-4 * gradient.norm(), name
