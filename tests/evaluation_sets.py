"""Tiny evaluation sets in CLIP_benchmark's layout, and a stand-in for a model."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from crawl2clip.shards import ShardWriter

ARCHITECTURE = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def picture(label: int, seed: int, size: tuple[int, int] = (40, 40)) -> Image.Image:
    """A coarse pattern for the label, with the seed's noise on it."""
    coarse = np.random.default_rng(1000 + label).integers(0, 256, (4, 4, 3)).repeat(10, 0).repeat(10, 1)
    noise = np.random.default_rng(seed).integers(-60, 60, coarse.shape)
    return Image.fromarray((coarse + noise).clip(0, 255).astype(np.uint8), "RGB").resize(size)


def encoded(image: Image.Image, form: str = "png") -> bytes:
    out = io.BytesIO()
    image.save(out, form)
    return out.getvalue()


def write_split(folder: Path, samples: Sequence[dict[str, bytes]], *, num_shards: int = 2) -> None:
    """Tars 0.tar ... and nshards.txt; keys as CLIP_benchmark writes them."""
    folder.mkdir(parents=True)
    per_shard = -(-len(samples) // num_shards)
    for shard in range(num_shards):
        with ShardWriter(folder / f"{shard}.tar") as writer:
            for index in range(shard * per_shard, min((shard + 1) * per_shard, len(samples))):
                writer.write(f"s{index:07d}", samples[index])
    (folder / "nshards.txt").write_text(f"{num_shards}\n")


def write_classification(
    folder: Path,
    *,
    num_classes: int = 6,
    per_class: int = 5,
    split: str = "test",
    seed: int = 0,
    num_shards: int = 2,
) -> Path:
    """Labels go round: sample i has class i modulo num_classes."""
    samples = [
        {"png": encoded(picture(i % num_classes, seed * 10_000 + i)), "cls": str(i % num_classes).encode()}
        for i in range(num_classes * per_class)
    ]
    write_split(folder / split, samples, num_shards=num_shards)
    (folder / "classnames.txt").write_text("".join(f"thing {c}\n" for c in range(num_classes)))
    (folder / "zeroshot_classification_templates.txt").write_text(
        "a photo of a {c}.\na drawing of a {c}.\n{c}\n"
    )
    return folder


def write_retrieval(folder: Path, *, num_images: int = 24, split: str = "test") -> Path:
    """Image i has 1 + i modulo 3 captions."""
    samples = [
        {
            "png": encoded(picture(i, i)),
            "txt": "\n".join(f"picture number {i}, seen {j} times" for j in range(1 + i % 3)).encode(),
        }
        for i in range(num_images)
    ]
    write_split(folder / split, samples)
    (folder / "dataset_type.txt").write_text("retrieval\n")
    return folder


class PlainEncoder:
    """Looks like `crawl2clip.encoder.Encoder`; a fixed projection of pixels, and of the letters of a text."""

    name = "plain"
    architecture = {"embed_dim": 24}
    embed_dim = 24
    precision = "fp32"
    device = torch.device("cpu")
    logit_scale = 100.0

    def __init__(self, weights: int = 0) -> None:
        generator = torch.Generator().manual_seed(weights)
        self._image = torch.randn(3 * 8 * 8, self.embed_dim, generator=generator)
        self._text = torch.randn(128, self.embed_dim, generator=generator)
        self.weights_sha256 = f"{weights:064d}"
        self.images_encoded = 0
        self.texts_encoded: list[str] = []

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image.resize((8, 8)))).permute(2, 0, 1).float() / 255 - 0.5

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        self.images_encoded += len(images)
        return torch.nn.functional.normalize(images.flatten(1) @ self._image, dim=-1)

    def text_lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
        self.texts_encoded += texts
        counts = torch.zeros(len(texts), 128)
        for row, text in enumerate(texts):
            for place, letter in enumerate(text):
                counts[row, ord(letter) % 128] += 1 + place
        return torch.nn.functional.normalize(counts @ self._text, dim=-1)
