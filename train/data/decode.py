"""Untrusted image bytes to the uint8 square that a batch holds, or the reason why not.

The image's size is read from its header before any pixel is decoded. The square is either the centre (shortest
side to size, what evaluation sees) or a random resized crop of the whole image, as torchvision's RandomResizedCrop
takes it for open_clip. Cropping and resizing are one call on uint8 pixels: no float image ever exists here.

Measured on one core, photographs of about 400 pixels a side to 224: PIL and torchvision's transforms take 6.6 ms,
of which PIL's bicubic resize is half; libjpeg-turbo without PIL and torch's uint8 antialiased bicubic take 2.3 ms,
at the same pixels (65 dB or more).
"""

import io
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from omegaconf import MISSING
from PIL import ExifTags, Image, ImageOps

from crawl2clip.errors import ConfigError

BAD_SAMPLE_REASONS = (
    "unreadable", "undecodable", "too_many_pixels", "missing_caption", "bad_caption", "empty_caption",
)  # fmt: skip

_FORMATS = ("JPEG", "PNG", "WEBP")
"""PIL knows dozens of formats, some with a history of memory faults; a web image set holds these."""

_MARGIN = 1.5
"""A crop decoded at a smaller DCT scale keeps at least this multiple of the output's side. For photographs of 889 px
to 224: in full 5.3 ms; at 1.5 4.3 ms and 0.6 grey levels off on average; at 1 3.6 ms and 1.9 levels."""

_ATTEMPTS = 10  # torchvision's: crops tried before the largest possible one is taken


class BadSample(Exception):
    """A sample that cannot be used; `reason` is one of BAD_SAMPLE_REASONS."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(kw_only=True)
class RandomCropConfig:
    """A random resized crop of the whole image."""

    min_area: float = MISSING  # smallest part of the image's area that is kept, above 0 to 1
    max_ratio: float = MISSING  # width over height is log-uniform in [1/this, this], from 1

    def __post_init__(self) -> None:
        if self.min_area != MISSING and not 0 < self.min_area <= 1:
            raise ConfigError(
                f"data.random_crop.min_area is {self.min_area}; give a fraction above 0 up to 1"
            )
        if self.max_ratio != MISSING and not 1 <= self.max_ratio <= 10:
            raise ConfigError(f"data.random_crop.max_ratio is {self.max_ratio}; give 1 to 10")


@dataclass(frozen=True)
class Box:
    """A part of an image in whole pixels."""

    left: int
    top: int
    width: int
    height: int


ChooseBox = Callable[[int, int], Box]


def centre_square(width: int, height: int) -> Box:
    """The largest square in the middle."""
    side = min(width, height)
    return Box(round((width - side) / 2), round((height - side) / 2), side, side)


NUM_UNIFORMS = 2 * _ATTEMPTS + 2
"""Random numbers that `random_box` takes."""


def random_box(width: int, height: int, crop: RandomCropConfig, u: np.ndarray) -> Box:
    """A random crop: torchvision's RandomResizedCrop.get_params, with other random numbers.

    Up to ten times an area uniform in [min_area, 1] and a log-uniform ratio are drawn until the box fits; then the
    largest centred box with a ratio in range is taken.

    Args:
        u: float64 [NUM_UNIFORMS], uniform in [0, 1).
    """
    log_ratio = math.log(crop.max_ratio)
    for attempt in range(_ATTEMPTS):
        area = width * height * (crop.min_area + (1 - crop.min_area) * u[2 * attempt])
        ratio = math.exp((2 * u[2 * attempt + 1] - 1) * log_ratio)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(u[-2] * (width - w + 1)), int(u[-1] * (height - h + 1)), w, h)
    w, h = width, height
    if width > height * crop.max_ratio:
        w = round(height * crop.max_ratio)
    elif height > width * crop.max_ratio:
        h = round(width * crop.max_ratio)
    return Box((width - w) // 2, (height - h) // 2, w, h)


def decode_image(
    data: bytes, size: int, max_pixels: int, choose_box: ChooseBox = centre_square
) -> torch.Tensor:
    """RGB pixels, uint8 [3, size, size]: upright by EXIF, on white where transparent, cropped, resized.

    Args:
        data: a JPEG, PNG or WebP file.
        size: side of the square, pixels.
        max_pixels: images of more are refused.
        choose_box: the part to take of an image of a width and a height.

    Raises:
        BadSample: undecodable (not an image, cut off) or too_many_pixels, the latter from the header alone.
    """
    try:
        with warnings.catch_warnings():
            # PIL warns of odd EXIF and palettes, once for every odd image of the web.
            warnings.simplefilter("ignore")
            found = _jpeg_square(data, size, max_pixels, choose_box) if data[:2] == b"\xff\xd8" else None
            if found is not None:
                return found
            pixels = _decode_with_pil(data, max_pixels)
            return resized(pixels, choose_box(pixels.shape[1], pixels.shape[0]), size)
    except BadSample:
        raise
    except Image.DecompressionBombError as error:
        raise BadSample("too_many_pixels", str(error)) from error
    except Exception as error:  # decoders raise nearly every kind on bytes made to break them
        raise BadSample("undecodable", f"{type(error).__name__}: {error}") from error


def resized(pixels: np.ndarray, box: Box, size: int) -> torch.Tensor:
    """A part of an image at another size, bicubic and antialiased.

    Args:
        pixels: uint8 [H, W, 3].
        box: the part.
        size: side of the result.

    Returns:
        uint8 [3, size, size]; its layout in memory is not told.
    """
    part = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    # A view with the channels last is what torch's vectorised uint8 kernel wants: 40% faster than [3, H, W].
    images = torch.from_numpy(part).permute(2, 0, 1).unsqueeze(0)
    if part.shape[:2] != (size, size):
        images = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True)
    return images[0]


def _jpeg_square(data: bytes, size: int, max_pixels: int, choose_box: ChooseBox) -> torch.Tensor | None:
    """The square as `decode_image` returns it; None where only PIL knows what to do.

    A picture on its side is cropped and made small as it lies, and only the square is set upright.
    """
    try:
        header: Any = simplejpeg.decode_jpeg_header(data, strict=False)  # its types are given too widely
    except ValueError:
        return None
    height, width, colours = header[:3]
    _check_pixels(width, height, max_pixels)
    if colours in ("CMYK", "YCCK"):
        return None
    turned = _TURNS.get(_orientation(data), _UPRIGHT)
    box = turned.stored(choose_box(*turned.upright(width, height)), width, height)
    pixels = _decode_jpeg(data, width, height, box, _MARGIN * size)
    if pixels is None:
        return None
    scaled = _scaled(box, pixels.shape[1] / width, pixels.shape[0] / height)
    return turned.set_upright(resized(pixels, scaled, size))


def _decode_jpeg(data: bytes, width: int, height: int, box: Box, needed: float) -> np.ndarray | None:
    """Pixels uint8 [H, W, 3] of the whole image, at half, a quarter or an eighth of the size where `box` then still
    has `needed` pixels a side: the inverse DCT does part of the resizing. None where the file is odd.
    """
    try:
        return simplejpeg.decode_jpeg(
            data,
            "RGB",
            min_height=math.ceil(height * needed / box.height),
            min_width=math.ceil(width * needed / box.width),
            min_factor=2,  # libjpeg-turbo has fast paths for 1/2, 1/4 and 1/8; between them it is slower than in full
        )
    except ValueError:  # also for oddities that are harmless and common; PIL knows them from cut-off files
        return None


@dataclass(frozen=True)
class _Turn:
    """How a stored picture becomes upright: mirrored at its main diagonal, then left to right, then top to bottom."""

    transposed: bool = False
    mirrored: bool = False
    upside_down: bool = False

    def upright(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the upright picture."""
        return (height, width) if self.transposed else (width, height)

    def stored(self, box: Box, width: int, height: int) -> Box:
        """Where a part of the upright picture lies in the stored one, which has this width and height."""
        width, height = self.upright(width, height)
        left = width - box.left - box.width if self.mirrored else box.left
        top = height - box.top - box.height if self.upside_down else box.top
        if self.transposed:
            return Box(top, left, box.height, box.width)
        return Box(left, top, box.width, box.height)

    def set_upright(self, square: torch.Tensor) -> torch.Tensor:
        """A part as it is stored, uint8 [3, S, S], turned."""
        square = square.transpose(1, 2) if self.transposed else square
        flipped = [dim for dim, flips in ((2, self.mirrored), (1, self.upside_down)) if flips]
        return square.flip(flipped) if flipped else square


_UPRIGHT = _Turn()
_TURNS = {
    2: _Turn(mirrored=True),
    3: _Turn(mirrored=True, upside_down=True),
    4: _Turn(upside_down=True),
    5: _Turn(transposed=True),
    6: _Turn(transposed=True, mirrored=True),
    7: _Turn(transposed=True, mirrored=True, upside_down=True),
    8: _Turn(transposed=True, upside_down=True),
}
"""By the value of EXIF's orientation tag; 1 and values that mean nothing are upright."""


def _orientation(data: bytes) -> int:
    """The orientation tag of a JPEG, read as PIL reads it (0.08 ms), but only where there is EXIF at all."""
    if b"Exif\0\0" not in data[:65536]:
        return 1
    return Image.open(io.BytesIO(data), formats=("JPEG",)).getexif().get(ExifTags.Base.Orientation, 1)


def _scaled(box: Box, x: float, y: float) -> Box:
    if x == y == 1:
        return box
    left, top = round(box.left * x), round(box.top * y)
    # Rounded edges, not a rounded size: neighbouring crops stay neighbours.
    return Box(left, top, round((box.left + box.width) * x) - left, round((box.top + box.height) * y) - top)


def _decode_with_pil(data: bytes, max_pixels: int) -> np.ndarray:
    image = Image.open(io.BytesIO(data), formats=_FORMATS)
    _check_pixels(*image.size, max_pixels)
    return np.array(_on_white(ImageOps.exif_transpose(image)))


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise BadSample("too_many_pixels", f"{width} x {height}, allowed are {max_pixels} pixels")


def _on_white(image: Image.Image) -> Image.Image:
    image = _eight_bit(image) if image.mode.startswith("I") else image
    if image.mode not in ("RGBA", "LA", "PA", "La", "RGBa") and "transparency" not in image.info:
        return image.convert("RGB")
    image = image.convert("RGBA")
    canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(canvas, image).convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """A grey image of 16 bits by its upper eight, as PIL reads colours of 16 bits; its own conversion cuts off at 255,
    which is white nearly everywhere.
    """
    values = np.asarray(image)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    if "transparency" in image.info:
        grey.putalpha(
            Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8))
        )
    return grey
