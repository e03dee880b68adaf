"""What a file is, how large and how many frames, told from its first bytes and its chunk headers alone.

Nothing here decodes a pixel or believes a Content-Type, so a 30000 x 30000 PNG of two megabytes or a GIF of ten
thousand frames is refused before any memory is spent on it.

The surprising part: Pillow is asked for AVIF only, since merely opening a WebP with it allocates the canvas.
"""

import struct
from dataclasses import dataclass
from io import BytesIO

import simplejpeg
from PIL import Image, features

from crawl2clip.download_status import DownloadStatus
from data_pipeline.image_heic import heic_is_installed, open_heic

FORMATS = ("jpeg", "png", "webp", "gif", "bmp", "avif", "heic")
"""The formats that are decoded, as the `format` column names them (AVIF where Pillow was built with it, HEIC where
pillow-heif is installed)."""


class ImageRefused(Exception):
    """There will be no stored image; `status` says which kind of reason, the text is one line of detail."""

    def __init__(self, status: DownloadStatus, error: str) -> None:
        super().__init__(error)
        self.status = status


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        width: pixels, as stored, before any EXIF orientation.
        height: pixels.
        frames: 1 for a still image.
    """

    width: int
    height: int
    frames: int = 1


_MAGIC = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"\0\0\1\0", "ico"),
    (b"8BPS", "psd"),
    (b"%PDF-", "pdf"),
    (b"\xff\x0a", "jxl"),
    (b"\0\0\0\x0cJXL ", "jxl"),
    (b"\x1f\x8b", "gzip"),
    (b"PK\3\4", "zip"),
)
_FTYP_BRANDS = {
    b"avif": "avif",
    b"avis": "avif",
    b"heic": "heic",
    b"heix": "heic",
    b"mif1": "heic",
    b"msf1": "heic",
}


def sniff(body: bytes) -> str | None:
    """The file's type by its magic bytes, also for types that are not decoded; None when unknown.

    Text that starts like a document is "svg", "html" or "xml", whatever the server called it.
    """
    if body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return "webp"
    if body[4:8] == b"ftyp":
        return _FTYP_BRANDS.get(body[8:12])
    for magic, name in _MAGIC:
        if body.startswith(magic):
            return name
    text = body[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not text.startswith(b"<"):
        return None
    if b"<svg" in text:
        return "svg"
    return "html" if b"<html" in text or b"<!doctype html" in text else "xml"


def is_decoded(name: str | None) -> bool:
    """Whether images of this type are decoded here."""
    if name == "heic":
        return heic_is_installed()
    return name in FORMATS and (name != "avif" or bool(features.check("avif")))


def read_header(body: bytes, name: str) -> Header:
    """The size and number of frames of an image of one of FORMATS.

    Raises:
        ImageRefused: undecodable, the header is cut off or makes no sense.
    """
    try:
        header = _READERS[name](body)
    except Exception as error:  # hostile bytes: struct.error, IndexError, KeyError from the JPEG reader ...
        raise ImageRefused(DownloadStatus.undecodable, f"the {name} header cannot be read") from error
    if header.width < 1 or header.height < 1:
        size = f"{header.width} x {header.height}"
        raise ImageRefused(DownloadStatus.undecodable, f"the {name} header says {size} pixels")
    return header


def _jpeg(body: bytes) -> Header:
    height, width, _, _ = simplejpeg.decode_jpeg_header(body, strict=False)
    return Header(int(width), int(height))


def _png(body: bytes) -> Header:
    """IHDR; the frames of an animated PNG are in its acTL chunk, which must come before the image data."""
    if body[12:16] != b"IHDR":
        raise ValueError("PNG without IHDR")
    width, height = struct.unpack_from(">II", body, 16)
    frames, position = 1, 33
    while position + 8 <= len(body):
        length, kind = struct.unpack_from(">I4s", body, position)
        if kind == b"acTL":
            frames = max(1, struct.unpack_from(">I", body, position + 8)[0])
        if kind in (b"acTL", b"IDAT", b"IEND"):
            break
        position += 12 + length
    return Header(width, height, frames)


def _gif(body: bytes) -> Header:
    """The logical screen, grown to what the first frame covers, as decoders do; frames by walking the blocks."""
    width, height, flags = struct.unpack_from("<HHB", body, 6)
    position = 13 + _color_table_bytes(flags)
    frames = 0
    while position < len(body):
        block = body[position]
        if block == 0x21:  # extension: label, sub-blocks
            position = _after_sub_blocks(body, position + 2)
        elif block == 0x2C:  # image: descriptor, local colour table, code size, sub-blocks
            if position + 10 > len(body):
                break
            left, top, frame_width, frame_height, flags = struct.unpack_from("<HHHHB", body, position + 1)
            if frames == 0:
                width, height = max(width, left + frame_width), max(height, top + frame_height)
            frames += 1
            position = _after_sub_blocks(body, position + 11 + _color_table_bytes(flags))
        else:  # 0x3B ends the file; anything else is damage, which the decoder will judge
            break
    return Header(width, height, max(1, frames))


def _color_table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_sub_blocks(body: bytes, position: int) -> int:
    while position < len(body) and body[position]:
        position += 1 + body[position]
    return position + 1


def _webp(body: bytes) -> Header:
    """The first chunk tells the kind: VP8 (lossy), VP8L (lossless) or VP8X (a canvas, perhaps animated)."""
    kind = body[12:16]
    if kind == b"VP8 ":
        if body[23:26] != b"\x9d\x01\x2a":
            raise ValueError("VP8 without a key frame")
        width, height = struct.unpack_from("<HH", body, 26)
        return Header(width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", body, 21)[0]
        return Header((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind != b"VP8X" or len(body) < 30:
        raise ValueError(f"WebP with a first chunk {kind!r}")
    width = int.from_bytes(body[24:27], "little") + 1
    height = int.from_bytes(body[27:30], "little") + 1
    frames, position = 0, 12
    while position + 8 <= len(body):
        kind, length = struct.unpack_from("<4sI", body, position)
        frames += kind == b"ANMF"
        position += 8 + length + (length & 1)
    return Header(width, height, max(1, frames))


def _bmp(body: bytes) -> Header:
    """The old 12-byte header has 16-bit sizes; in the others a negative height means rows from the top."""
    if struct.unpack_from("<I", body, 14)[0] == 12:
        return Header(*struct.unpack_from("<HH", body, 18))
    width, height = struct.unpack_from("<ii", body, 18)
    return Header(width, abs(height))


def _avif(body: bytes) -> Header:
    """Pillow opens AVIF without decoding; its container has no one place for the size."""
    with Image.open(BytesIO(body), formats=("AVIF",)) as image:
        return Header(image.width, image.height, getattr(image, "n_frames", 1))


def _heic(body: bytes) -> Header:
    images = open_heic(body)
    return Header(*images.size, frames=len(images))


_READERS = {"jpeg": _jpeg, "png": _png, "gif": _gif, "webp": _webp, "bmp": _bmp, "avif": _avif, "heic": _heic}
