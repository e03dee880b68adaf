"""WAT records in every spelling that JSON allows: the typed reading gives what plain `json.loads` gives."""

import json
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline import wat
from data_pipeline.page import TEXT_SOURCES, Page
from data_pipeline.records import RecordFault

_strings = st.one_of(
    st.sampled_from(
        [
            "IMG@/src",
            "A@/href",
            "a.jpg",
            "/b c.png",
            "",
            " ",
            '"}',
            "{",
            '},{"path":"IMG@/src"',
            "\\",
            "</a>",
            "\ud83d",
        ]
    ),
    st.text(max_size=8),
)
_scalars = st.one_of(st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(), _strings)
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_strings, inner, max_size=3),
    max_leaves=6,
)


def _pairs(keys: list[str], values: Any = _strings, least: int = 0) -> Any:
    """A JSON object as a list of pairs: any order, keys twice or not there."""
    pair = st.tuples(st.sampled_from(keys), values)
    return st.lists(pair, min_size=least, max_size=5).map(_Object)


class _Object(list):
    """(key, value) pairs."""


_mixed = st.one_of(_strings, _strings, _strings, _values)
_image = st.tuples(_mixed, _mixed).map(
    lambda both: _Object([("path", "IMG@/src"), ("url", both[0]), ("alt", both[1])])
)
_link = st.one_of(_image, _pairs(["path", "url", "alt", "title", "text", "x"], _mixed))
_meta = _pairs(
    ["name", "property", "content"],
    st.one_of(st.sampled_from(["og:image", "HTML@/lang", "robots", "noai"]), _mixed),
)
_head = _pairs(
    ["Base", "Title", "Metas", "Link", "Scripts"],
    st.one_of(st.lists(st.one_of(_meta, _link), max_size=3), _mixed),
)
_links = st.one_of(st.lists(_link, max_size=5), st.lists(st.one_of(_link, _values), max_size=4), _values)
_html = st.one_of(
    st.tuples(_head, _links).map(lambda both: _Object([("Head", both[0]), ("Links", both[1])])),
    _pairs(["Head", "Links", "Links", "x"], st.one_of(_head, _links), 1),
)


def _record(html, headers, url, date):
    response = _Object([("Headers", headers), ("HTML-Metadata", html)])
    envelope = _Object(
        [
            ("Payload-Metadata", _Object([("HTTP-Response-Metadata", response)])),
            ("WARC-Header-Metadata", _Object([("WARC-Date", date), ("WARC-Target-URI", url)])),
        ]
    )
    return _Object([("Container", _Object()), ("Envelope", envelope)])


_records = st.builds(
    _record,
    _html,
    st.one_of(_pairs(["X-Robots-Tag", "Server"], _mixed), _values),
    st.one_of(st.just("https://example.org/a/"), _mixed),
    _mixed,
)


def _write(value, space, escape):
    """JSON of a value, with this white space between its tokens and characters escaped or not."""
    if isinstance(value, _Object):
        pairs = (
            f"{_write(key, '', escape)}{space}:{space}{_write(inner, space, escape)}" for key, inner in value
        )
        return f"{{{space}{f'{space},{space}'.join(pairs)}{space}}}"
    if isinstance(value, dict):
        return _write(_Object(value.items()), space, escape)
    if isinstance(value, list):
        return f"[{space}{f'{space},{space}'.join(_write(inner, space, escape) for inner in value)}{space}]"
    if isinstance(value, str) and escape == "all":
        return (
            '"'
            + "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else json.dumps(c)[1:-1] for c in value)
            + '"'
        )
    text = json.dumps(value, ensure_ascii=escape != "none")
    return text.replace("/", "\\/") if escape == "slash" else text


def _plainly(payload, wanted):
    """What `read_wat_page` gives when every record is read by json.loads, key by key."""
    refuse = partial(_refuse, msgspec.DecodeError("not tried"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wat, "_decode", refuse)
        return wat.read_wat_page(payload, wanted)


def _refuse(error, payload):
    raise error


@given(
    _records,
    st.sampled_from(["", "", " ", "\n\t", "\r\n  "]),
    st.sampled_from(["ascii", "none", "slash", "all"]),
    st.sets(st.sampled_from(TEXT_SOURCES), min_size=1),
)
@example(
    _record(
        _Object([("Links", [_Object([("path", "A@/href"), ("path", "IMG@/src"), ("alt", "x")])])]),
        [],
        "http://a/",
        None,
    ),
    "",
    "ascii",
    {"alt"},
)
@settings(max_examples=150, deadline=None)
def test_a_record_reads_the_same_typed_and_plainly(record, space, escape, wanted):
    payload = _write(record, space, escape).encode("utf-8", "surrogatepass")
    typed, plain = wat.read_wat_page(payload, wanted), _plainly(payload, wanted)
    if plain is RecordFault.record_wrong_form and isinstance(typed, Page):
        assert typed.images == []  # a record without HTML: nothing is lost by either
    else:
        assert typed == plain


@given(st.binary(max_size=60), st.integers(0, 400), st.integers(0, 400))
@settings(max_examples=100, deadline=None)
def test_any_bytes_within_a_record_give_a_page_or_a_reason(rubbish, start, end):
    links = [_Object([("path", "IMG@/src"), ("url", "a.jpg"), ("alt", "A picture")])] * 3
    payload = _write(
        _record(_Object([("Head", _Object()), ("Links", links)]), _Object(), "http://a/", "2024"), "", "ascii"
    ).encode()
    spoilt = payload[:start] + rubbish + payload[end:]
    assert isinstance(wat.read_wat_page(spoilt, {"alt"}), (Page, RecordFault))
