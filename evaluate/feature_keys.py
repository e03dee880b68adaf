"""What features depend on, so that kept ones are never those of other weights, data, preprocessing or libraries."""

import functools
import hashlib
from importlib import metadata
from typing import Any

import numpy as np
import torch
from PIL import Image

from crawl2clip.encoder import Encoder
from evaluate.cache import FORMAT
from evaluate.results import hash_of


def model_key(encoder: Encoder) -> dict[str, Any]:
    """What all features of a model depend on."""
    return {
        "format": FORMAT,
        "weights_sha256": encoder.weights_sha256,
        "architecture": encoder.architecture,
        "precision": encoder.precision,
        "device": encoder.device.type,
        "torch": torch.__version__,
        "open_clip": _version("open_clip_torch"),
        "timm": _version("timm"),
    }


@functools.cache
def _version(package: str) -> str:
    """Of an installed package; a look at its files each time costs more than the hash of a small data set."""
    return metadata.version(package)


def text_key(encoder: Encoder) -> dict[str, Any]:
    """What text features depend on, apart from the text."""
    return {**model_key(encoder), "tokenizer": tokenizer_hash(encoder)}


def image_key(encoder: Encoder, data_name: str, data_sha256: str) -> dict[str, Any]:
    """What the image features of a split depend on."""
    return {
        **model_key(encoder),
        "preprocessing": preprocessing_hash(encoder),
        "pillow": _version("pillow"),  # decodes; the hash of the preprocessing starts from pixels
        "data_name": data_name,
        "data_sha256": data_sha256,
    }


def tokenizer_hash(encoder: Encoder) -> str:
    """Hash of what the tokenizer does to a few texts; an export may hold another one under the same weights."""
    tokenizer: Any = getattr(encoder, "tokenizer", None)
    probes = ["a photo of a Cat.", "Ein  hübsches &amp; kleines Bild, 1234!", "猫の写真 🐈", "x" * 500]
    return hash_of(tokenizer(probes).tolist()) if tokenizer is not None else "none"


def preprocessing_hash(encoder: Encoder) -> str:
    """Hash of what the preprocessing does to two fixed test pictures, a wide and a tall one.

    Its settings do not say everything (the resize changed between versions of Pillow and torchvision), and
    a transform of a caller's own has none.
    """
    digest = hashlib.sha256()
    for picture in _test_pictures():
        found = encoder.preprocess(picture.copy())
        digest.update(f"{found.dtype} {tuple(found.shape)}\n".encode())
        digest.update(found.contiguous().numpy().tobytes())
    return digest.hexdigest()


@functools.cache
def _test_pictures() -> list[Image.Image]:
    pictures = []
    for width, height in ((613, 411), (97, 150)):
        across = np.linspace(0, 255, width, dtype=np.float64)[None, :, None]
        down = np.linspace(0, 1, height)[:, None, None] * np.array([1.0, 0.5, 0.25])
        noise = np.random.default_rng(0).integers(0, 64, (height, width, 3))
        pictures.append(
            Image.fromarray(((across * down) * 0.75 + noise).clip(0, 255).astype(np.uint8), "RGB")
        )
    return pictures
