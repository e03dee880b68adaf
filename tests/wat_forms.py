"""WAT records in every spelling that JSON allows, for property tests."""

import json
from typing import Any

from hypothesis import strategies as st

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
    return st.lists(pair, min_size=least, max_size=5).map(Object)


class Object(list):
    """(key, value) pairs."""


_mixed = st.one_of(_strings, _strings, _strings, _values)
_image = st.tuples(_mixed, _mixed).map(
    lambda both: Object([("path", "IMG@/src"), ("url", both[0]), ("alt", both[1])])
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
    st.tuples(_head, _links).map(lambda both: Object([("Head", both[0]), ("Links", both[1])])),
    _pairs(["Head", "Links", "Links", "x"], st.one_of(_head, _links), 1),
)


def record(html, headers, url, date):
    response = Object([("Headers", headers), ("HTML-Metadata", html)])
    envelope = Object(
        [
            ("Payload-Metadata", Object([("HTTP-Response-Metadata", response)])),
            ("WARC-Header-Metadata", Object([("WARC-Date", date), ("WARC-Target-URI", url)])),
        ]
    )
    return Object([("Container", Object()), ("Envelope", envelope)])


records = st.builds(
    record,
    _html,
    st.one_of(_pairs(["X-Robots-Tag", "Server"], _mixed), _values),
    st.one_of(st.just("https://example.org/a/"), _mixed),
    _mixed,
)


def write(value, space, escape):
    """JSON of a value, with this white space between its tokens and characters escaped or not."""
    if isinstance(value, Object):
        pairs = (
            f"{write(key, '', escape)}{space}:{space}{write(inner, space, escape)}" for key, inner in value
        )
        return f"{{{space}{f'{space},{space}'.join(pairs)}{space}}}"
    if isinstance(value, dict):
        return write(Object(value.items()), space, escape)
    if isinstance(value, list):
        return f"[{space}{f'{space},{space}'.join(write(inner, space, escape) for inner in value)}{space}]"
    if isinstance(value, str) and escape == "all":
        return (
            '"'
            + "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else json.dumps(c)[1:-1] for c in value)
            + '"'
        )
    text = json.dumps(value, ensure_ascii=escape != "none")
    return text.replace("/", "\\/") if escape == "slash" else text
