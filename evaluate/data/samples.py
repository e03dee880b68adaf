"""One split of a data set, seen sample by sample: an image or why there is none, and its label or captions."""

import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from PIL import Image

from crawl2clip.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF")
"""What images may be. Pillow reads some 40 formats more, and runs Ghostscript for one of them."""

MAX_PIXELS = 89_478_485
"""Pixels of an image that is decoded, Pillow's own bound for a warning (a quarter of a GiB at 3 bytes a pixel)."""


@dataclass(frozen=True)
class ImageFault:
    """An image that could not be decoded. It is never dropped in silence: results count it."""

    where: str  # shard and key, or data set and index
    reason: str


@dataclass(frozen=True)
class Record:
    """One sample."""

    index: int  # position in the split, 0-based
    image: Image.Image | ImageFault
    label: int | None  # class index; None for retrieval and where a fault hides it
    captions: list[str] | None  # None for classification and where a fault hides them
    key: str = ""  # what the data set calls the sample; its position where it has no name
    targets: list[int] | None = None  # classes that apply, for multi-label sets only
    metadata: dict[str, str] = field(default_factory=dict)  # group name -> value, such as region -> "Africa"


class Split(Protocol):
    """What the encoder needs of a split; `records` always runs in index order."""

    name: str  # for messages: data set and split
    num_samples: int
    random_access: bool  # False for sources that can only be read from the start

    def record(self, index: int) -> Record:
        """The sample at a position; only when `random_access`."""
        ...

    def records(self) -> Iterator[Record]:
        """All samples in order."""
        ...

    def fingerprint(self) -> str:
        """Hash that changes when the data does; reads all of it the first time."""
        ...


def decode_image(data: bytes, where: str) -> Image.Image | ImageFault:
    """An RGB image from the bytes of a file, or the fault that Pillow found.

    An image of more than MAX_PIXELS is a fault before a pixel of it is decoded: a few kilobytes can stand for
    gigabytes.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            return ImageFault(
                where, f"{width} x {height} pixels are more than the {MAX_PIXELS:,} that are decoded"
            )
        return image.convert("RGB")
    except (
        Exception
    ) as error:  # nothing but Pillow on foreign bytes in this block, and it raises nearly anything
        reason = re.sub(r" <_io.BytesIO object at 0x[0-9a-f]+>", "", str(error))  # one fault, one text
        return ImageFault(where, f"{type(error).__name__}: {reason}")


def check_labels(labels: Sequence[int], num_classes: int, where: str) -> None:
    """Refuses labels that no class stands for.

    Raises:
        DataError: a label is negative or not below the number of classes.
    """
    if not labels:
        return
    low, high = min(labels), max(labels)
    if low < 0 or high >= num_classes:
        raise DataError(
            f"{where}: labels run from {low} to {high}, but there are {num_classes} class names; labels must be 0 to "
            f"{num_classes - 1}. Check that the class names belong to this data set and are complete"
        )


def check_classes_have_samples(
    labels: Sequence[int], num_classes: int, where: str, class_names: Sequence[str] | None = None
) -> None:
    """Refuses a split that lacks a class: class averages say nothing about it, and a probe cannot learn it.

    More class names than the labels need is also how a wrong list of names shows.

    Raises:
        DataError: a class has no sample.
    """
    counts = Counter(labels)
    empty = [index for index in range(num_classes) if not counts[index]]
    if empty:
        named = [f"{class_names[i]!r} ({i})" if class_names else str(i) for i in empty[:5]]
        raise DataError(
            f"{where}: {len(empty)} of {num_classes} classes have no sample: {', '.join(named)}"
            f"{' and more' if len(empty) > 5 else ''}. Check that the class names are this data set's and that the "
            "split is complete; where it is meant to be so, set allow_empty_classes=true: averages are over the others"
        )


def unique_keys(keys: Sequence[str], shards: Sequence[str]) -> list[str]:
    """Keys as they are, or with their shard before them when two shards use the same one.

    Bytes of a member's name that are not UTF-8 are written as escapes, so that results can be stored.

    Args:
        keys: of each sample.
        shards: name of each sample's shard.
    """
    clean = [key.encode("utf-8", "backslashreplace").decode("utf-8") for key in keys]
    if len(set(clean)) == len(clean):
        return clean
    return [f"{shard}:{key}" for shard, key in zip(shards, clean, strict=True)]
