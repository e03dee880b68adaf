"""Undoes a Content-Encoding under a cap.

We ask for none (`Accept-Encoding: identity`); some servers compress all the same. A gzip bomb stops at the cap,
since no more than the cap is ever decompressed.
"""

import zlib

from crawl2clip.download_status import DownloadStatus
from data_pipeline.fetch_failures import FetchFailed


def undo_encoding(body: bytes, encoding: str, limit: int, *, cut: bool = False) -> bytes | None:
    """The body without its Content-Encoding.

    Args:
        body: as received.
        encoding: the Content-Encoding header; "" when there was none.
        limit: most bytes of the result.
        cut: for a result that may be incomplete: a longer one is cut, a stream that ends early is taken.

    Returns:
        The plain bytes; None when they are more than `limit` and not to be cut.

    Raises:
        FetchFailed: the encoding is not gzip or deflate, or the stream is damaged.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise FetchFailed(
            DownloadStatus.unsupported_type, f"Content-Encoding {encoding[:40]!r} was not asked for"
        )
    # "deflate" is zlib's format by the standard, and the bare stream from some servers.
    bare = encoding == "deflate" and int.from_bytes(body[:2], "big") % 31 != 0
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS if bare else zlib.MAX_WBITS | 32)
    try:
        plain = decompressor.decompress(body, limit + 1)
    except zlib.error as error:
        raise FetchFailed(DownloadStatus.undecodable, f"Content-Encoding {encoding}: {error}") from error
    if len(plain) > limit:
        return plain[:limit] if cut else None
    if not decompressor.eof and not cut:
        raise FetchFailed(DownloadStatus.undecodable, f"Content-Encoding {encoding}: the stream is cut off")
    return plain
