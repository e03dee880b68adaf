"""Undoes the Content-Encoding of a page in a WARC file, never holding more than a page may have.

fastwarc undoes encodings too, but in one piece: 600 MB of spaces, 0.6 MB when packed, took 760 MB of memory. So it is
asked for the bytes as they were sent.
"""

import zlib

_MAX_ENCODINGS = 4
_MAX_MEMBERS = 100  # each costs a copy of those after it
_GZIP = b"\x1f\x8b"
_WITH_HEADER = zlib.MAX_WBITS | 32  # gzip's or zlib's


def undo_content_encoding(body: bytes, encodings: str, max_bytes: int) -> bytes | None:
    """The body without its encodings.

    Args:
        body: as it was sent, of any number of encodings, one around the other.
        encodings: the Content-Encoding header; "" without one.
        max_bytes: the most that may come out of any of them.

    Returns:
        The plain bytes, as far as they go where the end is missing; None when they are more than `max_bytes`.

    Raises:
        ValueError: the body is not in that encoding, or nothing is known of such an encoding.
    """
    words = [word.strip().lower() for word in encodings.split(",")]
    if len(words) > _MAX_ENCODINGS:
        raise ValueError(f"{len(words)} encodings, one around the other")
    for encoding in reversed(words):
        if encoding in ("", "identity", "none") or not body:
            continue
        if encoding in ("gzip", "x-gzip", "deflate"):
            plain = _inflate(body, max_bytes)
        elif encoding == "br":
            plain = _undo_brotli(body, max_bytes)
        else:
            raise ValueError(f"unknown Content-Encoding {encoding[:40]!r}")
        if len(plain) > max_bytes:
            return None
        body = plain
    return body


def _inflate(body: bytes, max_bytes: int) -> bytes:
    """At most `max_bytes` + 1 bytes of gzip members or of a zlib stream, with a header or bare."""
    is_bare = body[:2] != _GZIP and int.from_bytes(body[:2], "big") % 31 != 0
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS if is_bare else _WITH_HEADER)
    parts, room = [], max_bytes + 1
    try:
        for _ in range(_MAX_MEMBERS):
            parts.append(decompressor.decompress(body, room))
            room -= len(parts[-1])
            body = decompressor.unused_data
            if room <= 0 or body[:2] != _GZIP:  # enough, nothing more, or something that is no further member
                break
            decompressor = zlib.decompressobj(_WITH_HEADER)
    except zlib.error as error:
        if not parts:
            raise ValueError(str(error)) from error
    return b"".join(parts)


def _undo_brotli(body: bytes, max_bytes: int) -> bytes:
    """At most `max_bytes` + some more bytes of a Brotli stream."""
    import brotli  # comes with fastwarc

    decompressor, parts, length = brotli.Decompressor(), [], 0
    try:
        while length <= max_bytes and not decompressor.is_finished():
            part = decompressor.process(body, output_buffer_limit=max_bytes + 1 - length)
            parts.append(part)
            length += len(part)
            body = b""
            if not part and decompressor.can_accept_more_data():
                break  # the end is missing
    except brotli.error as error:
        raise ValueError(str(error)) from error
    return b"".join(parts)
