"""What comes of one downloaded file; passes from a decoder's process to the download worker."""

from dataclasses import dataclass

from crawl2clip.download_status import DownloadStatus


@dataclass(frozen=True)
class Processed:
    """What came of one body. A field is None when it was not reached.

    Attributes:
        status: success, or why there is no image.
        md5, sha256: of the original bytes.
        error: one line of detail; None on success.
        format: the original's, as `image_headers.sniff` names it.
        original_width, original_height: pixels, upright.
        width, height: pixels, as stored.
        extension: of the stored file: jpg, png or webp.
        data: the stored file.
        phash: 16 hex digits, see `images.perceptual_hash`.
    """

    status: DownloadStatus
    md5: str
    sha256: str
    error: str | None = None
    format: str | None = None
    original_width: int | None = None
    original_height: int | None = None
    width: int | None = None
    height: int | None = None
    extension: str | None = None
    data: bytes | None = None
    phash: str | None = None
