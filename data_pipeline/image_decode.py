"""Decodes the first frame of an image to upright 8-bit RGB: JPEG by libjpeg-turbo, the rest by Pillow.

Transparency is laid over white, 16 bits are scaled to 8, CMYK and palettes are converted, EXIF orientation is
applied. Colour profiles are not: pixels are what an ordinary loader sees.
"""

import re
from io import BytesIO

import numpy as np
import simplejpeg
from PIL import Image

from crawl2clip.schema import DownloadStatus
from data_pipeline.image_headers import ImageRefused

_ORIENTATION_TAG = 0x0112


def decode(body: bytes, name: str, max_pixels: int, min_side: int | None = None) -> tuple[np.ndarray, bool]:
    """The first frame, upright.

    Args:
        body: a file whose header has been checked.
        name: its type, one of `image_headers.FORMATS`.
        max_pixels: asked again of the decoder, in case it reads the header differently.
        min_side: a JPEG may come at the smallest DCT scale (of 1/8, 1/4, 1/2) at which both sides have this many pixels
            or more; None decodes in full.

    Returns:
        [H, W, 3] uint8 RGB, and whether these pixels are what any decoder makes of the file: 8 bits, no
        transparency, no CMYK, no orientation to apply.
    """
    # Decoders answer hostile bytes with almost any exception (struct.error, IndexError, SyntaxError,
    # OverflowError, MemoryError ...), so all are taken as "undecodable", for these calls alone.
    try:
        if name == "jpeg":
            pixels, orientation, as_stored = _decode_jpeg(body, max_pixels, min_side)
        else:
            pixels, orientation, as_stored = _decode_by_pillow(body, name, max_pixels)
    except ImageRefused:
        raise
    except Exception as error:
        raise ImageRefused(DownloadStatus.undecodable, f"{name}: {_one_line(error)}") from error
    return _upright(pixels, orientation), as_stored and orientation == 1


def _one_line(error: Exception) -> str:
    """What a decoder said, without the addresses in memory that differ from run to run."""
    lines = re.sub(r" ?<[^>]*>", "", str(error)).splitlines()
    return lines[0][:100] if lines else type(error).__name__


def _decode_jpeg(body: bytes, max_pixels: int, min_side: int | None) -> tuple[np.ndarray, int, bool]:
    height, width, colorspace = simplejpeg.decode_jpeg_header(body, strict=False)[:3]
    scale = {} if min_side is None else _smallest_scale(height, width, min_side)
    if colorspace in ("YCbCr", "Gray", "RGB"):
        try:
            pixels = simplejpeg.decode_jpeg(body, colorspace="RGB", strict=True, **scale)
        except ValueError:  # a warning, often harmless; Pillow tells a cut-off file from stray bytes
            pass
        else:
            return pixels, _jpeg_orientation(body), True
    pixels, orientation, _ = _decode_by_pillow(body, "jpeg", max_pixels)
    return pixels, orientation, False


def _smallest_scale(height: int, width: int, min_side: int) -> dict[str, int]:
    """The decoder's settings for the smallest of its fast scales that leaves `min_side` pixels on both sides."""
    for factor in (8, 4, 2):
        if min(height, width) // factor >= min_side:
            return {"min_height": -(-height // factor), "min_width": -(-width // factor)}
    return {}


def _jpeg_orientation(body: bytes) -> int:
    if b"Exif\0\0" not in body[: 1 << 17]:  # saves opening the file a second time
        return 1
    try:
        with Image.open(BytesIO(body), formats=("JPEG",)) as image:
            return _orientation(image)
    except Exception:  # as above: hostile bytes, but the pixels are there
        return 1


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 when there is none or the EXIF block is damaged."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # as above
        return 1
    return value if value in range(1, 9) else 1


def _decode_by_pillow(body: bytes, name: str, max_pixels: int) -> tuple[np.ndarray, int, bool]:
    with Image.open(BytesIO(body), formats=(name.upper(),)) as image:
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
