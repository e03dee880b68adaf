"""What can come of a URL; a file of its own, so that a decoding process need not import pyarrow to name it."""

from enum import Enum


class DownloadStatus(str, Enum):
    """What came of one URL; the closed list of reasons a candidate is lost at download."""

    success = "success"
    invalid_url = "invalid_url"
    address_refused = "address_refused"  # private, loopback, link-local, metadata ... addresses
    robots_disallowed = "robots_disallowed"
    opted_out = "opted_out"  # X-Robots-Tag, TDMRep or AIPREF; the consent column says which
    dns_error = "dns_error"
    connect_error = "connect_error"
    tls_error = "tls_error"
    timeout = "timeout"
    http_error = "http_error"  # the status code is in http_status
    too_many_redirects = "too_many_redirects"
    too_large = "too_large"
    empty_body = "empty_body"
    too_small_bytes = "too_small_bytes"
    unsupported_type = "unsupported_type"  # by the file's magic bytes, not by Content-Type
    undecodable = "undecodable"
    decoder_failed = "decoder_failed"  # too much memory or time, or a crash: its process was ended
    too_many_pixels = "too_many_pixels"
    too_many_frames = "too_many_frames"
    too_small = "too_small"
    bad_aspect_ratio = "bad_aspect_ratio"
    boxes_unreadable = (
        "boxes_unreadable"  # a list says what to blur in a way that cannot be read; not fetched
    )
    hash_mismatch = "hash_mismatch"  # not the image that a published list says is there
