"""The data contract: one sample is one (url, text) pair, and `uid` is what everything joins on.

The surprising part: nothing joins by row position, and the uid is a hash of the pair rather than a
counter, so two runs, two machines and two crawls agree on it without talking to each other.
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import xxhash

from crawl2clip.download_status import DownloadStatus

__all__ = [
    "CANDIDATE_SCHEMA", "DOCUMENT_IMAGE", "DOCUMENT_SCHEMA", "DOWNLOAD_SCHEMA", "UID_DTYPE", "DownloadStatus",
    "array_to_uids", "document_uid", "uid_of", "uids_to_array",
]  # fmt: skip

UID_DTYPE = np.dtype("u8,u8")
"""DataComp's interface for a subset: a sorted npy array of (high, low) 64-bit halves of the uid."""


def uid_of(url: str, text: str) -> str:
    """The 128-bit id of a (url, text) pair, as 32 hex digits (XXH3-128).

    A NUL stands between the two parts, so that ("ab", "c") and ("a", "bc") differ; lone surrogates
    are replaced, so that any Python string has an id.
    """
    return xxhash.xxh3_128_hexdigest(f"{url}\0{text}".encode("utf-8", "replace"))


def uids_to_array(uids: Iterable[str]) -> np.ndarray:
    """Sorted, distinct uids as an array of `UID_DTYPE`, DataComp's subset format.

    Raises:
        ValueError: an entry is not 32 hex digits.
    """
    values = sorted(set(uids))
    for value in values:
        if len(value) != 32:
            raise ValueError(f"{value!r} is not a uid; a uid is 32 hex digits")
    return np.array([(int(value[:16], 16), int(value[16:], 16)) for value in values], dtype=UID_DTYPE)


def array_to_uids(array: np.ndarray) -> list[str]:
    """The uids of a DataComp subset array, as 32 hex digits each, in the array's order."""
    if array.dtype != UID_DTYPE:
        raise ValueError(f"a uid array has dtype {UID_DTYPE}, this one has {array.dtype}")
    return [f"{int(high):016x}{int(low):016x}" for high, low in array]


CANDIDATE_SCHEMA = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),  # uid_of(url, text)
        pa.field("url", pa.string(), nullable=False),  # absolute, http or https
        pa.field("text", pa.string(), nullable=False),  # cleaned alt text
        pa.field("text_source", pa.string(), nullable=False),  # alt, title, aria-label, figcaption, og:image
        pa.field("page_url", pa.string()),  # the page that shows the image
        pa.field("page_language", pa.string()),  # html lang as written; null when absent
        pa.field("license", pa.string()),  # Creative Commons URL linked on the page; null when none
        pa.field("crawl_file", pa.string()),  # the WAT or WARC file
        pa.field("offset", pa.int64()),  # byte offset of the record in crawl_file
        pa.field("page_date", pa.string()),  # WARC-Date of the page, ISO 8601
        pa.field("width_hint", pa.int32()),  # pixels, as the page says; null when it does not, and from a WAT
        pa.field("height_hint", pa.int32()),
        pa.field(
            "listed", pa.string()
        ),  # JSON object: columns of a published list that are kept; null from a crawl
    ]
)
"""A (url, text) pair with where it came from."""


DOCUMENT_IMAGE = pa.struct(
    [
        pa.field("url", pa.string(), nullable=False),  # absolute, http or https
        pa.field("text", pa.string()),  # as a candidate's, of any length; null when there is none
        pa.field("text_source", pa.string()),  # as a candidate's; null when there is no text
        pa.field("uid", pa.string(), nullable=False),  # uid_of(url, text), with "" for no text
        pa.field("width_hint", pa.int32()),  # as a candidate's
        pa.field("height_hint", pa.int32()),
    ]
)
"""An image of a document. Its uid is that of the candidate which extraction makes of it, if it makes one."""

DOCUMENT_SCHEMA = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),  # of the address and the content: document_uid
        pa.field("page_url", pa.string(), nullable=False),
        pa.field("page_date", pa.string()),  # WARC-Date, ISO 8601
        pa.field("page_language", pa.string()),  # html lang as written; null when absent
        pa.field("license", pa.string()),  # Creative Commons URL linked on the page; null when none
        pa.field("crawl_file", pa.string(), nullable=False),  # the WARC file
        pa.field("offset", pa.int64(), nullable=False),  # byte offset of the record in crawl_file
        pa.field("texts", pa.list_(pa.string()), nullable=False),  # null where there is an image
        pa.field("images", pa.list_(DOCUMENT_IMAGE), nullable=False),  # null where there is a text
    ]
)
"""A page as the ordered list of its texts and images: two lists of equal length, at each place exactly one of
them holds something, as in OBELICS."""


def document_uid(page_url: str, parts: Iterable[str]) -> str:
    """The 128-bit id of a document, as 32 hex digits: the same page with the same content has the same id.

    Args:
        page_url: its address.
        parts: its texts and its images' uids, in order.
    """
    return uid_of(page_url, "\0".join(parts))


DOWNLOAD_SCHEMA = pa.schema(
    [
        *CANDIDATE_SCHEMA,
        pa.field("status", pa.string(), nullable=False),  # DownloadStatus
        pa.field("error", pa.string()),  # one line of detail; null on success
        pa.field("http_status", pa.int32()),  # of the last response; null when there was none
        pa.field("bytes", pa.int64()),  # size of the original body
        pa.field("original_width", pa.int32()),  # pixels, after EXIF orientation
        pa.field("original_height", pa.int32()),
        pa.field("width", pa.int32()),  # pixels, as stored
        pa.field("height", pa.int32()),
        pa.field("format", pa.string()),  # of the original: jpeg, png, webp, gif, bmp, avif, heic
        pa.field("md5", pa.string()),  # of the original bytes
        pa.field("sha256", pa.string()),  # of the original bytes
        pa.field("phash", pa.string()),  # 64-bit perceptual hash of the original, 16 hex digits
        pa.field(
            "expected", pa.string()
        ),  # exact, near or mismatch: the list's hash; null when it gives none
        pa.field("consent", pa.string()),  # every decision and its reason
    ]
)
"""A row for every URL tried: the candidate's columns and what came of it."""
