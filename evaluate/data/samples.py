"""One split of a data set, seen sample by sample: an image or why there is none, and its label or captions."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from PIL import Image

from crawl2clip.errors import DataError


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
    """An RGB image from the bytes of a file, or the fault that Pillow found."""
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except (
        Exception
    ) as error:  # nothing but Pillow on foreign bytes in this block, and it raises nearly anything
        return ImageFault(where, f"{type(error).__name__}: {error}")


def check_labels(labels: list[int], num_classes: int, where: str) -> None:
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
