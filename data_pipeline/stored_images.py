"""Images as a raw shard stores them, decoded for tagging and for the report."""

from collections.abc import Container
from typing import TYPE_CHECKING

from data_pipeline.image_decode import decode
from data_pipeline.image_headers import ImageRefused

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_FORMATS = {"jpg": "jpeg", "png": "png", "webp": "webp"}
"""Extensions that a raw shard's images have, and the format each stands for."""

MAX_PIXELS = 178_956_970  # where Pillow refuses too; the download stage has its own, lower limit


def image_extension(fields: Container[str]) -> str | None:
    """Which of a sample's fields is its image; None when none is."""
    return next((name for name in IMAGE_FORMATS if name in fields), None)


def decode_image(data: bytes, extension: str, min_side: int | None = None) -> "Image | None":
    """A stored image in RGB, transparent parts on white; None when it does not decode.

    Args:
        data: the file.
        extension: one of IMAGE_FORMATS.
        min_side: a JPEG may come at a DCT scale that keeps both sides at this many pixels or more; None: in full.
    """
    from PIL import Image

    try:
        pixels, _ = decode(data, IMAGE_FORMATS[extension], MAX_PIXELS, min_side)
    except ImageRefused:
        return None
    return Image.fromarray(pixels)
