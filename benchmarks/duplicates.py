"""How well duplicates are found on sets whose duplicates are known, and what it costs.

    python benchmarks/duplicates.py [images=400] [hashes=300000] [embeddings=20000] [width=512]

1. Perceptual: photographs and drawings, each with one edited copy (JPEG at quality 30 to 85, another size, a crop of
   up to 4% a side, brighter or darker, or a mirror image, which a perceptual hash cannot know). For each Hamming radius
   the precision and recall of the pairs, and the recall for each edit.
2. Near hashes: CPU seconds of the banding for random hashes of which a tenth are near others; all of them have to be
   found.
3. Semantic: unit vectors in soft groups, a third of them copies at a cosine of about 0.97; what comparing within
   k-means clusters finds of what comparing all with all finds. No trained model's embeddings are to be had offline, so
   this measures the clustering, not CLIP.
"""

import io
import random
import sys
import time
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from train_pairs import drawing

from data_pipeline.images import perceptual_hash
from data_pipeline.taggers.hamming import distances, masks_for, smallest_neighbours
from data_pipeline.taggers.semantic_steps import _kmeans, first_close

RADII = (0, 2, 4, 6, 8, 10, 12)
CHOSEN = 4  # configs/data_pipeline.yaml
MIN_COSINE = 0.95


def main(words: list[str]) -> None:
    """Runs the three parts."""
    settings = {"images": 400, "hashes": 300_000, "embeddings": 20_000, "width": 512}
    settings |= {key: int(value) for key, value in (word.split("=") for word in words)}
    perceptual(settings["images"])
    near_hashes(settings["hashes"])
    semantic(settings["embeddings"], settings["width"])


def perceptual(number: int) -> None:
    """Precision and recall for each radius."""
    rng = random.Random(0)
    originals = list(pictures(rng, number))
    kinds = [rng.choice(sorted(EDITS)) for _ in originals]
    copies = [EDITS[kind](image, rng) for kind, image in zip(kinds, originals, strict=True)]
    hashes = np.array(
        [int(perceptual_hash(np.asarray(image)), 16) for image in originals + copies], np.uint64
    )
    apart = distances(hashes[:, None], hashes[None, :])
    upper = np.triu(np.ones(apart.shape, bool), 1)
    true = np.zeros(apart.shape, bool)
    true[np.arange(number), number + np.arange(number)] = True
    known = [place for place, kind in enumerate(kinds) if kind != "mirror"]
    print(f"{number} images and an edited copy of each; recall without mirror images")
    for radius in RADII:
        told = (apart <= radius) & upper
        precision = (told & true).sum() / max(told.sum(), 1)
        each = {
            kind: np.mean([told[place, number + place] for place in range(number) if kinds[place] == kind])
            for kind in sorted(EDITS)
        }
        recall = np.mean([told[place, number + place] for place in known])
        edits = ", ".join(f"{kind} {value:.2f}" for kind, value in each.items())
        print(f"radius {radius:2d}: precision {precision:.3f}, recall {recall:.3f} ({edits})")
        if radius == CHOSEN:
            chosen = precision, recall
    print(f"result name=perceptual_precision ours={chosen[0]:.3f} unit=fraction")
    print(f"result name=perceptual_recall ours={chosen[1]:.3f} unit=fraction")


def pictures(rng: random.Random, number: int):
    """Parts of scikit-learn's photographs and of drawings, in turn, RGB."""
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for place in range(number):
        if place % 4:
            yield Image.open(io.BytesIO(drawing(rng, 256)[0])).convert("RGB")
            continue
        source = rng.choice(photographs)
        side = rng.randint(120, 300)
        left, top = rng.randint(0, source.width - side), rng.randint(0, source.height - side)
        yield source.crop((left, top, left + side, top + side)).resize((256, 256))


def _recoded(image: Image.Image, rng: random.Random) -> Image.Image:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=rng.randint(30, 85))
    return Image.open(data).convert("RGB")


def _resized(image: Image.Image, rng: random.Random) -> Image.Image:
    scale = rng.uniform(0.4, 1.8)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def _cropped(image: Image.Image, rng: random.Random) -> Image.Image:
    left, top, right, bottom = (rng.uniform(0, 0.04) for _ in range(4))
    box = (left * image.width, top * image.height, (1 - right) * image.width, (1 - bottom) * image.height)
    return image.crop(tuple(round(edge) for edge in box))


def _brighter(image: Image.Image, rng: random.Random) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(rng.uniform(0.75, 1.25))


EDITS = {
    "jpeg": _recoded,
    "resize": _resized,
    "crop": _cropped,
    "brightness": _brighter,
    "mirror": lambda image, _: ImageOps.mirror(image),
}


def near_hashes(rows: int) -> None:
    """The cost of the banding, and whether it finds what was planted."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(2**64, size=rows, dtype=np.uint64)
    planted = rows // 10
    for _ in range(CHOSEN):
        hashes[-planted:] = hashes[:planted] if _ == 0 else hashes[-planted:]
        hashes[-planted:] ^= np.uint64(1) << rng.integers(64, size=planted, dtype=np.uint64)
    start = time.process_time()
    masks = masks_for(CHOSEN, rows)
    found = np.arange(rows)
    for mask in masks:
        found = np.minimum(found, smallest_neighbours(hashes, hashes & np.uint64(mask), CHOSEN))
    seconds = time.process_time() - start
    recall = (found[-planted:] == np.arange(planted)).mean()
    print(
        f"{rows:,} hashes, radius {CHOSEN}, {len(masks)} choices of bands: {seconds:.1f} CPU s; recall {recall:.4f}"
    )
    block = distances(hashes[:2000, None], hashes[None, :2000])
    start = time.process_time()
    block = distances(hashes[:2000, None], hashes[None, :2000]) <= CHOSEN
    all_pairs = (time.process_time() - start) * (rows / 2000) ** 2 / 2
    assert block.shape == (2000, 2000)
    print(f"result name=near_hashes_cpu_s ours={seconds:.2f} all_pairs_estimated={all_pairs:.0f} unit=s")
    print(f"result name=near_hashes_recall ours={recall:.4f} target=1 unit=fraction")


def semantic(rows: int, width: int) -> None:
    """What comparing within clusters finds of all close pairs."""
    rng = np.random.default_rng(0)
    topics = rng.normal(size=(200, width))
    vectors = topics[rng.integers(200, size=rows)] + 1.0 * rng.normal(size=(rows, width))
    copies = rows // 3
    vectors[-copies:] = vectors[:copies]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[-copies:] += rng.normal(size=(copies, width)) * 0.25 / np.sqrt(width)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    start = time.process_time()
    every = first_close(vectors, MIN_COSINE)
    all_s = time.process_time() - start
    true = every != np.arange(rows)
    print(
        f"{rows:,} vectors of {width}, {copies:,} copies; all with all: {true.sum():,} duplicates, {all_s:.1f} CPU s"
    )
    for per_cluster in (2_000, 500):
        start = time.process_time()
        sample = vectors[rng.random(rows) < min(1.0, 64 / per_cluster)]
        centroids = _kmeans(sample, max(1, rows // per_cluster))
        cluster = (vectors @ centroids.T).argmax(axis=1)
        order = np.argsort(cluster, kind="stable")
        ends = [0, *(np.flatnonzero(np.diff(cluster[order])) + 1), rows]
        found = np.arange(rows)
        for first, last in pairwise(ends):
            members = order[first:last]
            found[members] = members[first_close(vectors[members], MIN_COSINE)]
        seconds = time.process_time() - start
        told = found != np.arange(rows)
        precision, recall = (told & true).sum() / max(told.sum(), 1), (told & true).sum() / true.sum()
        print(
            f"clusters of {per_cluster}: precision {precision:.4f}, recall {recall:.4f}, {seconds:.1f} CPU s"
        )
        print(f"result name=semantic_recall_{per_cluster} ours={recall:.4f} all_pairs=1 unit=fraction")


if __name__ == "__main__":
    main(sys.argv[1:])
