"""Decodes the first frame of an image to upright 8-bit RGB: JPEG by libjpeg-turbo, HEIC by libheif, the rest by Pillow.

Transparency is laid over white, 16 bits are scaled to 8, CMYK and palettes are converted, EXIF orientation is
applied. Colour profiles are not: pixels are what an ordinary loader sees.
"""

import re
from io import BytesIO
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from crawl2clip.download_status import DownloadStatus
from data_pipeline.image_headers import ImageRefused

_ORIENTATION_TAG = 0x0112


class Decoded(NamedTuple):
    """A decoded image.

    Attributes:
        pixels: [H, W, 3] uint8 RGB.
        as_stored: these pixels are what any decoder makes of the file: 8 bits, no transparency, no CMYK, no
            orientation to apply.
        sideways: width and height are exchanged against the file's.
    """

    pixels: np.ndarray
    as_stored: bool
    sideways: bool


def decode(body: bytes, name: str, max_pixels: int, at_least: tuple[int, int] | None = None) -> Decoded:
    """The first frame, upright.

    Args:
        body: a file whose header has been checked.
        name: its type, one of `image_headers.FORMATS`.
        max_pixels: asked again of the decoder, in case it reads the header differently.
        at_least: (width, height) in pixels, not upright: a JPEG may be decoded at a DCT scale, a fraction n/8 of its
            size, that is no smaller than this; None for its own size.

    Raises:
        ImageRefused: it cannot be decoded, or is larger than its header said.
    """
    # Decoders answer hostile bytes with almost any exception (struct.error, IndexError, SyntaxError,
    # OverflowError, MemoryError ...), so all are taken as "undecodable", for these calls alone.
    try:
        if name == "jpeg":
            pixels, orientation, as_stored = _decode_jpeg(body, max_pixels, at_least or (0, 0))
        else:
            pixels, orientation, as_stored = _decode_by_pillow(body, name, max_pixels)
    except ImageRefused:
        raise
    except Exception as error:
        raise ImageRefused(DownloadStatus.undecodable, f"{name}: {_one_line(error)}") from error
    return Decoded(_upright(pixels, orientation), as_stored and orientation == 1, orientation >= 5)


def _one_line(error: Exception) -> str:
    """What a decoder said, without the addresses in memory that differ from run to run."""
    lines = re.sub(r" ?<[^>]*>", "", str(error)).splitlines()
    return lines[0][:100] if lines else type(error).__name__


def _decode_jpeg(body: bytes, max_pixels: int, at_least: tuple[int, int]) -> tuple[np.ndarray, int, bool]:
    colorspace = simplejpeg.decode_jpeg_header(body, strict=False)[2]
    if colorspace in ("YCbCr", "Gray", "RGB"):
        try:
            pixels = simplejpeg.decode_jpeg(
                body,
                colorspace="RGB",
                min_width=at_least[0],
                min_height=at_least[1],
                min_factor=1,
                strict=True,
            )
        except ValueError:  # a warning, often harmless; Pillow tells a cut-off file from stray bytes
            pass
        else:
            return pixels, _jpeg_orientation(body), True
    pixels, orientation, _ = _decode_by_pillow(body, "jpeg", max_pixels)
    return pixels, orientation, False


def fast_dct_size(body: bytes, min_side: int) -> tuple[int, int] | None:
    """`at_least` for a JPEG at 1/8, 1/4 or 1/2 of its size, the scales that libjpeg-turbo has fast code for.

    Returns:
        (width, height) at the smallest of them that leaves `min_side` pixels on both sides; None for its own size, or
        when the header cannot be read, which `decode` then tells.
    """
    try:
        height, width = (int(side) for side in simplejpeg.decode_jpeg_header(body, strict=False)[:2])
    except ValueError:
        return None
    for factor in (8, 4, 2):
        if min(height, width) // factor >= min_side:
            return -(-width // factor), -(-height // factor)
    return None


def fast_dct_scale(size: tuple[int, int], at_least: tuple[int, int]) -> tuple[int, int] | None:
    """The smallest of those scales at which a JPEG is no smaller than the result.

    Args:
        size: (width, height) in pixels, not upright.
        at_least: the same, of the result.

    Returns:
        (width, height) for `decode`; None for its own size.
    """
    for factor in (8, 4, 2):
        width, height = (-(-side // factor) for side in size)
        if width >= at_least[0] and height >= at_least[1]:
            return width, height
    return None


def _jpeg_orientation(body: bytes) -> int:
    if not _has_exif(body):  # saves opening the file a second time
        return 1
    try:
        with Image.open(BytesIO(body), formats=("JPEG",)) as image:
            return _orientation(image)
    except Exception:  # as above: hostile bytes, but the pixels are there
        return 1


def _has_exif(body: bytes) -> bool:
    """Whether one of the segments before the first scan holds EXIF data."""
    position = 2
    while position + 10 <= len(body) and body[position] == 0xFF and body[position + 1] != 0xDA:
        if body[position + 1] == 0xE1 and body[position + 4 : position + 10] == b"Exif\0\0":
            return True
        position += 2 + int.from_bytes(body[position + 2 : position + 4], "big")
    return False


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 when there is none or the EXIF block is damaged."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # as above
        return 1
    return value if value in range(1, 9) else 1


def _open(body: bytes, name: str) -> Image.Image:
    if name == "heic":
        from data_pipeline.image_heic import open_heic

        return open_heic(body).to_pillow()
    return Image.open(BytesIO(body), formats=(name.upper(),))


def _decode_by_pillow(body: bytes, name: str, max_pixels: int) -> tuple[np.ndarray, int, bool]:
    with _open(body, name) as image:
        if image.width * image.height > max_pixels:
            raise ImageRefused(DownloadStatus.too_many_pixels, f"{image.width} x {image.height} pixels")
        orientation = _orientation(image)
        image.load()
        sixteen_bit = image.mode.startswith("I") or (name == "png" and body[24] == 16)
        transparent = "A" in image.mode.upper() or "transparency" in image.info
        as_stored = image.mode in ("RGB", "L", "P", "1") and not sixteen_bit and not transparent
        return _to_rgb(image, transparent), orientation, as_stored


def _to_rgb(image: Image.Image, transparent: bool) -> np.ndarray:
    """[H, W, 3] uint8 of any mode that our formats decode to; what is transparent becomes white."""
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it at 255
        grey = (np.asarray(image).astype(np.int64).clip(0, 65_535) + 128) // 257
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if transparent:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels after the EXIF orientation, 1 to 8, has been applied."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
