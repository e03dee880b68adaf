"""JPEGs as the web has them, for benchmarks/download.py: crops of two photographs that come with scikit-learn.

`small`: 640 x 480, 60 to 100 kB, a quarter of them progressive. `large`: 3000 x 2000, about 1 MB. All differ.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = {"small": (640, 480), "large": (3000, 2000)}  # pixels
_BYTES = {"small": (60_000, 100_000), "large": (800_000, 2_000_000)}  # of a file, wanted


def make_images(folder: Path, kind: str, count: int) -> list[Path]:
    """Writes `count` distinct JPEGs of a kind, unless they are there; the same ones every time."""
    paths = [folder / f"{kind}-{number:04d}.jpg" for number in range(count)]
    if all(path.exists() for path in paths):
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    photographs = _photographs()
    generator = np.random.default_rng(0)
    for number, path in enumerate(paths):
        image = _crop(photographs[number % len(photographs)], SIZES[kind], generator)
        path.write_bytes(_encoded(image, *_BYTES[kind], progressive=number % 4 == 3))
    return paths


def _photographs() -> list[Image.Image]:
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(pixels) for pixels in load_sample_images().images]  # 640 x 427


def _crop(photograph: Image.Image, size: tuple[int, int], generator: np.random.Generator) -> Image.Image:
    """A random part, mirrored at random, enlarged to `size`, with the noise that a sensor would add."""
    scale = generator.uniform(0.55, 0.85)
    width, height = photograph.width * scale, photograph.width * scale * size[1] / size[0]
    height = min(height, photograph.height)
    left = generator.uniform(0, photograph.width - width)
    top = generator.uniform(0, photograph.height - height)
    box = (left, top, left + width, top + height)
    image = photograph.resize(size, Image.Resampling.LANCZOS, box=box)
    if generator.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    noise = generator.normal(0, 3.0, (size[1], size[0], 1))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def _encoded(image: Image.Image, low: int, high: int, *, progressive: bool) -> bytes:
    """The image at the highest quality below 95 that keeps the file in its range."""
    data = b""
    for quality in (92, 88, 84, 80, 75, 70, 60):
        file = BytesIO()
        image.save(file, "JPEG", quality=quality, progressive=progressive)
        data = file.getvalue()
        if len(data) <= high:
            break
    assert len(data) >= low // 2, f"{len(data)} bytes is too little detail for this benchmark"
    return data
