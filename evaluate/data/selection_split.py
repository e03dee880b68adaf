"""Image-caption selection: SugarCrepe's and Winoground's own files, read as images with their captions.

SugarCrepe (Hsieh et al. 2023): <folder>/<set>.json lists examples of one image, its caption and a wrong one;
the images are COCO's in <folder>/val2017. CLIP_benchmark's `sugar_crepe/<set>` has the same files.
Winoground (Thrush et al. 2022): <folder>/data/examples.jsonl lists examples of two images and two captions; the
images are in <folder>/data/images.zip, as the hub publishes it, or unpacked in data/images.

A split counts images. Its `captions` are flat: SugarCrepe's image i has [right, wrong]; Winoground's images 2i
and 2i + 1 are an example, and each has the one caption that belongs to it. So features of images, reshaped to
[examples, images_per_example, D], and those of the captions in order, to [examples, 2, D], are what the task needs.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from crawl2clip.errors import ConfigError, DataError, unknown_name
from crawl2clip.files import read_json, sha256_of
from evaluate.data.image_files import ImageFiles
from evaluate.data.samples import Record
from evaluate.results import hash_of

SUGAR_CREPE, WINOGROUND = "sugar_crepe/", "winoground"
SUGAR_CREPE_SETS = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")


@dataclass(frozen=True)
class _Image:
    key: str
    file: str  # relative to the images' folder or archive
    captions: list[str]
    metadata: dict[str, str]


class SelectionSplit:
    """The one split, "test", of such a data set; images are read when asked for."""

    random_access = True
    labels = targets = num_targets = class_names = templates = None  # other kinds of splits have these

    def __init__(self, builder: str, folder: Path, split: str) -> None:
        """Reads the list of examples and looks for every image.

        Args:
            builder: "winoground" or "sugar_crepe/<set>".
            folder: the data set's folder.
            split: must be "test".

        Raises:
            ConfigError: no such set or split.
            DataError: the list is missing or of another form, or an image is not there.
        """
        if split != "test":
            raise ConfigError(f"{builder} has no split {split!r}; its only one is test")
        self.name, self.folder = f"{builder}/{split}", folder
        if builder == WINOGROUND:
            self.images_per_example = 2
            self._list, self._images = (
                folder / "data" / "examples.jsonl",
                _winoground(folder / "data" / "examples.jsonl"),
            )
            self._source = ImageFiles(folder / "data" / "images", folder / "data" / "images.zip")
        else:
            name = builder.removeprefix(SUGAR_CREPE)
            if name not in SUGAR_CREPE_SETS:
                raise ConfigError(unknown_name("set of SugarCrepe", name, SUGAR_CREPE_SETS))
            self.images_per_example = 1
            self._list, self._images = folder / f"{name}.json", _sugar_crepe(folder / f"{name}.json")
            self._source = ImageFiles(folder / "val2017")
        self.keys = [image.key for image in self._images]
        self.captions = [image.captions for image in self._images]
        self.metadata = [image.metadata for image in self._images]
        self.num_samples = len(self._images)
        self._source.check([image.file for image in self._images])

    def record(self, index: int) -> Record:
        """An image with its captions."""
        image = self._images[index]
        found = self._source.image(image.file, f"{self.name}, {image.file}")
        return Record(index, found, None, list(image.captions), key=image.key, metadata=dict(image.metadata))

    def records(self) -> Iterator[Record]:
        """All images in order."""
        return map(self.record, range(self.num_samples))

    def fingerprint(self) -> str:
        """SHA-256 over the list and the images' contents."""
        files = sorted({image.file for image in self._images})
        return hash_of([self.name, sha256_of(self._list), self._source.hashes(files)])


def _sugar_crepe(path: Path) -> list[_Image]:
    value = read_json(path)
    if not isinstance(value, dict) or not value:
        raise DataError(f"{path} must be a JSON object of example -> filename, caption and negative_caption")
    images = []
    for key, entry in value.items():
        file, right, wrong = _texts(
            entry, ("filename", "caption", "negative_caption"), f"{path}, example {key}"
        )
        images.append(_Image(str(key), file, [right, wrong], {}))
    return images


def _winoground(path: Path) -> list[_Image]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        examples = [json.loads(line) for line in lines if line.strip()]
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing; Winoground is facebook/winoground on the hub, behind a form: accept it there, then hf "
            f"download facebook/winoground --repo-type dataset --local-dir {path.parent.parent}"
        ) from error
    except ValueError as error:
        raise DataError(
            f"{path} is not a list of JSON objects in UTF-8, one a line ({error}); fetch it again"
        ) from error
    if not examples:
        raise DataError(f"{path} holds no example; fetch it again")
    images = []
    for number, example in enumerate(examples):
        fields = ("image_0", "image_1", "caption_0", "caption_1")
        *files, first, second = _texts(example, fields, f"{path}, line {number + 1}")
        metadata = {"tag": str(example.get("collapsed_tag", ""))}
        for side, (file, caption) in enumerate(zip(files, (first, second), strict=True)):
            name = (
                file if PurePosixPath(file).suffix else f"{file}.png"
            )  # the list has names without the suffix
            images.append(_Image(f"{example.get('id', number)}/{side}", name, [caption], metadata))
    return images


def _texts(entry: Any, fields: tuple[str, ...], where: str) -> list[str]:
    found = [entry.get(name) for name in fields] if isinstance(entry, dict) else []
    texts = [text for text in found if isinstance(text, str) and text.strip()]
    if len(texts) != len(fields):
        raise DataError(f"{where}: {', '.join(fields)} must all be texts; fetch the list again")
    return texts
