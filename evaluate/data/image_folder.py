"""Splits kept as a folder of images for each class, as torchvision's ImageFolder reads them.

    <folder>/<split>/<class>/<image>   class folders in sorted order are labels 0, 1, 2 ...

The names of the folders are codes as often as they are names (ImageNet's n01440764), and a wrong list of
names in the right number scores near chance without an error. So folder names become class names only when
the config says so; otherwise names come from a file.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from crawl2clip.errors import DataError
from crawl2clip.files import sha256_of
from evaluate.data.manifest import check_content, check_samples
from evaluate.data.samples import ImageFault, Record, decode_image
from evaluate.results import hash_of

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")


class ImageFolderSplit:
    """One split of such a folder; files are listed when it is opened, images read when asked for."""

    random_access = True
    targets = captions = num_targets = templates = None  # other kinds of splits have these

    def __init__(self, folder: Path, split: str) -> None:
        """Lists the images.

        Args:
            folder: the data set's folder.
            split: sub-folder name.

        Raises:
            DataError: no such folder, no class folders, a class folder without images, or a file that is no image.
        """
        self.name = f"{folder.name}/{split}"
        self.folder = folder / split
        if not self.folder.is_dir():
            raise DataError(
                f"{self.folder} does not exist; expected {self.folder}/<class>/<image>. Set data_root or the data "
                "set's path, or correct the name of the split"
            )
        self.class_folders = sorted(entry.name for entry in os.scandir(self.folder) if entry.is_dir())
        if not self.class_folders:
            raise DataError(f"{self.folder} holds no class folders; expected {self.folder}/<class>/<image>")
        self.class_names: list[str] | None = None
        self.keys: list[str] = []
        self.labels: list[int] = []
        self.metadata: list[dict[str, str]] = []
        for label, name in enumerate(self.class_folders):
            found = sorted(_images(self.folder / name))
            self.keys += [f"{name}/{file}" for file in found]
            self.labels += [label] * len(found)
        self.num_samples = len(self.keys)
        self._content: str | None = None
        check_samples(self.folder, self.num_samples)

    def record(self, index: int) -> Record:
        """The sample at a position, its image decoded to RGB."""
        path = self.folder / self.keys[index]
        try:
            image = decode_image(path.read_bytes(), str(path))
        except OSError as error:  # listed a moment ago, and not to be read now
            image = ImageFault(str(path), f"{type(error).__name__}: {error.strerror}")
        return Record(index, image, self.labels[index], None, key=self.keys[index])

    def records(self) -> Iterator[Record]:
        """All samples in order."""
        return map(self.record, range(self.num_samples))

    @property
    def files(self) -> dict[str, int]:
        """Nothing: a manifest does not list single images, its checksum covers their names and contents."""
        return {}

    def content_sha256(self) -> str:
        """SHA-256 over the images' names and contents; reads all of them the first time."""
        if self._content is None:
            digest = hashlib.sha256()
            for key in self.keys:
                digest.update(f"{key}\n{sha256_of(self.folder / key)}\n".encode("utf-8", "surrogateescape"))
            self._content = digest.hexdigest()
        return self._content

    def fingerprint(self) -> str:
        """Over the content; also of the class folders, since their order makes the labels.

        Raises:
            DataError: the content is not what a manifest says.
        """
        check_content(self.folder, self.content_sha256())
        return hash_of([self.content_sha256(), self.class_folders])


def has_class_folders(folder: Path) -> bool:
    """Whether a split's folder looks like one of these."""
    if not folder.is_dir():
        return False
    first = next((entry for entry in sorted(folder.iterdir()) if entry.is_dir()), None)
    return first is not None and any(file.suffix.lower() in IMAGE_SUFFIXES for file in first.iterdir())


def _images(folder: Path) -> Iterator[str]:
    """Names of the images in a class folder and below it, relative to it."""
    found = False
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for file in files:
            if file.startswith("."):
                continue  # .DS_Store and the like
            path = Path(parent, file)
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                raise DataError(
                    f"{path} is not an image ({', '.join(IMAGE_SUFFIXES)}); class folders hold images alone: "
                    "move it out"
                )
            found = True
            yield path.relative_to(folder).as_posix()
    if not found:
        raise DataError(
            f"class folder {folder} holds no image; put its images there, or remove the folder, which renumbers the "
            "classes after it"
        )
