"""Images in and out: pictures of stored pairs in few sizes, and uploads that are checked before they are decoded.

What goes out is always encoded anew, so nothing that a stranger put into a file reaches a browser, and a blurred
picture holds no more than the pixels it shows.
"""

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from crawl2clip.errors import DataError
from data_pipeline.explorer.library import Library
from data_pipeline.image_headers import ImageRefused, is_decoded, read_header, sniff
from data_pipeline.stored_images import IMAGE_FORMATS, decode_image

if TYPE_CHECKING:
    from PIL.Image import Image

SIZES = (128, 256, 512, 1024)
"""Longer sides of the pictures that are given, in pixels; smaller images keep their size."""

_TAR_HEADER = 512  # bytes
_BLURRED_SIDE = 8  # pixels that a blurred image is made of
_QUALITY = 82


def stored_image(library: Library, row: int) -> "Image | None":
    """The image of a row, read from its shard; None when there is none that decodes.

    Raises:
        DataError: the shard cannot be read.
    """
    run, part, place = library.run_of(row)
    uid = part.uids(np.array([place]))[0]
    place_columns = ("shard", "image_offset", "image_bytes", "image_extension")
    shard, offset, size, extension = (part.column(name)[place].as_py() for name in place_columns)
    if offset is None:
        return None
    path = run.folder / "raw" / f"{part.shards[shard]}.tar"
    try:
        with open(path, "rb") as file:
            # The tar's own header before the file names the pair: a shard that was written anew since the index was
            # built must not show another pair's image.
            file.seek(offset - _TAR_HEADER)
            header, data = file.read(_TAR_HEADER), file.read(size)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); put it back, or make the index again without it"
        ) from error
    if not header.startswith(uid.encode()):
        return None
    return decode_image(data, list(IMAGE_FORMATS)[extension])


def picture(image: "Image", size: int, *, blurred: bool) -> bytes:
    """A WebP file of an image.

    Args:
        image: RGB.
        size: one of SIZES.
        blurred: made of a few pixels.
    """
    from PIL import Image as Pillow

    shown = image.copy()
    shown.thumbnail((size, size), Pillow.Resampling.LANCZOS)
    if blurred:
        small = shown.resize((_BLURRED_SIDE, _BLURRED_SIDE), Pillow.Resampling.BOX)
        shown = small.resize(shown.size, Pillow.Resampling.BICUBIC)
    buffer = BytesIO()
    shown.save(buffer, "webp", quality=_QUALITY)
    return buffer.getvalue()


def uploaded_image(body: bytes, max_pixels: int) -> "Image":
    """An uploaded file, decoded.

    Raises:
        DataError: it is no image of a known format, too large, or damaged; the message says which.
    """
    from PIL import Image as Pillow

    from data_pipeline.image_decode import decode

    name = sniff(body)
    if name is None or not is_decoded(name):
        raise DataError(
            f"the upload is {name or 'of an unknown type'}, not an image this server decodes; send a JPEG, PNG, WebP, "
            "GIF or BMP file"
        )
    try:
        header = read_header(body, name)
        if header.width * header.height > max_pixels:
            raise DataError(
                f"the uploaded {name} has {header.width} x {header.height} pixels; this server takes "
                f"{max_pixels:,} at most: send a smaller picture"
            )
        pixels = decode(body, name, max_pixels).pixels
    except ImageRefused as error:
        raise DataError(f"the uploaded {name} does not decode ({error}); send another file") from error
    return Pillow.fromarray(pixels)
