"""Content-Encodings of pages in WARC files: undone under a cap, and what happens to those that are broken."""

import gzip
import zlib

import brotli
import pytest

from data_pipeline.http_body import undo_content_encoding

PAGE = b"<img src=a.jpg alt='A nice picture'>" * 50


def bare(data):
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("encodings", "body"),
    [
        ("", PAGE),
        ("identity", PAGE),
        ("gzip", gzip.compress(PAGE, mtime=0)),
        ("X-GZip", gzip.compress(PAGE, mtime=0)),
        ("deflate", zlib.compress(PAGE)),
        ("deflate", bare(PAGE)),
        ("br", brotli.compress(PAGE)),
        ("deflate, gzip", gzip.compress(zlib.compress(PAGE), mtime=0)),
        ("gzip", gzip.compress(PAGE[:100], mtime=0) + gzip.compress(PAGE[100:], mtime=0)),
        ("gzip", gzip.compress(PAGE, mtime=0) + b"rubbish at the end"),
    ],
)
def test_encodings_are_undone(encodings, body):
    assert undo_content_encoding(body, encodings, len(PAGE)) == PAGE


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, bare, brotli.compress])
def test_more_than_the_cap_is_none(pack):
    encoding = {gzip.compress: "gzip", brotli.compress: "br"}.get(pack, "deflate")
    assert undo_content_encoding(pack(PAGE), encoding, len(PAGE) - 1) is None
    assert undo_content_encoding(pack(b" " * 5_000_000), encoding, 1000) is None


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("br", brotli.compress)])
def test_a_body_that_is_cut_gives_its_start(encoding, pack):
    text = bytes(range(256)) * 40 + PAGE
    plain = undo_content_encoding(pack(text)[:-30], encoding, 100_000)
    assert plain is not None
    assert text.startswith(plain)
    assert undo_content_encoding(b"", encoding, 100) == b""


@pytest.mark.parametrize(
    ("encodings", "body", "message"),
    [
        ("gzip", PAGE, "Error -3"),
        ("br", PAGE, "decoder failed"),
        ("zstd", PAGE, "unknown Content-Encoding 'zstd'"),
        ("gzip," * 5, PAGE, "6 encodings"),
    ],
)
def test_what_is_not_in_its_encoding_is_an_error(encodings, body, message):
    with pytest.raises(ValueError, match=message):
        undo_content_encoding(body, encodings, 100_000)
