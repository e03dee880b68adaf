"""Data sets and weights for benchmarks/evaluate.py: `python evaluate_sets.py FOLDER SETTINGS.json`.

In a process of its own because Linux counts a parent's memory into the peak of a child that it starts. The class names
and templates are CLIP_benchmark's, so prompts have the lengths and numbers that users meet; pictures are made here: a
coarse pattern for the class under noise, as JPEGs of about 300 px. Weights are open_clip's fresh ones with the matrices
doubled: as they are made, the towers give nearly one direction for everything, and every comparison is a tie.
"""

import io
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from evaluate_runs import FEW, FEW_CLASSES, MANY, RETRIEVAL, TRAINED, ZERO_SHOT
from PIL import Image
from train_pairs import drawing, vocabulary

from crawl2clip.shards import ShardWriter
from evaluate.data.prompts import known_class_names, known_templates

SHARDS = 4  # a split; at least as many as loader processes
CAPTIONS = 5  # an image, as COCO and Flickr30k have
_SIDE = 256


def main(folder: Path, settings: dict[str, Any]) -> None:
    """Writes `<folder>/data/<name>` and `<folder>/<model>.pt`."""
    data, images = folder / "data", settings["images"]
    for name in ZERO_SHOT:
        asked = settings["classes"] if name.startswith("imagenet") else None
        classes = write_prompts(data / name, "imagenet1k" if asked else name, asked)
        write_split(data / name / "test", classes, images, seed=ZERO_SHOT.index(name))
        if name in TRAINED:
            # Enough of each class: clip_benchmark gives nothing at all for k shots where a class has fewer.
            train = max(images, classes * max(settings["shots"]))
            write_split(data / name / "train", classes, train, seed=100)
            write_split(data / name / "val", classes, max(images // 2, classes), seed=200)
    for name, classes in ((FEW, FEW_CLASSES), (MANY, settings["classes"])):
        write_prompts(data / name, "imagenet1k", classes)
        write_split(data / name / "test", FEW_CLASSES, 4, seed=300)
    write_retrieval(data / RETRIEVAL, images)
    for model in {settings["classifier_model"], settings["model"]}:
        write_weights(folder / f"{model}.pt", model)


def write_prompts(folder: Path, known_as: str, num_classes: int | None) -> int:
    """CLIP_benchmark's class names and templates, of the first so many classes; returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    names = (known_class_names(known_as, "en") or [])[:num_classes]
    templates = known_templates(known_as, "en")
    assert isinstance(templates, list)
    (folder / "classnames.txt").write_text("".join(f"{name}\n" for name in names))
    (folder / "zeroshot_classification_templates.txt").write_text("".join(f"{line}\n" for line in templates))
    return len(names)


def write_split(folder: Path, num_classes: int, count: int, seed: int) -> None:
    """`count` pictures, sample i of class i modulo the number of classes."""
    rng = np.random.default_rng(seed)
    samples = [
        {"jpg": _jpeg(_picture(i % num_classes, rng)), "cls": str(i % num_classes).encode()}
        for i in range(count)
    ]
    _write(folder, samples)


def write_retrieval(folder: Path, count: int) -> None:
    """Drawings, each with captions that say what is drawn among other words."""
    rng, words = random.Random(0), vocabulary()[:5000]
    samples = []
    for _ in range(count):
        image, said = drawing(rng, _SIDE)
        captions = [" ".join(rng.sample([*said, *rng.choices(words, k=8)], 11)) for _ in range(CAPTIONS)]
        samples.append({"jpg": image, "txt": "\n".join(captions).encode()})
    _write(folder / "test", samples)
    (folder / "dataset_type.txt").write_text("retrieval\n")


def _write(folder: Path, samples: Sequence[dict[str, bytes]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(SHARDS):
        with ShardWriter(folder / f"{shard}.tar") as writer:
            for index in range(len(samples) * shard // SHARDS, len(samples) * (shard + 1) // SHARDS):
                writer.write(f"s{index:07d}", samples[index])
    (folder / "nshards.txt").write_text(f"{SHARDS}\n")


def _picture(label: int, rng: np.random.Generator) -> Image.Image:
    coarse = np.random.default_rng(1000 + label).integers(0, 256, (6, 6, 3)).astype(np.float32)
    coarse += rng.normal(0, 60, coarse.shape)
    width, height = (int(side) for side in rng.integers(_SIDE, round(1.4 * _SIDE), 2))
    image = Image.fromarray(coarse.clip(0, 255).astype(np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain = rng.normal(0, 8, (height, width, 1))
    return Image.fromarray((np.asarray(image, np.float32) + grain).clip(0, 255).astype(np.uint8))


def _jpeg(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=90)
    return data.getvalue()


def write_weights(path: Path, model: str) -> None:
    """A state dict that open_clip loads, of a model it knows."""
    import open_clip

    torch.manual_seed(0)
    made = open_clip.create_model(model)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(2)
    torch.save(made.state_dict(), path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
