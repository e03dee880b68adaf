"""From the bytes of a download to the image that is stored: checked, decoded, turned upright, resized, encoded.

The order is what keeps it safe: magic bytes, then the header's size and frame count, then one decode. Pixels
are 8-bit RGB from there on, and no metadata (GPS among it) is written. Runs in worker threads; every decoder
used lets go of the interpreter.

The surprising part: an image that already is as wanted is not encoded again. Its own coded data is stored,
without the metadata.
"""

import hashlib
from collections.abc import Sequence
from io import BytesIO

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from crawl2clip.download_status import DownloadStatus
from data_pipeline.area_resize import shrink_grey
from data_pipeline.face_blur import blur_boxes
from data_pipeline.image_config import Decoding, ImageConfig, StoredFormat
from data_pipeline.image_decode import decode, fast_dct_scale
from data_pipeline.image_headers import Header, ImageRefused, is_decoded, read_header, sniff
from data_pipeline.image_metadata import CannotStrip, strip_metadata
from data_pipeline.image_resize import fitted_size, resize
from data_pipeline.processed import Processed

_LONGEST_SIDE = {"jpg": 65_500, "png": 2**31 - 1, "webp": 16_383}  # pixels that the format can hold
_HASHED_SIDE = 256  # pixels
_KEPT_FORMAT = {"jpeg": "jpg", "png": "png", "webp": "webp", "gif": "png", "bmp": "png"} | dict.fromkeys(
    ("avif", "heic"), "jpg"
)


def process_image(
    body: bytes, config: ImageConfig, *, min_bytes: int, blurred: Sequence[Sequence[float]] = ()
) -> Processed:
    """Checks, decodes, resizes and encodes one downloaded file. Never raises for what the file holds.

    Args:
        body: the file, not empty.
        config: what is accepted and stored.
        min_bytes: smaller files are `too_small_bytes`; 0 for no limit.
        blurred: boxes to blur, see `face_blur.blur_boxes`.
    """
    md5 = hashlib.md5(body, usedforsecurity=False).hexdigest()
    sha256 = hashlib.sha256(body).hexdigest()
    name = sniff(body)
    width = height = None
    try:
        if len(body) < min_bytes:
            raise ImageRefused(
                DownloadStatus.too_small_bytes, f"{len(body)} bytes, at least {min_bytes} are wanted"
            )
        if name is None or not is_decoded(name):
            raise ImageRefused(DownloadStatus.unsupported_type, name or "not an image by its first bytes")
        header = read_header(body, name)
        width, height = header.width, header.height
        _check_header(header, config)
        scaled = config.decoding == Decoding.scaled and name == "jpeg"
        at_least = fast_dct_scale((width, height), fitted_size(width, height, config)) if scaled else None
        pixels, as_stored, sideways = decode(body, name, config.max_pixels, at_least)
        if not scaled:
            height, width = pixels.shape[:2]
        elif sideways:
            width, height = height, width
        pixels = blur_boxes(pixels, blurred)
        resized = resize(pixels, config, (width, height))
        extension = _KEPT_FORMAT[name] if config.format == StoredFormat.keep else config.format.value
        unchanged = as_stored and resized is pixels and header.frames == 1 and not blurred
        data = _without_metadata(body, name, extension) if unchanged else None
        if data is None:
            data = encode(resized, extension, config.quality)
    except ImageRefused as refused:
        return Processed(
            refused.status,
            md5,
            sha256,
            error=str(refused),
            format=name,
            original_width=width,
            original_height=height,
        )
    return Processed(
        DownloadStatus.success,
        md5,
        sha256,
        format=name,
        original_width=width,
        original_height=height,
        width=resized.shape[1],
        height=resized.shape[0],
        extension=extension,
        data=data,
        phash=perceptual_hash(pixels),
    )


def _check_header(header: Header, config: ImageConfig) -> None:
    """Raises ImageRefused for an image that is not worth decoding."""
    size = f"{header.width} x {header.height} pixels"
    shorter, longer = sorted((header.width, header.height))
    if header.width * header.height > config.max_pixels:
        raise ImageRefused(DownloadStatus.too_many_pixels, size)
    if header.frames > config.max_frames:
        raise ImageRefused(DownloadStatus.too_many_frames, f"{header.frames} frames")
    if shorter < config.min_size:
        raise ImageRefused(DownloadStatus.too_small, size)
    if config.max_aspect_ratio is not None and longer > config.max_aspect_ratio * shorter:
        raise ImageRefused(DownloadStatus.bad_aspect_ratio, size)


def encode(pixels: np.ndarray, extension: str, quality: int) -> bytes:
    """The image as a file, without metadata; the same pixels give the same bytes.

    Args:
        pixels: [H, W, 3] uint8 RGB.
        extension: jpg (4:2:0), png or webp.
        quality: 1 to 100, of jpg and webp.
    """
    height, width = pixels.shape[:2]
    if max(width, height) > _LONGEST_SIDE[extension]:
        raise ImageRefused(
            DownloadStatus.too_many_pixels, f"{width} x {height} pixels, more than {extension} can hold"
        )
    if extension == "jpg":
        return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "420")
    file = BytesIO()
    image = Image.fromarray(pixels)
    if extension == "png":
        image.save(file, "PNG")
    else:
        image.save(file, "WEBP", quality=quality)
    return file.getvalue()


def _without_metadata(body: bytes, name: str, extension: str) -> bytes | None:
    """The original's own coded data, when the wanted format is the original's; None to encode the pixels."""
    if name not in ("jpeg", "png", "webp") or _KEPT_FORMAT[name] != extension:
        return None
    try:
        return strip_metadata(body, name)
    except CannotStrip:
        return None


def perceptual_hash(pixels: np.ndarray) -> str:
    """64-bit pHash: images that look alike differ in few bits.

    Every n-th pixel is taken, so that the shorter side keeps 256 or a little more (averaging all of a large photograph
    costs as much as decoding it, and changes a bit in 4 of them). That is made grey, averaged to 32 x 32, and
    cosine-transformed; each of the 8 x 8 lowest frequencies
    gives a bit: above the median of the 64 or not. Bits go row by row, the highest first.

    Args:
        pixels: [H, W, 3] uint8 RGB, the original upright.

    Returns:
        16 hex digits.
    """
    step = max(1, min(pixels.shape[:2]) // _HASHED_SIDE)
    grey = cv2.cvtColor(np.ascontiguousarray(pixels[::step, ::step]), cv2.COLOR_RGB2GRAY)
    small = shrink_grey(grey, 32, 32).astype(np.float32)
    low = cv2.dct(small)[:8, :8]
    return np.packbits(low > np.median(low)).tobytes().hex()
