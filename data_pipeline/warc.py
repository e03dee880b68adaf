"""Pages from WARC files: which record holds one, its address, its date, and its bytes as text.

The surprising part is how a page's encoding is found: labels mean what the encoding standard says, which is
often more than Python's codec of that name reads, and many pages carry a wrong label or none.
"""

import codecs
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

from data_pipeline.html_page import read_html
from data_pipeline.page import Page, opts_out
from data_pipeline.records import RecordFault

if TYPE_CHECKING:
    from fastwarc.warc import WarcRecord

# What the encoding standard reads under a label, where Python's codec of that name reads less.
_CODECS = {
    "iso-8859-1": "cp1252", "iso8859-1": "cp1252", "latin1": "cp1252", "latin-1": "cp1252", "l1": "cp1252",
    "ascii": "cp1252", "us-ascii": "cp1252", "iso-8859-9": "cp1254", "gb2312": "gb18030", "gbk": "gb18030",
    "x-gbk": "gb18030", "shift_jis": "cp932", "shift-jis": "cp932", "x-sjis": "cp932", "sjis": "cp932",
    "ks_c_5601-1987": "cp949", "euc-kr": "cp949", "tis-620": "cp874", "iso-8859-11": "cp874",
}  # fmt: skip
_NOT_FOR_PAGES = ("utf-7", "utf7", "idna", "punycode", "unicode_escape", "raw_unicode_escape")
_META_CHARSET = re.compile(
    rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([A-Za-z0-9_:.-]{1,40})""", re.IGNORECASE
)
_HEADER_CHARSET = re.compile(r"""charset\s*=\s*["']?\s*([A-Za-z0-9_:.-]{1,40})""", re.IGNORECASE)
_LOOKS_LIKE_HTML = re.compile(rb"<(?:!doctype\s+html|html|head|body|meta|title)\b", re.IGNORECASE)


class HtmlRecord(NamedTuple):
    """A WARC record that holds a page.

    Attributes:
        url: the page's address, as the record says.
        date: when it was crawled, ISO 8601; None when the record does not say.
        html: the page.
        opted_out: its X-Robots-Tag headers ask that its images are not used for AI.
    """

    url: str
    date: str | None
    html: str
    opted_out: bool


def read_html_record(record: "WarcRecord", payload: bytes) -> HtmlRecord | RecordFault | None:
    """The page in a WARC response record, as text.

    Args:
        record: the record, its HTTP headers parsed.
        payload: its body, decoded from any transfer and content encoding.

    Returns:
        The page; None when the record is not HTML; or why it is lost.
    """
    headers = [(name.lower(), value) for name, value in record.http_headers or ()]
    content_type = next((value for name, value in headers if name == "content-type"), "")
    if not _is_html(content_type, payload):
        return None
    url = (record.headers.get("WARC-Target-URI") or "").strip("<> ")
    if not url:
        return RecordFault.record_no_address
    opted_out = opts_out(value for name, value in headers if name == "x-robots-tag")
    return HtmlRecord(url, record.headers.get("WARC-Date"), decode_html(payload, content_type), opted_out)


def read_warc_page(
    record: "WarcRecord", payload: bytes, wanted: Collection[str]
) -> Page | RecordFault | None:
    """What the page in a WARC response record says of its images.

    Args:
        record: the record, its HTTP headers parsed.
        payload: its body, decoded from any transfer and content encoding.
        wanted: where texts may come from, of `TEXT_SOURCES`.

    Returns:
        The page; None when the record is not HTML; or why it is lost.
    """
    found = read_html_record(record, payload)
    if not isinstance(found, HtmlRecord):
        return found
    page = read_html(found.html, wanted)
    page.url, page.date = found.url, found.date
    page.opted_out = page.opted_out or found.opted_out
    return page


def _is_html(content_type: str, payload: bytes) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    if kind:
        return kind in ("text/html", "application/xhtml+xml")
    return _LOOKS_LIKE_HTML.search(payload[:1024]) is not None


def decode_html(payload: bytes, content_type: str) -> str:
    """A page's bytes as text: by byte order mark, HTTP header, meta tag, or else UTF-8 or Windows-1252.

    What its encoding cannot read becomes U+FFFD.
    """
    for mark, codec in (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ):
        if payload.startswith(mark):
            return payload[len(mark) :].decode(codec, "replace")
    from_header = _HEADER_CHARSET.search(content_type)
    codec = _codec(from_header.group(1)) if from_header else None
    if codec is None:
        from_meta = _META_CHARSET.search(payload[:4096])
        codec = _codec(from_meta.group(1).decode("ascii")) if from_meta else None
        if codec is not None and codec.startswith("utf-16"):
            codec = "utf-8"  # it could be read byte by byte, so it is not UTF-16
    if codec is not None:
        return payload.decode(codec, "replace")
    try:
        return payload.decode("utf-8")
    except UnicodeDecodeError:
        return payload.decode("cp1252", "replace")


def _codec(label: str) -> str | None:
    """Python's name of the text encoding that a label stands for; None when it is not one for pages."""
    label = label.lower()
    try:
        info = codecs.lookup(_CODECS.get(label, label))
    except LookupError:
        return None
    is_text = getattr(info, "_is_text_encoding", True)
    return info.name if is_text and info.name not in _NOT_FOR_PAGES else None
