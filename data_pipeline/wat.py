"""Pages from WAT files: the metadata that Common Crawl publishes beside its pages, JSON for each record.

A WAT holds an image's src, alt and title, the page's meta tags and links, and nothing of srcset, lazy-load
attributes or figures; WARC files have those.

Nearly all the time goes into making Python objects of links that are no images, so records without an image
are recognised by their bytes, and the others are decoded straight into the few fields needed. A record that
does not fit those types is read again without them, and costs only what is wrong with it. Where the compiled scanner
has been built (`wat_native`), most records never come here; this is its reference.
"""

import json
from collections.abc import Collection, Iterable
from functools import partial
from typing import Any, NamedTuple

import msgspec

from data_pipeline.page import ImageLink, Page, choose_text, creative_commons_license, opts_out, shared_image
from data_pipeline.records import RecordFault

_IMAGE_PATH = "IMG@/src"
_CREATIVE_COMMONS = b"creativecommons.org"


class _Link(msgspec.Struct, gc=False):
    path: str = ""
    url: str | None = None
    alt: str | None = None
    title: str | None = None


class Meta(msgspec.Struct, gc=False):
    """A meta tag of a page, or an attribute of its html element."""

    name: str | None = None
    property: str | None = None
    content: str | None = None


class _Head(msgspec.Struct):
    Base: str | None = None
    Title: str | None = None
    Metas: list[Meta] = []
    Link: msgspec.Raw = msgspec.Raw()  # needed for a licence only


class _Html(msgspec.Struct):
    Head: _Head = msgspec.field(default_factory=_Head)
    Links: list[_Link] = []


class _Response(msgspec.Struct):
    Headers: msgspec.Raw = msgspec.Raw()
    html: _Html | None = msgspec.field(default=None, name="HTML-Metadata")


class _Payload(msgspec.Struct):
    response: _Response | None = msgspec.field(default=None, name="HTTP-Response-Metadata")


class _WarcHeader(msgspec.Struct):
    url: str = msgspec.field(name="WARC-Target-URI")
    date: str | None = msgspec.field(default=None, name="WARC-Date")


class _Envelope(msgspec.Struct):
    header: _WarcHeader = msgspec.field(name="WARC-Header-Metadata")
    payload: _Payload = msgspec.field(name="Payload-Metadata")


class _Record(msgspec.Struct):
    Envelope: _Envelope


_image_link = partial(tuple.__new__, ImageLink)  # a third of the time that ImageLink(...) takes
_decode = msgspec.json.Decoder(_Record).decode


def may_have_images(payload: bytes) -> bool:
    """Whether a record is worth decoding: by its bytes, so at the speed of memory."""
    return b"IMG@/src" in payload or b"og:image" in payload


def read_wat_page(payload: bytes, wanted: Collection[str]) -> Page | RecordFault:
    """The page that a WAT record is about.

    Args:
        payload: the record's JSON.
        wanted: where texts may come from, of `TEXT_SOURCES`.

    Returns:
        The page, or why the record is lost.
    """
    bad_links = 0
    try:
        record = _decode(payload)
    except (msgspec.DecodeError, UnicodeError, RecursionError):  # a ValidationError is a DecodeError
        repaired = _repair(payload)
        if isinstance(repaired, RecordFault):
            return repaired
        record, bad_links = repaired
    header, response = record.Envelope.header, record.Envelope.payload.response
    if response is None or response.html is None:
        return Page(header.url, header.date or None, bad_links=bad_links)
    html = response.html
    images, textless_links = _images(html.Links, wanted)
    metas = read_metas(html.Head.Metas)
    if metas.shared and (shared := shared_image(metas.shared, html.Head.Title, wanted)) is not None:
        images.append(shared)
    return Page(
        url=header.url,
        date=header.date or None,
        base_href=html.Head.Base or None,
        language=metas.language,
        license=_license(html) if _CREATIVE_COMMONS in payload else None,
        opted_out=(bool(metas.robots) and opts_out(metas.robots)) or _header_opts_out(response.Headers),
        images=images,
        textless_links=textless_links,
        bad_links=bad_links,
    )


def _images(links: Iterable[_Link], wanted: Collection[str]) -> tuple[list[ImageLink], int]:
    """The image links with a text, and how many there are without one."""
    images: list[ImageLink] = []
    textless = 0
    takes_alt = "alt" in wanted
    for link in links:
        if link.path == _IMAGE_PATH:
            text, source = link.alt, "alt"
            if not takes_alt or not text or text.isspace():
                text, source = choose_text((("title", link.title),), wanted) if link.title else ("", "alt")
            if text:
                images.append(_image_link((link.url or "", text, source, None, None)))
            else:
                textless += 1
    return images, textless


class PageMetas(NamedTuple):
    """What a page's meta tags say.

    Attributes:
        attributes: the html element's, the first of each name; its language among them.
        robots: the contents of its robots tags.
        shared: Open Graph properties, each with its first value.
    """

    attributes: dict[str, str | None]
    robots: list[str]
    shared: dict[str, str]

    @property
    def language(self) -> str | None:
        """As the page says it; None when it does not."""
        return self.attributes.get("HTML@/lang") or self.attributes.get("HTML@/xml:lang") or None


def read_metas(metas: Iterable[Meta]) -> PageMetas:
    """What the meta tags say that concerns images."""
    found = PageMetas({}, [], {})
    for meta in metas:
        name = meta.name
        if name and name.startswith("HTML@/"):
            found.attributes.setdefault(name, meta.content)
        if not meta.content:
            continue
        if name and len(name) == len("robots") and name.lower() == "robots":
            found.robots.append(meta.content)
        key = meta.property or name
        if key and key.startswith("og:"):
            found.shared.setdefault(key, meta.content)
    return found


def _header_opts_out(headers: msgspec.Raw) -> bool:
    raw = bytes(headers)
    if b"robots" not in raw.lower():
        return False
    decoded = _decode_any(raw)
    if not isinstance(decoded, dict):
        return False
    values = [value for name, value in decoded.items() if name.lower() == "x-robots-tag"]
    lines = [line for value in values for line in (value if isinstance(value, list) else [value])]
    return opts_out(line for line in lines if isinstance(line, str))


def _license(html: _Html) -> str | None:
    raw = bytes(html.Head.Link)
    links = _as_structs(_decode_any(raw), _Link)[0] if raw else []
    return creative_commons_license(link.url for link in [*links, *html.Links] if link.path != _IMAGE_PATH)


# Records that do not fit


def _repair(payload: bytes) -> tuple[_Record, int] | RecordFault:
    """A record that is not quite a WAT record, without its bad links and metas, and how many links those were."""
    value = _decode_forgiving(payload)
    if value is None:
        return RecordFault.record_bad_json
    envelope = _child(value, "Envelope")
    header, response = (
        _child(envelope, "WARC-Header-Metadata"),
        _child(_child(envelope, "Payload-Metadata"), "HTTP-Response-Metadata"),
    )
    html = _child(response, "HTML-Metadata")
    url, date = header.get("WARC-Target-URI"), header.get("WARC-Date")
    if not isinstance(url, str) or not html:
        return RecordFault.record_wrong_form
    head = _child(html, "Head")
    links, bad_links = _as_structs(html.get("Links"), _Link)
    record = _Record(
        _Envelope(
            _WarcHeader(url, date if isinstance(date, str) else None),
            _Payload(
                _Response(
                    _as_raw(response.get("Headers")),
                    _Html(
                        _Head(
                            _as_text(head.get("Base")),
                            _as_text(head.get("Title")),
                            _as_structs(head.get("Metas"), Meta)[0],
                            _as_raw(head.get("Link")),
                        ),
                        links,
                    ),
                )
            ),
        )
    )
    return record, bad_links


def _decode_any(raw: bytes) -> Any:
    """A part of a record that the typed reading passed over, so that its strings may still be broken; None if so."""
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return _decode_forgiving(raw)


def _decode_forgiving(raw: bytes) -> Any:
    """JSON with lone surrogates, bytes that are not UTF-8, NaN; None for what is no JSON even so."""
    try:
        return json.loads(raw.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def _child(value: Any, key: str) -> dict[str, Any]:
    child = value.get(key) if isinstance(value, dict) else None
    return child if isinstance(child, dict) else {}


def _as_text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _as_raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode("ascii") if value is not None else b"")


def _as_structs(values: Any, kind: type[Any]) -> tuple[list[Any], int]:
    """The entries of a JSON list that fit a struct, and how many image links do not."""
    fitting, bad_links = [], 0
    for value in values if isinstance(values, list) else []:
        if not isinstance(value, dict):
            continue
        # Not by msgspec.convert: it raises UnicodeEncodeError for lone surrogates, which are harmless here.
        known = {name: value[name] for name in kind.__struct_fields__ if name in value}
        if all(isinstance(text, str) or (text is None and name != "path") for name, text in known.items()):
            fitting.append(kind(**known))
        else:
            bad_links += value.get("path") == _IMAGE_PATH
    return fitting, bad_links
