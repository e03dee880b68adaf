"""WARC and WAT files for tests: whole ones, and pieces to break."""

import gzip
import json
from functools import cache
from unittest import mock

from crawl2clip.errors import ConfigError
from data_pipeline import native
from data_pipeline.extract import CandidateWriter, ExtractConfig, read_pages
from data_pipeline.page import TEXT_SOURCES
from data_pipeline.sources import first_bytes_of, form_of

PAGE = "https://example.org/dir/page.html"
DATE = "2024-05-18T01:58:10Z"


def record(
    kind, block, *, url=PAGE, content_type="application/http; msgtype=response", date=DATE, length=None
):
    """The bytes of one WARC record."""
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: {date}\r\n"
        f"WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000000>\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(block) if length is None else length}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def member(data):
    """A gzip member, the same bytes every time."""
    return gzip.compress(data, mtime=0)


def wat_value(links, *, url=PAGE, metas=(), head=None, headers=None):
    """The JSON value of a WAT record about a page."""
    html = {"Head": {"Metas": list(metas), **(head or {})}, "Links": links}
    response = {"Headers": headers or {"Content-Type": "text/html"}, "HTML-Metadata": html}
    envelope = {
        "WARC-Header-Metadata": {"WARC-Type": "response", "WARC-Target-URI": url, "WARC-Date": DATE},
        "Payload-Metadata": {"HTTP-Response-Metadata": response},
    }
    return {"Container": {"Filename": "x.warc.gz"}, "Envelope": envelope}


def image(url="a.jpg", alt="A nice picture", **more):
    """An image link of a WAT."""
    return {"path": "IMG@/src", "url": url, "alt": alt, **more}


def wat_record(value, **more):
    """The bytes of a WAT record that holds a JSON value, or the bytes given."""
    block = value if isinstance(value, bytes) else json.dumps(value).encode()
    return record("metadata", block, content_type="application/json", **more)


def html_record(html, *, headers=(), url=PAGE, content_type="text/html; charset=utf-8"):
    """The bytes of a WARC response record that holds a page."""
    body = html if isinstance(html, bytes) else html.encode()
    lines = [
        "HTTP/1.1 200 OK",
        f"Content-Type: {content_type}",
        *headers,
        f"Content-Length: {len(body)}",
        "",
        "",
    ]
    return record("response", "\r\n".join(lines).encode() + body, url=url)


def extract_config(**changes):
    """LAION-5B's limits, and every source of texts."""
    values = {
        "text_sources": list(TEXT_SOURCES),
        "min_text_length": 5,
        "max_text_length": 2000,
        "max_url_length": 2000,
        "max_record_bytes": 10_000_000,
    }
    return ExtractConfig(**values | changes)


def extract(path, tmp_path, **changes):
    """Extracts from one file: (rows as dicts, counts)."""
    import pyarrow.parquet as pq

    config = extract_config(**changes)
    output = tmp_path / "candidates.parquet"
    with CandidateWriter(output, path.name, config) as writer:
        for page, offset in read_pages(path, form_of(path.name, first_bytes_of(path)), config, writer.counts):
            writer.add(page, offset)
    return pq.read_table(output).to_pylist(), writer.counts


@cache
def compiled_library():
    """The compiled part of extraction, built where it is not; None without a C compiler."""
    try:
        native.build()
    except ConfigError:
        return None
    native.load.cache_clear()
    return native.load()


def extract_both_ways(path, tmp_path, **changes):
    """As `extract`, with compiled code and without it, which must give the same; by Python alone where none is."""
    with mock.patch.object(native, "load", return_value=None):
        plain = extract(path, tmp_path, **changes)
    library = compiled_library()
    if library is not None:
        with mock.patch.object(native, "load", return_value=library):
            assert extract(path, tmp_path, **changes) == plain
    return plain
