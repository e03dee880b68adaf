"""The settings of images: which are accepted, and how they are stored."""

from dataclasses import dataclass
from enum import Enum

from crawl2clip.missing import MISSING
from data_pipeline.fetch_config import check_number

PIXEL_LIMIT = 89_478_484  # what LAION used: Pillow refuses more


class ResizeMode(Enum):
    """What `size` is; the names are img2dataset's."""

    no = "no"  # stored at its own size; in YAML write "no" with quotes, since a bare no means false
    keep_ratio = "keep_ratio"  # the shorter side
    keep_ratio_largest = "keep_ratio_largest"  # the longer side
    center_crop = "center_crop"  # both sides; the shorter one is fitted, the rest is cut off
    border = "border"  # both sides; the longer one is fitted, white is added


class Decoding(Enum):
    """How JPEGs are decoded. `scaled`: at 1/8, 1/4 or 1/2 of their size, as small as the result allows.

    It is faster, the more so the larger the original, and changes pixels a little: see docs/download.md.
    """

    exact = "exact"
    scaled = "scaled"


class StoredFormat(Enum):
    """How images are stored. `keep`: as they came; GIF and BMP become PNG, AVIF and HEIC become JPEG."""

    keep = "keep"
    jpg = "jpg"
    png = "png"
    webp = "webp"


class Upscaling(Enum):
    """How images are enlarged; they are always shrunk by area averaging."""

    lanczos = "lanczos"
    cubic = "cubic"


@dataclass(kw_only=True, slots=True)
class ImageConfig:
    """What images are accepted and how they are stored."""

    resize_mode: ResizeMode = MISSING
    size: int = MISSING  # pixels; see resize_mode. Not used by `no`
    only_if_bigger: bool = MISSING  # never enlarge; the result may then be smaller than `size`
    upscaling: Upscaling = MISSING
    decoding: Decoding = MISSING
    format: StoredFormat = MISSING
    quality: int = MISSING  # of JPEG and WebP, 1 to 100
    min_size: int = MISSING  # pixels; images with a shorter side below this are dropped. 0: no limit
    max_aspect_ratio: float | None = MISSING  # longer over shorter side, 1 or more; null: no limit
    max_pixels: int = MISSING  # of the original and of the result; larger ones are dropped undecoded
    max_frames: int = MISSING  # animations with more are dropped; of the others the first frame is taken

    def __post_init__(self) -> None:
        check_number("download.images.size", self.size, 1, 16_383)
        check_number("download.images.quality", self.quality, 1, 100)
        check_number("download.images.min_size", self.min_size, 0)
        check_number("download.images.max_aspect_ratio", self.max_aspect_ratio, 1)
        check_number("download.images.max_pixels", self.max_pixels, 1, PIXEL_LIMIT)
        check_number("download.images.max_frames", self.max_frames, 1)
